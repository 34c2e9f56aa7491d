"""Settings, configurations and tables from strangers: none is endless, none fills the memory, none goes too deep."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit import commands, reporting
from cifarkit.commands.shared import read_settings
from cifarkit.files import read_file
from cifarkit.generation import read_generated
from cifarkit.models import Discriminator, SpeedNet
from cifarkit.reporting.reading import read_run
from cifarkit.sharing import load_pretrained, read_config, save_pretrained

pytest.importorskip("safetensors")
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
SMALL = {"num_classes": 2, "widths": (8, 8, 8)}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def load(folder: Path) -> nn.Module:
    return load_pretrained(SpeedNet, folder)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "read_config": ("config.json", read_config),
    "load_pretrained": ("config.json", load),
    "its weights": ("model.safetensors", load),
    "read_settings": ("settings.json", read_settings),
    "read_generated": ("settings.json", read_generated),
}


def in_the_way(path: Path, kind: str) -> None:
    """Put something that never ends in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@needs_pipes
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_never_ends_is_no_file(reader: str, kind: str, tmp_path: Path) -> None:
    save_pretrained(SpeedNet(**SMALL), tmp_path, SMALL)  # type: ignore[arg-type]
    name, read = READERS[reader]
    in_the_way(tmp_path / name, kind)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=rf"{name}( is a folder, a pipe or a device|, which|: no such)"
    ):
        read(tmp_path)


@needs_pipes
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["metrics.csv", "steps.csv", "config.json", "learning_rate.csv", "curves.png"])
def test_a_report_does_not_wait_for_what_never_ends(name: str, kind: str, tmp_path: Path) -> None:
    in_the_way(tmp_path / name, kind)
    problems = read_run(tmp_path).problems
    assert name in ("learning_rate.csv", "curves.png") or any(
        f"{name} is refused: " in item and "is a folder, a pipe or a device" in item for item in problems
    )
    assert reporting.report(tmp_path).is_file()


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(1_000_001))
    assert len(read_file(tmp_path / "a", 1_000_001)) == 1_000_001
    with pytest.raises(ValueError, match=r"a is larger than 1 MB"):
        read_file(tmp_path / "a", 1_000_000)
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    for name in ("config.json", "settings.json", "metrics.csv"):
        (sparse / name).touch()
        os.truncate(sparse / name, 10**12)  # takes no room on the disk
    for read in (read_config, read_settings, read_generated):
        with pytest.raises(ValueError, match=r"(config|settings)\.json is larger than 10 MB"):
            read(sparse)
    assert any("metrics.csv is refused" in item and "larger than 64 MB" in item for item in read_run(sparse).problems)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "\0", "", "nul"])
def test_a_note_that_is_no_plain_json_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "settings.json"):
        (tmp_path / name).write_text(text)
    for read in (read_config, read_settings, read_generated):
        with pytest.raises(ValueError, match=r"\.json (is damaged|holds a)"):
            read(tmp_path)
    assert commands.main(["generate", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**9}, r"describes a network of \d{10,} numbers, and model\.safetensors has \d+ bytes"),
        ({"num_classes": 10**6}, r"describes a network of \d{7} numbers"),
        ({"widths": [10**7] * 3}, r"describes a network (of \d{15,} numbers|that cannot be built)"),
        ({"widths": [2**40] * 3}, r"describes a network that cannot be built: "),
    ],
)
def test_a_config_of_a_huge_network_is_refused_before_it_is_built(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_pretrained(SpeedNet(**SMALL), tmp_path, SMALL)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(json.dumps(SMALL | changes))
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        load(tmp_path)


def test_a_network_that_cannot_be_drafted_is_built_and_named_if_that_fails(tmp_path: Path) -> None:
    class Looking(Discriminator):  # whose making looks at numbers
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            assert next(self.parameters()).isfinite().all()

    options: dict[str, Any] = {"base_channels": 8, "spectral_norm": True}
    save_pretrained(Looking(**options), tmp_path, options)
    assert isinstance(load_pretrained(Looking, tmp_path), Looking)
    (tmp_path / "config.json").write_text(json.dumps(options | {"base_channels": 10**7}))
    with pytest.raises(ValueError, match=r"config\.json describes a network that cannot be built: "):
        load_pretrained(Looking, tmp_path)


def test_weights_in_half_precision_are_still_large_enough(tmp_path: Path) -> None:
    network = SpeedNet(**SMALL)  # type: ignore[arg-type]
    save_pretrained(network.half(), tmp_path, SMALL)
    assert next(load(tmp_path).parameters()).dtype == torch.float32
