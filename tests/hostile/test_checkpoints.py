"""Checkpoints and weights from strangers: nothing runs, nothing outside the folder is touched, the refusal says why."""

import hashlib
import io
import os
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.files import remove_abandoned, require_plain_zip
from cifarkit.generation import inception
from cifarkit.models import resnet18
from cifarkit.training import ClassificationTask, ModelCheckpoint, Trainer, load_checkpoint, load_weights, save_weights
from cifarkit.training.checkpoint import write_checkpoint

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Payload:
    """Something whose unpickling leaves a mark."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def as_checkpoint(payload: Any, path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "extra": payload}, path)


def as_whole_model(payload: Any, path: Path) -> None:
    model = nn.Linear(2, 2)
    model.payload = payload
    torch.save(model, path)


def as_old_format(payload: Any, path: Path) -> None:
    torch.save({"extra": payload}, path, _use_new_zipfile_serialization=False)


def as_bare_pickle(payload: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"extra": payload}))


def with_a_checksum(payload: Any, path: Path) -> None:
    """Sign it as write_checkpoint would: the checksum is no signature and must not be taken for one."""
    as_checkpoint(payload, path)
    content = path.read_bytes()
    comment = b"sha256:" + hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:-2] + len(comment).to_bytes(2, "little") + comment)


pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.torch.load. received a zip file")
DISGUISES = [as_checkpoint, as_whole_model, as_old_format, as_bare_pickle, with_a_checksum]


def readers(path: Path) -> dict[str, Callable[[], Any]]:
    model = nn.Linear(2, 2)
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    trainer = Trainer(max_epochs=1, progress=False)
    return {
        "load_checkpoint": lambda: load_checkpoint(path),
        "load_weights": lambda: load_weights(model, path),
        "resnet18": lambda: resnet18(weights=path),
        "inception": lambda: inception(path),
        "resume": lambda: trainer.fit(task, [(torch.zeros(1, 2), torch.zeros(1).long())], resume=path),
    }


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("reader", ["load_checkpoint", "load_weights", "resnet18", "inception", "resume"])
def test_a_payload_never_runs(reader: str, disguise: Any, tmp_path: Path) -> None:
    path, marker = tmp_path / "gift.pt", tmp_path / "executed"
    disguise(Payload(marker), path)
    with pytest.raises(
        ValueError, match=r"gift\.pt.* (cannot be read|is damaged|is no file of|are not those)"
    ) as caught:
        readers(path)[reader]()
    assert "is damaged" in str(caught.value) or re.search("GLOBAL|nsupported|WeightsUnpickler", str(caught.value))
    assert "weights_only" not in str(caught.value)  # PyTorch's advice is to load it nevertheless
    assert not marker.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickle.loads(path.read_bytes()) if disguise is as_bare_pickle else torch.load(path, weights_only=False)
    assert marker.exists()  # so the trap was armed


def test_a_pickle_named_safetensors_is_no_safetensors_file(tmp_path: Path) -> None:
    path, marker = tmp_path / "gift.safetensors", tmp_path / "executed"
    as_bare_pickle(Payload(marker), path)
    for reader in (lambda: load_weights(nn.Linear(2, 2), path), lambda: resnet18(weights=path)):
        with pytest.raises(ValueError, match=r"gift\.safetensors'? is damaged or no safetensors file"):
            reader()
    assert not marker.exists()


def test_a_compiled_program_is_no_checkpoint(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)), tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt (cannot be read|is damaged)"):
        load_checkpoint(tmp_path / "program.pt")


# Memory.


def write_bomb(path: Path) -> None:
    """Write zeros as torch.save does, but compressed to almost nothing."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert path.stat().st_size < 100_000


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt cannot be read .*would unpack \d+ bytes to 400\d+"):
        load_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.parametrize("reader", [lambda path: resnet18(weights=path), inception])
def test_weights_that_unpack_to_more_than_they_hold_are_refused(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt' .*it would unpack \d+ bytes to 400\d+"):
        reader(tmp_path / "bomb.pt")


def test_weights_in_the_format_of_old_still_load(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    resnet18(weights=tmp_path / "old.pt")


def test_every_file_of_torch_save_is_plain() -> None:
    for state in ({}, {"a": torch.zeros(0)}, {"a": torch.zeros(1000), "b": ["text"] * 50}):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        require_plain_zip(buffer.getvalue())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_folder_or_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "folder.pt", "pipe.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is a folder, a pipe or a device; give a file"):
            load_weights(nn.Linear(1, 1), tmp_path / name)


# Damage.


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_truncated_at_random_places(name: str, tmp_path: Path) -> None:
    path, places = tmp_path / name, random.Random(1)
    save_weights(nn.Linear(20, 5), path)
    content = path.read_bytes()
    for length in places.sample(range(len(content)), 60):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            load_weights(nn.Linear(20, 5), path)


def test_flipped_bits_in_safetensors_are_values_or_a_refusal(tmp_path: Path) -> None:
    path, places = tmp_path / "weights.safetensors", random.Random(2)
    save_weights(nn.Linear(20, 5), path)
    content = path.read_bytes()
    for position in [*range(0, 160, 2), *places.sample(range(160, len(content)), 20)]:
        changed = bytearray(content)
        changed[position] ^= 1 << places.randrange(8)
        path.write_bytes(changed)
        try:  # the format has no checksum: a changed number is as good as any other
            load_weights(nn.Linear(20, 5), path)
        except ValueError as error:
            assert "weights.safetensors" in str(error)  # noqa: PT017  (no error is allowed too)


# Files that are whole, and lie.


@pytest.mark.parametrize(
    "state",
    [
        {"format_version": 1},
        {"format_version": 1, "task": None},
        {"format_version": 1, "task": [1, 2]},
        {"format_version": 1, "task": {3: torch.zeros(1)}},
        {"format_version": 1, "task": {"model.weight": "text", "model.bias": 7}},
        {"weight": "text", "bias": None},
        {0: torch.zeros(2, 2), 1: torch.zeros(2)},
    ],
)
def test_weights_of_another_form_are_refused(state: Any, tmp_path: Path) -> None:
    write_checkpoint(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt (calls itself|does not fit|holds the networks)"):
        load_weights(nn.Linear(2, 2), tmp_path / "odd.pt")


@pytest.mark.parametrize("callbacks", [None, [None], [{"state": {"kind": "ema"}}]])
def test_averages_of_another_form_are_refused(callbacks: Any, tmp_path: Path) -> None:
    write_checkpoint({"format_version": 1, "task": {}, "callbacks": callbacks}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt calls itself the checkpoint of a run and lacks its parts"):
        load_weights(nn.Linear(2, 2), tmp_path / "odd.pt", average="ema")


@pytest.mark.parametrize(
    "name", ["../secret.pt", "/secret.pt", "..", "", ".", "sub/../../secret.pt", "link/secret.pt", "thesis.tex"]
)
def test_a_checkpoint_cannot_have_a_file_deleted(name: str, tmp_path: Path) -> None:
    """What drops out of the best files is deleted, and their names are in the checkpoint."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"counts .* among the best files, which is none in .*run"):
        ModelCheckpoint(tmp_path / "run").load_state_dict({"best": [[0.5, name]]})


def test_own_names_of_best_files_are_taken(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path)
    best = [(0.9, "best.pt"), (0.8, "epoch=001-val_acc=0.8000.pt"), (0.7, "epoch=001-val/acc=0.7000.pt")]
    callback.load_state_dict({"best": best})
    assert callback.best == best


# Links and names in the folder of a run.


def test_saving_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("precious")
    folder.mkdir()
    (folder / "last.pt").symlink_to(outside)
    write_checkpoint({"step": 1}, folder / "last.pt")
    assert outside.read_text() == "precious"
    assert load_checkpoint(folder / "last.pt") == {"step": 1}


def test_sweeping_up_survives_names_that_somebody_made_up(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".a.{'9' * 40}-0123abcd.tmp").touch()  # no process can have this number
    (folder / ".b.999999999-0123abcd.tmp").symlink_to(outside)
    (folder / ".c.999999999-0123abcd.tmp").mkdir()
    remove_abandoned(folder)
    assert [path.name for path in folder.iterdir()] == [".c.999999999-0123abcd.tmp"]
    assert outside.read_text() == "precious"
