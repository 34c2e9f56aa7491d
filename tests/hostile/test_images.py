"""Pictures from strangers: bombs are named before they are unpacked, links, pipes and devices are left alone."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cifarkit.data import image_folder, pictures, read_images
from cifarkit.generation import generate_dataset, read_generated
from cifarkit.generation.folder import read_picture

SIDE = 50_000


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """Write a PNG whose header claims any size; its data is one line of zeros."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 + 3 * 8)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + data + chunk(b"IEND", b"")


def bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)


def tiff(side: int) -> bytes:
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4)


BOMBS = {
    "bomb.png": png(SIDE, SIDE),
    "bomb.bmp": bmp(SIDE),
    "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0, 0, 0) + b"," + bytes(9) + b"\2\0;",
    "bomb.ppm": f"P6 {SIDE} {SIDE} 255\n".encode(),
    "bomb.tif": tiff(SIDE),
    "medium.png": png(10_000, 10_000),  # where Pillow by itself only warns
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_named_before_it_is_unpacked(name: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / name).write_bytes(BOMBS[name])
    with pytest.raises(ValueError, match=rf"{name}: refused as too large: .*decompression bomb"):
        image_folder(tmp_path, size=8)


def test_a_bmp_of_run_lengths_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    header = struct.pack("<2sIII", b"BM", 56, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 4_000_000, 1, 1, 8, 1, 2, 1, 1, 0, 0
    )
    (tmp_path / "long.bmp").write_bytes(header + b"\0\1")  # Pillow would fill four million pixels one by one
    with pytest.raises(
        ValueError, match=r"long\.bmp: its header claims 4000000 x 1 pixels, but its bytes hold 7168 at"
    ):
        read_images(tmp_path)


def test_of_many_frames_one_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value % 256, 0, 0)) for value in range(7, 500)]
    frames[0].save(tmp_path / "many.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "many.png", save_all=True, append_images=frames[1:])
    images = read_images([tmp_path / "many.gif", tmp_path / "many.png"])
    assert images.shape == (2, 3, 8, 8)
    assert images[:, 0].unique().tolist() == [7]


def test_a_note_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    note = b"cifarkit\0\0" + zlib.compress(bytes(5_000_000), 9)
    (tmp_path / "note.png").write_bytes(png(8, 1, chunk(b"zTXt", note)))
    with pytest.raises(ValueError, match=r"note\.png: Decompressed data too large"):
        read_images(tmp_path / "note.png")


def test_many_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1000000000 pictures of 9000 x 9000 pixels do not fit .* pass size="):
        pictures._room_for(10**9, np.broadcast_to(np.uint8(0), (9000, 9000, 3)))


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg></svg>", b"\0" * 99])
def test_what_would_start_another_program_is_no_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: not a picture"):
        read_images(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_links_in_circles_pipes_and_folders_are_left_alone(tmp_path: Path) -> None:
    root, cat = tmp_path / "root", tmp_path / "root" / "cat"
    cat.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(cat / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (cat / "b.png").symlink_to(tmp_path / "outside.png")
    (cat / "c.png").symlink_to(cat / "c.png")
    (root / "circle").symlink_to(root)
    (root / "elsewhere").symlink_to(tmp_path)
    (cat / "d.png").mkdir()
    os.mkfifo(cat / "e.png")
    with pytest.warns(UserWarning, match="passed over 4 links"):
        dataset = image_folder(root)
    assert (len(dataset), dataset.classes) == (1, ("cat",))
    with pytest.warns(UserWarning, match="passed over 2 links"):
        assert len(read_images(cat)) == 1
    with pytest.raises(ValueError, match=r"e\.png: not a picture but a folder, a pipe or a device"):
        read_images([cat / "e.png"])


# A folder of generated images.


def make(folder: Path) -> None:
    generate_dataset(
        lambda labels, generator: torch.zeros(len(labels), 3, 2, 2),
        classes=("a", "b"),
        per_class=2,
        folder=folder,
        progress=False,
    )


@pytest.mark.parametrize("name", ["a", "a/000000.png", "settings.json", "manifest.jsonl"])
def test_a_link_in_an_export_is_refused_and_not_followed(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "export", tmp_path / "outside"
    make(folder)
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    for reader in (read_generated, make):
        with pytest.raises(ValueError, match=rf"{name} is a link, a pipe or a device; move it elsewhere"):
            reader(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_through_the_link_of_a_class(tmp_path: Path) -> None:
    folder, outside = tmp_path / "export", tmp_path / "outside"
    make(folder)
    outside.mkdir()
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b").rmdir()
    (folder / "b").symlink_to(outside)
    with pytest.raises(ValueError, match="b is a link"):
        make(folder)
    assert not list(outside.iterdir())


def test_a_bomb_in_an_export_is_refused_and_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("bomb.png", "medium.png"):
        (tmp_path / "a" / "000001.png").write_bytes(BOMBS[name])
        for reader in (read_generated, make):
            with pytest.raises(ValueError, match=r"000001\.png is refused as too large"):
                reader(tmp_path)
        assert (tmp_path / "a" / "000001.png").read_bytes() == BOMBS[name]


@pytest.mark.parametrize("line", ["", "[]", "3", "[" * 100_000, '{"attempt": "0"}', '{"attempt":\n0}', "{", "NaN"])
def test_a_note_that_is_no_record_is_refused(line: str, tmp_path: Path) -> None:
    note, packed = PngInfo(), io.BytesIO()
    note.add_text("cifarkit", line)
    Image.new("RGB", (2, 2)).save(packed, "PNG", pnginfo=note)
    (tmp_path / "a.png").write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match=r"a\.png is no picture that generate_dataset made"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    "settings", ["[" * 100_000, '{"classes": ["../b"]}', '{"classes": ["/etc"]}', '{"classes": ["a\\u0000"]}', "[]"]
)
def test_settings_that_lead_elsewhere_are_refused(settings: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(settings)
    for reader in (read_generated, make):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            reader(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
