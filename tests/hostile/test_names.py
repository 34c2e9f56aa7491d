"""Names from strangers: what a terminal would obey, what turns the direction of writing, what is far too long."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cifarkit import commands
from cifarkit.commands.shared import read_settings
from cifarkit.data import ImageDataset, image_folder, load_npz, read_images
from cifarkit.files import shown
from cifarkit.generation import generate_dataset, inception, read_generated
from cifarkit.models import resnet18
from cifarkit.sharing import read_config
from cifarkit.training import ModelCheckpoint, load_checkpoint, load_weights
from cifarkit.training.checkpoint import find_checkpoint, write_checkpoint
from cifarkit.training.config import warn_of_differences

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


ESCAPE = "x\x1b[2Jy"  # clears the screen


def export(folder: Path) -> Path:
    generate_dataset(
        lambda labels, generator: torch.zeros(len(labels), 3, 2, 2),
        classes=("a", "b"),
        per_class=1,
        folder=folder,
        progress=False,
    )
    return folder


@pytest.mark.parametrize("place", [".", "a"])
def test_a_stray_file_in_an_export_is_shown_escaped(place: str, tmp_path: Path) -> None:
    (export(tmp_path / ESCAPE) / place / ESCAPE).touch()
    for reader in (read_generated, export):
        with pytest.raises(ValueError, match=r"x\\x1b\[2Jy is none of this export's files") as caught:
            reader(tmp_path / ESCAPE)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: load_weights(nn.Linear(1, 1), path),
        lambda path: resnet18(weights=path),
        inception,
        lambda path: load_weights(nn.Linear(1, 1), path, average="ema"),
        lambda path: load_checkpoint(find_checkpoint("auto", [ModelCheckpoint(path.parent)]) or path),
        lambda path: image_folder(path.parent),
        lambda path: read_settings(path.parent),
        lambda path: read_config(path.parent / "b"),
    ],
    ids=["load_weights", "resnet18", "inception", "average", "auto", "image_folder", "settings", "config"],
)
@pytest.mark.filterwarnings("ignore:.*has no last.pt")
def test_no_reader_of_weights_shows_a_path_as_it_is(read: Any, suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / ESCAPE
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "config.json").write_text("[]")
    for path in (folder / f"epoch=1{ESCAPE}{suffix}", folder / "absent.pt"):
        if path.name != "absent.pt":
            path.write_bytes(b"junk")
        with pytest.raises((ValueError, OSError), match="x") as caught:
            read(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", [ESCAPE, "weight"])
def test_nor_the_keys_of_tensors(key: str, tmp_path: Path) -> None:
    write_checkpoint(
        {key: torch.zeros(2), "fc.weight": torch.zeros(2), "conv1.weight": torch.zeros(1)}, tmp_path / "a.pt"
    )
    for read in (lambda path: load_weights(nn.Linear(1, 1), path), lambda path: resnet18(weights=path), inception):
        with pytest.raises(ValueError, match=r"a\.pt") as caught:
            read(tmp_path / "a.pt")
        assert str(caught.value).isprintable()


def test_the_newest_of_the_best_is_told_escaped(tmp_path: Path) -> None:
    (tmp_path / f"epoch=1{ESCAPE}.pt").touch()
    with pytest.warns(UserWarning, match=r"goes on from epoch=1x\\x1b\[2Jy\.pt, the newest") as caught:
        find_checkpoint("auto", [ModelCheckpoint(tmp_path)])
    assert all(str(item.message).isprintable() for item in caught)


@pytest.mark.parametrize("value", [ESCAPE, [ESCAPE], {"a": ESCAPE}, "n" * 10_000, 3, None])
def test_what_a_checkpoint_says_of_its_machine_is_shown_escaped_and_short(value: Any) -> None:
    with pytest.warns(UserWarning, match="may not be equal bit for bit: .*torch .* then and") as caught:
        warn_of_differences({"torch": value})
    assert str(caught[0].message).isprintable()
    assert len(str(caught[0].message)) < 1000


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_the_command_line_shows_the_kind_of_a_run_escaped(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (ESCAPE, "n" * 10_000, [ESCAPE]):
        (tmp_path / "settings.json").write_text(json.dumps({"kind": kind}))
        assert commands.main([command, str(tmp_path)]) == 1
        text = capsys.readouterr().err
        assert "settings.json is damaged: its kind" in text
        assert text.removesuffix("\n").isprintable()
        assert len(text) < 400


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
