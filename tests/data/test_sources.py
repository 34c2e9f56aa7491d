"""CIFAR folders and archives, .npz files and picture folders: read right when sound, named when not."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from cifarkit.data import ImageDataset, cifar10, cifar100, image_folder, load_npz, pictures, read_images, sources
from cifarkit.data.download import DownloadError
from cifarkit.data.expected import Expected

RNG = np.random.default_rng(0)


def fake_batch(count: int, key: str, classes: int) -> bytes:
    data = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, key: [k % classes for k in range(count)]})


def fake_cifar(reader: Any, key: str, names_key: str, names: list[str]) -> dict[str, bytes]:
    lists = [*reader.train_list, *reader.test_list]
    files = {name: fake_batch(20, key, len(names)) for name, _ in lists}
    files[reader.meta["filename"]] = pickle.dumps({names_key: names})
    return files


def pack(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def install_fake(monkeypatch: pytest.MonkeyPatch, reader: Any, name: str, files: dict[str, bytes], where: Path) -> None:
    """Make files the official release: its md5s, its checksums, and where as its only mirror."""

    def digest(entry: str) -> str:
        return hashlib.md5(files[entry]).hexdigest()

    packed = pack(reader.base_folder, files)
    archive = getattr(sources, name)
    expected = Expected(hashlib.md5(packed).hexdigest(), hashlib.sha256(packed).hexdigest(), len(packed))
    where.mkdir()
    (where / archive.file).write_bytes(packed)
    address = (where / archive.file).as_uri()
    monkeypatch.setattr(sources, name, replace(archive, expected=expected, addresses=(address,)))
    monkeypatch.setattr(reader, "train_list", [[entry, digest(entry)] for entry, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[entry, digest(entry)] for entry, _ in reader.test_list])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": digest(reader.meta["filename"])})


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    files = fake_cifar(CIFAR10, "labels", "label_names", [f"class {k}" for k in range(10)])
    install_fake(monkeypatch, CIFAR10, "_CIFAR10", files, tmp_path / "host")
    monkeypatch.delenv("CIFARKIT_MIRRORS", raising=False)
    return files


def test_cifar10_downloads_checks_and_unpacks(official: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "data"
    train = cifar10(root, download=True)
    assert (len(train), train.image_shape) == (100, (3, 32, 32))
    first = pickle.loads(official["data_batch_1"])
    assert torch.equal(train.images[:20].flatten(1), torch.from_numpy(first["data"]))
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert sorted(file.name for file in root.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    (tmp_path / "host" / "cifar-10-python.tar.gz").unlink()
    assert len(cifar10(root, train=False, download=True)) == 20  # nothing left to fetch


def test_cifar100_has_its_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {k}" for k in range(100)]
    files = fake_cifar(CIFAR100, "fine_labels", "fine_label_names", names)
    install_fake(monkeypatch, CIFAR100, "_CIFAR100", files, tmp_path / "host")
    test = cifar100(tmp_path / "data", train=False, download=True)
    assert test.classes == tuple(names)
    assert test.labels.tolist() == list(range(20))


def test_archive_put_there_by_hand(official: dict[str, bytes], tmp_path: Path) -> None:
    assert len(cifar10(tmp_path / "host")) == 100
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is damaged: 4 bytes instead of \d+; delete it"):
        cifar10(tmp_path / "broken")
    assert len(cifar10(tmp_path / "broken", download=True)) == 100


def test_damaged_folder_is_named_and_restored(official: dict[str, bytes], tmp_path: Path) -> None:
    cifar10(tmp_path, download=True)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged: md5 is .* instead of .*download=True"):
        cifar10(tmp_path)
    assert len(cifar10(tmp_path, download=True)) == 100


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    for reader, title in ((cifar10, "cifar-10"), (cifar100, "cifar-100")):
        address = rf"https://www\.cs\.toronto\.edu/~kriz/{title}-python\.tar\.gz"
        message = rf"(?i){title} is not in .*download=True, or fetch {address} by hand"
        with pytest.raises(FileNotFoundError, match=message):
            reader(tmp_path)
    assert not list(tmp_path.iterdir())


def test_mirrors_come_from_argument_then_environment(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = (tmp_path / "host" / "cifar-10-python.tar.gz").rename(tmp_path / "cifar-10-python.tar.gz").parent
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("CIFARKIT_MIRRORS", "file:///two file:///three/")
    with pytest.raises(DownloadError) as caught:
        cifar10(tmp_path / "a", download=True, mirrors=["file:///one"])
    tried = [line.split("cifar-10-python")[0].strip() for line in str(caught.value).splitlines()[1:5]]
    assert tried == ["file:///one/", "file:///two/", "file:///three/", f"{(tmp_path / 'host').as_uri()}/"]
    monkeypatch.setenv("CIFARKIT_MIRRORS", host.as_uri())
    assert len(cifar10(tmp_path / "a", download=True)) == 100
    with pytest.raises(ValueError, match="mirrors must be a sequence of base addresses"):
        cifar10(tmp_path / "b", download=True, mirrors="http://x")


def test_npz_beside_or_instead_of_the_folder(official: dict[str, bytes], tmp_path: Path) -> None:
    small = ImageDataset(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]), ("a", "b"))
    small.save(tmp_path / "cifar10-test.npz")
    small.save(tmp_path / "cifar100-train.npz")
    assert len(cifar10(tmp_path, train=False)) == 2
    assert len(cifar100(tmp_path)) == 2
    assert len(cifar10(tmp_path, download=True)) == 100


@pytest.mark.skipif("CIFARKIT_DATA" not in os.environ, reason="CIFARKIT_DATA names no folder with real CIFAR-10")
def test_real_cifar10() -> None:
    test = cifar10(os.environ["CIFARKIT_DATA"], train=False)
    assert test.classes[0] == "airplane"
    assert test.image_shape == (3, 32, 32)
    assert len(set(test.class_counts().tolist())) == 1
    assert test.mean_std()[0] == pytest.approx((0.494, 0.485, 0.450), abs=0.01)


def save_npz(path: Path, **changes: Any) -> Path:
    arrays = {
        "images": RNG.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8),
        "labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "classes": np.array(["cat", "dog", "fox"]),
    }
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_npz_with_and_without_channels(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (6, 8, 9), dtype=np.uint8)
    dataset = load_npz(save_npz(tmp_path / "grey.npz", images=grey))
    assert dataset.image_shape == (1, 8, 9)
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(grey))
    assert load_npz(save_npz(tmp_path / "colour.npz")).image_shape == (3, 8, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "array 'labels' is missing; it holds images, classes"),
        ({"images": np.zeros((6, 8, 9, 3))}, "images must be uint8 in 0..255, got float64"),
        ({"images": np.zeros((6, 3, 8, 9), np.uint8)}, r"look like \(N, C, H, W\)"),
        ({"images": np.zeros((6, 8), np.uint8)}, r"\(N, H, W, C\) or \(N, H, W\), got \(6, 8\)"),
        ({"images": np.array([{}, {}])}, "allow_pickle=False"),
        ({"labels": np.zeros((6, 1), int)}, r"labels must have shape \(6,\)"),
        ({"labels": np.full(6, 3)}, r"labels\[0\]=3 is out of range"),
        ({"classes": np.array([b"cat", b"dog", b"fox"])}, r"classes must be one-dimensional text, got \|S3"),
    ],
)
def test_bad_npz_names_file_and_fault(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=rf"bad\.npz: .*{message}"):
        load_npz(path)


def test_damaged_npz_is_named(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "bad.npz")
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    other = (tmp_path / "one.npy").read_bytes()
    for content in (whole[:-100], whole[:500] + b"????" + whole[504:], b"", b"text", other):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz: damaged"):
            load_npz(path)
    with pytest.raises(FileNotFoundError, match=r"No such file.*absent\.npz"):
        load_npz(tmp_path / "absent.npz")


def draw(path: Path, *, size: Any = (10, 8), colour: Any = (200, 100, 50), mode: str = "RGB", exif: Any = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, exif=exif, lossless=True)  # lossless is WebP's


def test_image_folder_reads_every_format_in_order(tmp_path: Path) -> None:
    for index, suffix in enumerate(["png", "bmp", "gif", "webp", "tif", "PNG", "ppm"]):
        draw(tmp_path / "dog" / f"{index}.{suffix}")
    draw(tmp_path / "cat" / "1.jpg", colour=(0, 0, 255))
    draw(tmp_path / "cat" / "0.png", mode="L", colour=7)
    draw(tmp_path / "cat" / "2.png", mode="RGBA", colour=(1, 2, 3, 0))
    dataset = image_folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.class_counts().tolist() == [3, 7]
    assert dataset.image_shape == (3, 8, 10)
    assert dataset.images[[0, 2, 3], :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3], [200, 100, 50]]
    assert (dataset.images[3:].flatten(2).float().std(dim=2) == 0).all()


def test_image_folder_ignores_links_hidden_and_other_files(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "0.png")
    draw(tmp_path / "cat" / ".hidden.png")
    draw(tmp_path / ".cache" / "0.png")
    for name in ("manifest.jsonl", "cat/notes.txt", "stray.png"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "cat" / "link.png").symlink_to("0.png")
    (tmp_path / "linked").symlink_to("cat", target_is_directory=True)
    with pytest.warns(UserWarning, match="passed over 2 links to pictures or folders; links are not followed"):
        dataset = image_folder(tmp_path)
    assert (len(dataset), dataset.classes) == (1, ("cat",))
    with pytest.warns(UserWarning, match="cat: passed over 1 link to pictures") as caught:
        read_images(tmp_path / "cat")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_grey_pictures_have_one_channel(tmp_path: Path, mode: str) -> None:
    value = {"I;16": 0xFFFF, "LA": (255, 9), "RGBA": (255, 255, 255, 9), "P": 0}.get(mode, 255)
    (tmp_path / "cat").mkdir()
    picture = Image.new(mode, (5, 4), value)  # type: ignore[arg-type]
    if mode == "P":
        picture.putpalette([255] * 768)
    picture.save(tmp_path / "cat" / "0.png")
    assert torch.equal(image_folder(tmp_path, channels=1).images, torch.full((1, 1, 4, 5), 255, dtype=torch.uint8))
    assert read_images(tmp_path / "cat", size=8, channels=1).shape == (1, 1, 8, 8)


def test_every_grey_value_is_kept(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(tmp_path / "ramp.png")
    assert read_images(tmp_path / "ramp.png", channels=1).flatten().tolist() == list(range(256))


@pytest.mark.parametrize(("channels", "error"), [(2, ValueError), (0, ValueError), ("1", TypeError)])
def test_other_channels_are_refused(tmp_path: Path, channels: Any, error: type[Exception]) -> None:
    draw(tmp_path / "cat" / "0.png")
    for reader in (image_folder, lambda root, **options: read_images(root / "cat", **options)):
        with pytest.raises(error, match=rf"channels={channels!r} is"):
            reader(tmp_path, channels=channels)


def test_given_classes_number_two_folders_alike(tmp_path: Path) -> None:
    for name, value in (("train/cat", 1), ("train/dog", 2), ("train/fox", 3), ("val/fox", 4), ("val/cat", 5)):
        draw(tmp_path / name / "0.png", colour=(value, 0, 0))
    train = image_folder(tmp_path / "train")
    val = image_folder(tmp_path / "val", classes=train.classes)
    assert val.classes == train.classes == ("cat", "dog", "fox")
    assert dict(zip(val.labels.tolist(), val.images[:, 0, 0, 0].tolist(), strict=True)) == {0: 5, 2: 4}
    assert image_folder(tmp_path / "val", classes=["fox", "cat"]).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"train: class folder dog, fox is not among classes \(cat\); add the name or"):
        image_folder(tmp_path / "train", classes=["cat"])
    with pytest.raises(TypeError, match="classes must be a sequence of names"):
        image_folder(tmp_path / "train", classes="cat")
    with pytest.raises(ValueError, match="classes names 'cat' twice"):
        image_folder(tmp_path / "train", classes=["cat", "dog", "fox", "cat"])


def test_of_many_broken_pictures_three_are_named_and_all_counted(tmp_path: Path) -> None:
    for index in range(6):
        draw(tmp_path / "cat" / f"{index}.png", size=(10 + index, 8))
    for index in (1, 2):
        (tmp_path / "cat" / f"{index}.png").write_text("broken")
    with pytest.raises(ValueError, match=r"2 of 6 pictures cannot be read: .*1\.png: not a pic.*; .*2\.png: .*one$"):
        image_folder(tmp_path)
    for index in (3, 5):
        (tmp_path / "cat" / f"{index}.png").write_text("broken")
    with pytest.raises(ValueError, match=r"4 of 6 pictures .*1\.png.*2\.png.*3\.png.*; and 1 more$") as caught:
        read_images(tmp_path / "cat")
    assert "5.png" not in str(caught.value)


@pytest.mark.parametrize(("size", "shape"), [(4, (3, 4, 4)), ((5, 7), (3, 5, 7))])
def test_image_folder_resizes(tmp_path: Path, size: Any, shape: tuple[int, int, int]) -> None:
    draw(tmp_path / "cat" / "0.png", size=(10, 8))
    draw(tmp_path / "cat" / "1.png", size=(40, 3))
    assert image_folder(tmp_path, size=size).image_shape == shape


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.indices((64, 64)).sum(axis=0).astype(np.uint8) % 2 * 255).save(tmp_path / "cat" / "board.png")
    inner = image_folder(tmp_path, size=16).images[0, :, 2:-2, 2:-2].float()
    assert ((inner - 127.5).abs() < 3).all()  # a checkerboard becomes grey, not black or white


def test_sixteen_bits_are_scaled_and_upright_is_kept(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((8, 10), 0x8000, np.uint16)).save(tmp_path / "cat" / "0.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn by 90 degrees
    draw(tmp_path / "cat" / "1.png", size=(8, 10), exif=turned)
    dataset = image_folder(tmp_path)
    assert (dataset.images[0] == 0x80).all()
    assert dataset.image_shape == (3, 8, 10)


@pytest.mark.parametrize(
    "content", [b"P5 2 1 65535\n\x80\0\xff\xff", b"P5 2 1 1023\n\x02\0\x03\xff", b"P2 2 1 1023\n512 1023\n"]
)
def test_sixteen_bits_of_pgm_are_scaled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.pgm").write_bytes(content)
    assert read_images(tmp_path / "0.pgm")[0, :, 0].tolist() == [[128, 255]] * 3


def test_sixteen_bits_that_an_older_pillow_gives_as_32_are_scaled() -> None:
    grey = Image.fromarray(np.array([[-5, 0x8000, 70_000]], np.int32))
    assert grey.mode == "I"
    assert np.asarray(pictures._to_rgb(grey, "PNG"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="pixels of mode 'I' have no fixed range; save the picture with 8 bits"):
        pictures._to_rgb(grey, "TIFF")


def test_first_other_size_is_named(tmp_path: Path) -> None:
    for index, size in enumerate([(10, 8), (10, 8), (9, 8), (7, 7)]):
        draw(tmp_path / "cat" / f"{index}.png", size=size)
    with pytest.raises(ValueError, match=r"2\.png has .* = \(8, 9\), but .*0\.png has \(8, 10\); pass size="):
        image_folder(tmp_path)


def test_damaged_pictures_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cat" / "0.png"
    draw(path)
    noise = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noise, "PNG")
    whole = noise.getvalue()
    for content in (b"", b"text", whole[:1000], whole[:60] + b"\0" * 40 + whole[100:], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"0\.png: ") as caught:
            image_folder(tmp_path)
        assert "\n" not in str(caught.value)
        assert caught.value.__context__ is None


def test_pictures_without_a_range_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "0.tif", mode="F", colour=0.5)
    with pytest.raises(ValueError, match=r"0\.tif: pixels of mode 'F' have no fixed range"):
        image_folder(tmp_path)


@pytest.mark.parametrize("limit", [30, 60])  # Pillow refuses 80 pixels above twice the limit, and warns above it
def test_decompression_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    draw(tmp_path / "cat" / "0.png", size=(10, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"0\.png: refused as too large: .*80 pixels"):
        image_folder(tmp_path, size=4)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no class folder; expected .*/<class>/<picture>"):
        image_folder(tmp_path)
    draw(tmp_path / "cat" / "0.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "fox").mkdir()
    with pytest.raises(ValueError, match="no picture in class folder dog, fox; add some"):
        image_folder(tmp_path)
    for size, message in ((0, "size=0 must be at least 1"), ((8, -1), "size=-1 must be"), ((8,), "holds 1 numbers")):
        with pytest.raises(ValueError, match=message):
            image_folder(tmp_path, size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"size=1\.5 is a float; give an integer"):
        image_folder(tmp_path, size=1.5)  # type: ignore[arg-type]


def test_a_trip_through_pictures_keeps_every_pixel(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (6, 3, 8, 9), dtype=np.uint8)
    for index, image in enumerate(images):
        path = tmp_path / f"class {index // 2}" / f"{index:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    dataset = image_folder(tmp_path)
    assert torch.equal(dataset.images, torch.from_numpy(images))
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_unlabelled_pictures_are_those_of_a_folder_by_name_or_the_given_files(tmp_path: Path) -> None:
    colours = {"b.png": 20, "a.png": 10, "c.png": 30}
    for name, value in colours.items():
        Image.new("RGB", (6, 4), (value, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    images = read_images(tmp_path)
    assert images.shape == (3, 3, 4, 6)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert read_images([tmp_path / "c.png", str(tmp_path / "a.png")])[:, 0, 0, 0].tolist() == [30, 10]
    assert read_images(tmp_path / "b.png", size=8).shape == (1, 3, 8, 8)


def test_unlabelled_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no picture; for one folder a class use image_folder"):
        read_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file or folder"):
        read_images([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match=r"source=\[\] names no picture"):
        read_images([])
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad\.png: not a picture"):
        read_images(tmp_path)
