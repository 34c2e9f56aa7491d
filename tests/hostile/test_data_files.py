"""Data files from strangers: pickles are not opened, archives cannot climb out, arrays cannot fill the memory."""

import hashlib
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifarkit.data import cifar10, cifar100, load_npz, sources
from cifarkit.data.download import DownloadError, download

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")


class Payload:
    """Something whose unpickling leaves a mark."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.delenv("CIFARKIT_MIRRORS", raising=False)
    return tmp_path / "executed"


# CIFAR's pickles.


@pytest.mark.parametrize(("read", "name"), [(cifar10, "data_batch_1"), (cifar100, "train")])
def test_a_cifar_batch_is_not_unpickled_before_its_checksum_holds(
    read: Callable[..., Any], name: str, marker: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ("cifar-10-batches-py" if read is cifar10 else "cifar-100-python")
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=rf"{name} is damaged: md5 is [0-9a-f]+ instead of"):
        read(tmp_path)
    assert not marker.exists()


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_put_there_by_hand_is_not_unpacked_before_its_checksum_holds(marker: Path, tmp_path: Path) -> None:
    members = {"cifar-10-batches-py/data_batch_1": pickle.dumps(Payload(marker))}
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(pack(members))
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is damaged: \d+ bytes instead of 170498071"):
        cifar10(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_a_mirror_that_sends_something_else_is_refused(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "cifar-10-python.tar.gz").write_bytes(pack({"cifar-10-batches-py/data_batch_1": b"payload"}))
    monkeypatch.setattr(sources, "_CIFAR10", replace(sources._CIFAR10, addresses=()))
    with pytest.raises(DownloadError, match=r"(?s)could not download.*bytes instead of 170498071"):
        cifar10(tmp_path / "data", download=True, mirrors=[host.as_uri()])
    assert not list((tmp_path / "data").glob("cifar*"))


class _Endless(io.BytesIO):
    """A response without a length that sends more than the file has."""

    status, headers = 200, {"Content-Length": "9" * 5000}

    def read1(self, size: int | None = -1) -> bytes:
        return bytes(1000)


def test_a_download_that_never_ends_is_cut(marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarkit.data.download.urlopen", lambda *_, **__: _Endless())
    with pytest.raises(DownloadError, match="sends more than 5000 bytes"):
        download(["http://host/file"], tmp_path / "file", size=5000, progress=False)
    assert (tmp_path / "file.part").stat().st_size == 6000


@pytest.mark.parametrize("note", ["[1, 2]", '"text"', "[" * 100_000, '{"url": 3, "version": ["a"]}', "\0"])
def test_a_note_of_a_download_that_somebody_made_up_is_passed_over(note: str, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    (tmp_path / "file.part").write_bytes(b"con")
    (tmp_path / "file.part.json").write_text(note)
    path = download([(tmp_path / "source").as_uri()], tmp_path / "file", size=7, progress=False)
    assert path.read_bytes() == b"content"


@needs_pipes
@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling", "pipe"])
@pytest.mark.parametrize("name", ["file.part", "file.part.json"])
def test_a_download_writes_through_no_link(kind: str, name: str, marker: Path, tmp_path: Path) -> None:
    """An archive somebody unpacked before may have planted the link; a checksum lets any partial file be continued."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "source").write_bytes(b"content")
    outside.write_bytes(b"con")
    if kind == "dangling":
        outside.unlink()
    {"hard": os.link, "pipe": lambda _, path: os.mkfifo(path)}.get(kind, os.symlink)(outside, folder / name)
    md5 = hashlib.md5(b"content").hexdigest()
    path = download([(tmp_path / "source").as_uri()], folder / "file", md5=md5, progress=False)
    assert path.read_bytes() == b"content"
    assert [item.name for item in folder.iterdir()] == ["file"]
    assert outside.exists() == (kind != "dangling")
    assert kind == "dangling" or outside.read_bytes() == b"con"


def test_a_link_that_comes_while_a_download_runs_is_not_followed(marker: Path, tmp_path: Path) -> None:
    from cifarkit.data.download import _open_no_link

    (tmp_path / "file.part").symlink_to(tmp_path / "outside")
    for how in (os.O_APPEND, os.O_TRUNC):
        with pytest.raises(OSError, match=r"file\.part"):
            _open_no_link(tmp_path / "file.part", how)
    assert not (tmp_path / "outside").exists()


@needs_pipes
def test_a_pipe_in_the_place_of_the_file_is_no_download(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    os.mkfifo(tmp_path / "file")
    path = download([(tmp_path / "source").as_uri()], tmp_path / "file", progress=False)
    assert path.read_bytes() == b"content"


# Archives that climb out.


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


INSIDE = "cifar-10-batches-py"
CLIMBERS = {
    "parent": [entry("../../escaped")],
    "parent inside": [entry(f"{INSIDE}/../../../escaped")],
    "symbolic link": [entry(f"{INSIDE}/link", tarfile.SYMTYPE, "../../../outside")],
    "absolute link": [entry(f"{INSIDE}/link", tarfile.SYMTYPE, "/etc")],
    "hard link": [entry(f"{INSIDE}/link", tarfile.LNKTYPE, "../../outside")],
    "through a link": [entry("door", tarfile.SYMTYPE, "../.."), entry("door/escaped")],
    "device": [entry(f"{INSIDE}/device", tarfile.CHRTYPE)],
    "pipe": [entry(f"{INSIDE}/pipe", tarfile.FIFOTYPE)],
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_of(members: list[tarfile.TarInfo], path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for member in (entry(f"{INSIDE}/readme.html"), *members):
            tar.addfile(member)


@pytest.mark.parametrize("way", CLIMBERS)
def test_no_archive_climbs_out(way: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "outside").write_text("precious")
    before = snapshot(tmp_path)
    tar_of(CLIMBERS[way], root / "packed.tar.gz")
    with pytest.raises(ValueError, match=r"packed\.tar\.gz is refused: '?.*(outside|absolute|link|special)"):
        sources._unpack(sources._CIFAR10, root / "packed.tar.gz")
    (root / "packed.tar.gz").unlink()
    assert snapshot(tmp_path) == before
    assert not list(root.iterdir())


def test_an_absolute_path_ends_inside(tmp_path: Path) -> None:
    root, escaped = tmp_path / "data", tmp_path / "escaped"
    root.mkdir()
    tar_of([entry(str(escaped))], root / "packed.tar.gz")
    sources._unpack(sources._CIFAR10, root / "packed.tar.gz")
    assert not escaped.exists()


def test_nothing_is_unpacked_through_a_link_but_the_users_own_folder_may_be_one(tmp_path: Path) -> None:
    disk, outside, root = tmp_path / "disk", tmp_path / "outside", tmp_path / "data"
    disk.mkdir()
    outside.mkdir()
    root.symlink_to(disk)  # the user's, to another disk
    tar_of([], root / "packed.tar.gz")
    sources._unpack(sources._CIFAR10, root / "packed.tar.gz")
    assert (disk / INSIDE / "readme.html").exists()
    (disk / INSIDE / "readme.html").unlink()
    (disk / INSIDE).rmdir()
    (disk / INSIDE).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{INSIDE} is a link, and nothing is unpacked through it; remove it"):
        sources._unpack(sources._CIFAR10, root / "packed.tar.gz")
    assert not list(outside.iterdir())


def test_a_tar_that_is_cut_is_named(tmp_path: Path) -> None:
    (tmp_path / "packed.tar.gz").write_bytes(pack({f"{INSIDE}/a": random.Random(0).randbytes(9000)})[:4000])
    with pytest.raises(ValueError, match=r"packed\.tar\.gz is refused: "):
        sources._unpack(sources._CIFAR10, tmp_path / "packed.tar.gz")


# npz.


def good(**changes: Any) -> dict[str, Any]:
    arrays = {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, 1]), "classes": np.array(["a", "b"])}
    return arrays | changes


def as_npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_npz(path: Path, packing: int = zipfile.ZIP_STORED, **entries: Any) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, value in entries.items():
            archive.writestr(name, value if isinstance(value, bytes) else as_npy(value))
    return path


def npz(path: Path, packing: int = zipfile.ZIP_STORED, **changes: bytes) -> Path:
    entries = {f"{name}.npy": as_npy(array) for name, array in good().items()}
    return write_npz(path, packing, **(entries | {f"{name}.npy": value for name, value in changes.items()}))


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_an_array_of_objects_is_never_unpickled(name: str, marker: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "gift.npz", **good(**{name: np.array([Payload(marker)], dtype=object)}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gift\.npz: Object arrays cannot be loaded"):
        load_npz(tmp_path / "gift.npz")
    assert not marker.exists()


def test_a_bare_pickle_is_no_npz(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "gift.npz").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r"gift\.npz: damaged or not an \.npz file"):
        load_npz(tmp_path / "gift.npz")
    npz(tmp_path / "gift.npz", images=pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r"gift\.npz: the magic string is not correct"):
        load_npz(tmp_path / "gift.npz")
    assert not marker.exists()


def test_names_that_climb_out_of_an_npz_are_not_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    entries = {f"{name}.npy": array for name, array in good().items()}
    write_npz(folder / "gift.npz", **{"../../escaped.npy": b"x", "/escaped.npy": b"x"}, **entries)
    assert len(load_npz(folder / "gift.npz")) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["gift.npz"]


def header(text: str, data: bytes = b"") -> bytes:
    """Write an .npy file whose header says whatever it likes."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def described(shape: str, dtype: str = "|u1") -> bytes:
    return header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n", bytes(96))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (described("(1000000, 1000, 1000, 3)"), r"array 'images' claims 3000000000000 bytes and holds 96"),
        (described(f"({'9' * 40},)"), r"array 'images' claims 9{40} bytes and holds 96"),
        (described("(-1, 4, 4, 3)"), r"array 'images' claims -48 bytes and holds 96"),
        (described("(2, 4, 4, 3)", "<U9999999"), r"array 'images' claims \d+ bytes and holds 96"),
        (
            header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }\n"),
            r"'images' has entries without a size",
        ),
        (described("(2, 4, 4, '3')"), r"shape is not valid"),
        (described("(2, 4, 4, 3)", "nonsense"), r"descr is not a valid dtype descriptor"),
        (header("(" * 9000), r"gift\.npz: "),
        (header("-" * 9000 + "1"), r"gift\.npz: "),
        (header("x" * 60000), r"gift\.npz: "),
        (header("__import__('os').abort()"), r"gift\.npz: "),
        (b"\x93NUMPY\x09\x00", r"gift\.npz: "),
        (b"", r"gift\.npz: "),
    ],
)
def test_an_array_that_lies_is_refused(images: bytes, message: str, tmp_path: Path) -> None:
    npz(tmp_path / "gift.npz", images=images)
    with pytest.raises(ValueError, match=r"gift\.npz: ") as caught:
        load_npz(tmp_path / "gift.npz")
    caught.match(message)


def test_an_array_packed_better_than_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = as_npy(np.zeros((2000, 8, 8, 3), np.uint8))
    npz(tmp_path / "gift.npz", zipfile.ZIP_DEFLATED, images=bomb)
    with pytest.raises(ValueError, match=r"labels must have shape \(2000,\)"):  # small enough to be unpacked
        load_npz(tmp_path / "gift.npz")
    monkeypatch.setattr(sources, "_LARGE", 100_000)
    with pytest.raises(ValueError, match=r"array 'images' is refused: \d{3} bytes would unpack to 384128"):
        load_npz(tmp_path / "gift.npz")


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = bytearray(npz(tmp_path / "gift.npz").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of an entry, in both its headers
        start = content.find(mark)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(mark, start + 1)
    (tmp_path / "gift.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"gift\.npz: damaged: .*encrypted"):
        load_npz(tmp_path / "gift.npz")


def test_damage_anywhere_in_an_npz_is_a_value_error_or_changes_nothing(tmp_path: Path) -> None:
    content, places = npz(tmp_path / "gift.npz", zipfile.ZIP_DEFLATED).read_bytes(), random.Random(3)
    for position in range(0, len(content), 3):
        changed = bytearray(content[:position] if position % 4 == 0 else content)
        if position % 4:
            changed[position] ^= 1 << places.randrange(8)
        (tmp_path / "gift.npz").write_bytes(changed)
        try:
            assert len(load_npz(tmp_path / "gift.npz")) == 2
        except ValueError as error:
            assert "gift.npz" in str(error)  # noqa: PT017  (no error is allowed too)


@needs_pipes
def test_a_folder_or_a_pipe_is_no_npz(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path, tmp_path / "pipe.npz"):
        with pytest.raises(ValueError, match=r"not an \.npz file but a folder, a pipe or a device"):
            load_npz(path)
