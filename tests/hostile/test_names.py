"""Names from strangers: what a terminal would obey, what turns the direction of writing, what is far too long."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifarkit.data import ImageDataset, image_folder, load_npz, read_images
from cifarkit.files import shown
from cifarkit.generation import generate_dataset
from cifarkit.training import load_checkpoint

BAD = ["a\0b", "a\nb", "\x1b[2Jcat", "cat\x07", "a\x9bb", "cat\u202egnp", "a\u2028b", "a\ud800"]
LONG = "n" * 100_000


@pytest.mark.parametrize("name", BAD)
def test_a_class_whose_name_a_terminal_would_obey_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"classes holds '.*\\.*'; a name is printed, so it takes no control"
    ) as caught:
        ImageDataset(np.zeros((1, 3, 2, 2), np.uint8), np.array([0]), ("cat", name))
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="classes holds"):
        generate_dataset(torch.zeros, classes=("cat", name), per_class=1, folder=tmp_path / "export")  # type: ignore[arg-type]
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", [name for name in BAD if "\ud800" not in name])
def test_such_a_name_in_an_npz_is_refused(name: str, tmp_path: Path) -> None:
    arrays = {"images": np.zeros((1, 2, 2, 3), np.uint8), "labels": np.array([0]), "classes": np.array([name])}
    np.savez(tmp_path / "gift.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gift\.npz: classes holds") as caught:
        load_npz(tmp_path / "gift.npz")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["Straße 9", "ネコ", "👩‍🚀", "t-shirt", "a" * 5000, "ca\u0301t"])
def test_usual_and_long_names_pass(name: str) -> None:
    assert ImageDataset(np.zeros((1, 3, 2, 2), np.uint8), np.array([0]), (name,)).classes == (name,)


@pytest.mark.parametrize("name", [name for name in BAD if "\0" not in name and "\ud800" not in name])
def test_a_message_never_carries_the_control_characters_of_a_path(name: str, tmp_path: Path) -> None:
    folder = tmp_path / f"folder {name}"
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(b"damaged")
    (folder / f"{name}.npz").write_bytes(b"damaged")
    readers: list[Any] = [image_folder, lambda path: read_images(folder), lambda path: load_npz(folder / f"{name}.npz")]
    for reader in readers:
        with pytest.raises(ValueError, match=r"not a picture|holds no|not an") as caught:
            reader(tmp_path)
        assert str(caught.value).isprintable()


def test_a_class_folder_with_such_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat\x1b[31m").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "cat\x1b[31m" / "a.png")
    with pytest.raises(ValueError, match=r"classes holds 'cat\\x1b\[31m'"):
        image_folder(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="names that are no text exist on POSIX only")
def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"\\udcff\.png: not a picture") as caught:
        read_images(path)
    str(caught.value).encode()


def test_a_path_is_shown_as_it_is_otherwise() -> None:
    assert shown(Path("/data/Straße 9/ネコ.png")) == "/data/Straße 9/ネコ.png"
    assert shown("a\x1bb\nc\u202ed") == r"a\x1bb\nc\u202ed"


@pytest.mark.parametrize(("path", "message"), [("a\0b", "null"), (LONG, "too long")])
@pytest.mark.parametrize("reader", [load_npz, load_checkpoint])
def test_a_path_that_cannot_be_is_an_error(reader: Any, path: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        reader(path)


@pytest.mark.parametrize("name", [LONG, "../up", "/abs", "a\\b", "CON:", ".", ""])
def test_no_class_becomes_a_folder_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a name becomes a folder"):
        generate_dataset(torch.zeros, classes=(name,), per_class=1, folder=tmp_path / "export")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
