"""Settings that can be read, exports read back."""

from pathlib import Path

import pytest
import torch

from cifarkit.generation import generate_dataset, read_generated


def make(folder: Path) -> None:
    generate_dataset(
        lambda labels, generator: torch.zeros(len(labels), 3, 2, 2), classes=("z", "a"), per_class=1, folder=folder
    )


def test_the_order_of_the_classes_is_kept(tmp_path: Path) -> None:
    make(tmp_path)
    assert read_generated(str(tmp_path)).classes == ("z", "a")


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "a" / "000000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a/000000\.png is damaged; generate_dataset, called as before, makes it"):
        read_generated(tmp_path)


def test_a_folder_without_an_export_or_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings\.json: no such file; a folder that generate_dataset has"):
        read_generated(tmp_path)
    make(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no picture yet"):
        read_generated(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"classes": 3}'])
def test_damaged_settings_are_named(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "settings.json").write_text(content)
    for call in (read_generated, make):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            call(tmp_path)
