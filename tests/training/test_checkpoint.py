"""Checkpoints: whole or not at all, any damage named, nothing executed, the best ones kept."""

import math
import os
import random
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarkit.data import ImageDataset, Loader
from cifarkit.training import (
    ClassificationTask,
    ExponentialMovingAverage,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Trainer,
    load_checkpoint,
    load_weights,
    save_weights,
)
from cifarkit.training.checkpoint import find_checkpoint, write_checkpoint

STATE: dict[str, Any] = {
    "weights": torch.arange(12.0).view(3, 4),
    "run": {"step": 7, "history": [{"loss": 0.25, "why": None}]},
}


class TinyNet(nn.Sequential):
    def __init__(self, width: int = 3) -> None:
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 4, 2))


def train(folder: Path, epochs: int = 2, **options: Any) -> tuple[TinyNet, Trainer]:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    loader = Loader(ImageDataset(pixels, torch.arange(8) % 2, ("a", "b")), 4)
    model = TinyNet()
    averages = [ExponentialMovingAverage(0.5), StochasticWeightAveraging(start=0.4)]
    trainer = Trainer(max_epochs=epochs, callbacks=[*averages, ModelCheckpoint(folder, **options)], progress=False)
    trainer.fit(ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1)), loader, loader)
    return model, trainer


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The file.


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "state.pt"
    write_checkpoint(STATE, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["weights"], STATE["weights"])
    assert loaded["run"] == STATE["run"]
    assert names_in(path.parent) == {"state.pt"}


def test_plain_pytorch_reads_the_file_and_the_other_way_round(tmp_path: Path) -> None:
    write_checkpoint(STATE, tmp_path / "ours.pt")
    assert torch.load(tmp_path / "ours.pt", weights_only=True)["run"] == STATE["run"]
    torch.save(STATE, tmp_path / "theirs.pt")
    assert load_checkpoint(tmp_path / "theirs.pt")["run"] == STATE["run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process of its own, to limit its files")
@pytest.mark.parametrize("room", [0, 100, 5_000, 4_000_000, 8_000_400])  # in the header, a tensor, behind it
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path, room: int) -> None:
    resource, path = pytest.importorskip("resource"), tmp_path / "state.pt"
    write_checkpoint(STATE, path)
    old, large = path.read_bytes(), STATE | {"weights": torch.zeros(2_000_000)}
    reader, writer = os.pipe()
    child = os.fork()  # which takes no threads along: nothing that PyTorch would share among them may follow
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            write_checkpoint(large, path)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)  # whatever it was: this process must not go on with pytest
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert f"File too large: '{path}'" in pipe.read()
    assert path.read_bytes() == old
    assert names_in(tmp_path) == {"state.pt"}


def test_numpy_scalars_become_plain_and_other_things_are_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_checkpoint({"lr": np.float64(0.1), "rows": [OrderedDict(step=np.int64(3), names=(np.str_("a"),))]}, path)
    loaded = load_checkpoint(path)
    assert loaded == {"lr": 0.1, "rows": [{"step": 3, "names": ("a",)}]}
    assert type(loaded["lr"]) is float
    with pytest.raises(TypeError, match=r"state\['callbacks'\]\['folder'\] holds a PosixPath; a checkpoint takes"):
        write_checkpoint({"callbacks": {"folder": path}}, tmp_path / "other.pt")
    assert names_in(tmp_path) == {"state.pt"}


def test_any_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path, damaged, places = tmp_path / "good.pt", tmp_path / "bad.pt", random.Random(0)
    write_checkpoint(STATE, path)
    content = path.read_bytes()
    tail = range(len(content) - 100, len(content))  # the end record and the checksum itself
    for position in [*places.sample(range(len(content)), 200), *tail]:
        changed = bytearray(content)
        changed[position] ^= 1 << places.randrange(8)
        damaged.write_bytes(changed)
        with pytest.raises(ValueError, match=r"bad\.pt is damaged"):
            load_checkpoint(damaged)


def test_a_cut_or_empty_file_is_named(tmp_path: Path) -> None:
    path, cut = tmp_path / "good.pt", tmp_path / "cut.pt"
    write_checkpoint(STATE, path)
    content = path.read_bytes()
    for length in [0, 1, 21, 22, 93, 94, len(content) // 2, *range(len(content) - 100, len(content))]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"cut\.pt is damaged or no checkpoint: .*missing \({length} bytes"):
            load_checkpoint(cut)
    cut.write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=r"cut\.pt is damaged"):
        load_checkpoint(cut)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_without_a_checksum_is_a_value_error_or_passes(tmp_path: Path) -> None:
    path, places = tmp_path / "plain.pt", random.Random(0)
    torch.save({"a": torch.zeros(2), "b": {"c": [1, "d"]}}, path)
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        changed = bytearray(content)
        changed[position] ^= 1 << places.randrange(8)
        path.write_bytes(changed)
        try:
            load_checkpoint(path)
        except ValueError as error:
            assert "plain.pt" in str(error)  # noqa: PT017  (no error is allowed too)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, marker = tmp_path / "hostile.pt", tmp_path / "executed"
    torch.save({"weights": Hostile(marker)}, path)
    with pytest.raises(ValueError, match=r"hostile\.pt cannot be read as tensors and plain types"):
        load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # so the trap was armed


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list where a dict was expected"):
        load_checkpoint(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("weights" * 100)
    with pytest.raises(ValueError, match=r"text\.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "state.pt"
    write_checkpoint({"step": 1}, path)
    monkeypatch.setattr({"fsync": "os.fsync", "replace": "pathlib.Path.replace"}[step], fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}
    assert names_in(tmp_path) == {"state.pt"}


# Weights of one network.


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_weights_come_back(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    model, other = TinyNet().to(memory_format=torch.channels_last), TinyNet()
    save_weights(model, tmp_path / name)
    assert not same_weights(model, other)
    assert load_weights(other, tmp_path / name) is other
    assert same_weights(model, other)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_tied_weights_come_back(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")

    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model = tied()
    save_weights(model, tmp_path / name)
    loaded = load_weights(tied(), tmp_path / name)
    assert same_weights(loaded, model)
    assert loaded[1].weight is loaded[0].weight


def test_weights_of_a_compiled_network_come_back(tmp_path: Path) -> None:
    def compiled() -> tuple[nn.Linear, Any]:
        inner = nn.Linear(3, 2)
        return inner, torch.compile(inner, backend="eager")

    inner, model = compiled()
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    callbacks = [ExponentialMovingAverage(), ModelCheckpoint(tmp_path)]
    Trainer(max_epochs=1, callbacks=callbacks, progress=False).fit(task, batches)
    assert same_weights(load_weights(nn.Linear(3, 2), tmp_path / "last.pt"), inner)
    load_weights(nn.Linear(3, 2), tmp_path / "last.pt", average="ema")
    other, wrapper = compiled()
    assert load_weights(wrapper, tmp_path / "last.pt") is wrapper
    assert same_weights(other, inner)


def test_a_file_of_an_old_pytorch_is_read(tmp_path: Path) -> None:
    model = TinyNet()
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_weights(load_weights(TinyNet(), tmp_path / "old.pt"), model)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read as tensors and plain types"):
        load_weights(TinyNet(), tmp_path / "cut.pt")


def test_arguments_in_the_wrong_order_are_named(tmp_path: Path) -> None:
    swapped: Any = tmp_path / "net.pt"
    for function in (save_weights, load_weights):
        with pytest.raises(TypeError, match=r"model is a \w+Path; give the torch\.nn\.Module, and the path behind it"):
            function(swapped, TinyNet())  # type: ignore[arg-type]


def test_weights_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(TypeError, match="'_extra_state' of the model is a dict; files of weights hold tensors alone"):
        save_weights(Extra(2, 2), tmp_path / "net.pt")


def test_weights_of_a_run_raw_and_averaged(tmp_path: Path) -> None:
    model, trainer = train(tmp_path)
    path = tmp_path / "last.pt"
    assert same_weights(load_weights(TinyNet(), path), model)
    for callback in trainer.callbacks[:2]:
        assert isinstance(callback, ExponentialMovingAverage | StochasticWeightAveraging)
        assert callback.averaged is not None
        averaged = load_weights(TinyNet(), path, average=callback.kind)
        assert same_weights(averaged, callback.averaged.module.get_submodule("model"))
        assert not same_weights(averaged, model)


def test_an_average_that_is_not_there_is_named(tmp_path: Path) -> None:
    model, _ = train(tmp_path, every_n_steps=1, epochs=0)
    save_weights(model, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"average='ema': .*plain\.pt holds plain weights and no averaged ones"):
        load_weights(model, tmp_path / "plain.pt", average="ema")
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"average='mean': .*holds no average of that name; use 'ema' or 'swa'"):
        load_weights(model, tmp_path / "last.pt", average="mean")
    state = load_checkpoint(tmp_path / "last.pt")
    for item in state["callbacks"]:
        item["state"] |= {"updates": 0} if item["state"].get("kind") == "swa" else {}
    write_checkpoint(state, tmp_path / "early.pt")
    with pytest.raises(ValueError, match=r"average='swa': .* holds an average that no update has entered yet"):
        load_weights(model, tmp_path / "early.pt", average="swa")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_weights(TinyNet(3), tmp_path / "narrow.pt")
    message = r"narrow\.pt does not fit TinyNet: '0\.weight' is \(3, 3, 3, 3\) there and \(4, 3, 3, 3\) here"
    with pytest.raises(ValueError, match=message):
        load_weights(TinyNet(4), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=r"does not fit Linear: 'weight' is absent there and \(1, 1\) here"):
        load_weights(nn.Linear(1, 1), tmp_path / "narrow.pt")
    torch.save({"state_dict": TinyNet().state_dict(), "epoch": 3}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt does not fit TinyNet: '0\.weight' is absent there"):
        load_weights(TinyNet(), tmp_path / "foreign.pt")
    train(tmp_path)
    with pytest.raises(ValueError, match=r"last\.pt does not fit Linear: 'weight' is absent there and \(1, 1\) here"):
        load_weights(nn.Linear(1, 1), tmp_path / "last.pt")


def test_of_two_networks_that_fit_one_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    state, pupil, master = load_checkpoint(tmp_path / "last.pt"), TinyNet(), TinyNet()
    pair = {"pupil": pupil, "master": master}
    for names, taken in ((("pupil", "master"), "pupil"), (("model", "master"), "model")):
        networks = dict(zip(names, pair.values(), strict=True))
        task = {f"{name}.{key}": value for name, part in networks.items() for key, value in part.state_dict().items()}
        write_checkpoint(state | {"task": task}, tmp_path / f"{taken}.pt")
        assert same_weights(load_weights(TinyNet(), tmp_path / f"{taken}.pt", network="master"), master)
        assert same_weights(load_weights(TinyNet(), tmp_path / f"{taken}.pt", network=taken), pupil)
    assert same_weights(load_weights(TinyNet(), tmp_path / "model.pt"), pupil)
    message = r"pupil\.pt holds several networks with the keys of TinyNet: \['master', 'pupil'\]; say which by network="
    with pytest.raises(ValueError, match=message):
        load_weights(TinyNet(), tmp_path / "pupil.pt")
    with pytest.raises(ValueError, match=r"network='teacher': .*holds the networks \['master', 'pupil'\]"):
        load_weights(TinyNet(), tmp_path / "pupil.pt", network="teacher")
    save_weights(pupil, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"network='pupil': .*plain\.pt holds the weights of one network; leave"):
        load_weights(pupil, tmp_path / "plain.pt", network="pupil")


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, 3, device="meta")])
def test_weights_that_cannot_be_copied_are_named(odd: Tensor, tmp_path: Path) -> None:
    torch.save({"weight": odd, "bias": torch.zeros(3)}, tmp_path / "odd.pt")
    model = nn.Linear(3, 3)
    before = model.bias.clone()
    with pytest.raises(ValueError, match=r"odd\.pt: 'weight' is a tensor .* it must be a dense tensor"):
        load_weights(model, tmp_path / "odd.pt")
    assert torch.equal(model.bias, before)


def test_a_broken_safetensors_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    save_weights(TinyNet(), tmp_path / "net.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged or no safetensors file"):
        load_weights(TinyNet(), tmp_path / "cut.safetensors")


# ModelCheckpoint.


def stub_run(
    values: list[float], callback: ModelCheckpoint, *, first: int = 0, resumed: ModelCheckpoint | None = None
) -> SimpleNamespace:
    """Play an epoch for each value of the metric, after those that another callback has seen."""
    run = SimpleNamespace(epoch=0, step=0, metrics={}, history=[], resumed=resumed is not None, callbacks=[callback])
    run.last_checkpoint, run.task = str(callback.last_path), nn.Module()
    run.state_dict = lambda: {"epoch": run.epoch, "callbacks": callback.state_dict()}
    callback.on_fit_start(run)  # type: ignore[arg-type]
    if resumed is not None:
        callback.load_state_dict(resumed.state_dict())
    for epoch, value in enumerate(values, first):
        run.epoch, run.metrics = epoch + 1, {"val_acc": value, "lr": 0.1}
        run.history.append({"epoch": epoch})
        callback.on_epoch_end(run)  # type: ignore[arg-type]
        callback.on_save(run)  # type: ignore[arg-type]
    return run


def epoch_of(path: Path) -> int:
    return int(load_checkpoint(path)["epoch"])


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3)])
def test_best_and_last(mode: str, best: int, tmp_path: Path) -> None:
    stub_run([0.5, 0.7, 0.2, 0.7], ModelCheckpoint(tmp_path, "val_acc", mode))
    assert names_in(tmp_path) == {"best.pt", "last.pt"}
    assert epoch_of(tmp_path / "best.pt") == best
    assert epoch_of(tmp_path / "last.pt") == 4


def test_the_k_best_are_kept_under_their_names(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, "val_acc", save_top_k=2)
    stub_run([0.5, 0.9, 0.2, 0.7, math.nan], callback)
    kept = {"epoch=001-val_acc=0.9000.pt", "epoch=003-val_acc=0.7000.pt"}
    assert names_in(tmp_path) == kept | {"best.pt", "last.pt"}
    assert epoch_of(tmp_path / "best.pt") == 2
    assert callback.best == [(0.9, "epoch=001-val_acc=0.9000.pt"), (0.7, "epoch=003-val_acc=0.7000.pt")]
    assert load_checkpoint(tmp_path / "epoch=003-val_acc=0.7000.pt")["callbacks"]["best"] == callback.best


def test_fewer_to_keep_after_a_resume_lose_no_better_one(tmp_path: Path) -> None:
    three = ModelCheckpoint(tmp_path, "val_acc", save_top_k=3)
    stub_run([0.93, 0.92, 0.91], three)
    kept = names_in(tmp_path)
    two, one = ModelCheckpoint(tmp_path, "val_acc", save_top_k=2), ModelCheckpoint(tmp_path, "val_acc")
    for fewer, value in ((two, 0.915), (one, 0.5), (one, 0.925)):
        stub_run([value], fewer, first=3, resumed=three)
        assert names_in(tmp_path) == kept
        assert epoch_of(tmp_path / "best.pt") == 1
    stub_run([0.94], one, first=3, resumed=three)
    assert names_in(tmp_path) == {"best.pt", "last.pt"}
    assert epoch_of(tmp_path / "best.pt") == 4


def test_more_to_keep_after_a_resume_leave_best_in_its_place(tmp_path: Path) -> None:
    one, three = ModelCheckpoint(tmp_path, "val_acc"), ModelCheckpoint(tmp_path, "val_acc", save_top_k=3)
    stub_run([0.9], one)
    stub_run([0.5], three, first=1, resumed=one)
    assert epoch_of(tmp_path / "best.pt") == 1
    assert three.best == [(0.9, "best.pt"), (0.5, "epoch=001-val_acc=0.5000.pt")]
    stub_run([0.95, 0.96, 0.97, 0.94], three, first=1, resumed=one)
    assert epoch_of(tmp_path / "best.pt") == 4
    assert [value for value, _ in three.best] == [0.97, 0.96, 0.95]
    assert {"best.pt"} | {name for _, name in three.best} <= names_in(tmp_path)


def test_an_epoch_that_a_resume_completes_is_counted_once(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, "val_acc", save_top_k=2)
    stub_run([0.93401], callback)  # of a part of the epoch
    for value, epoch in ((0.93402, 0), (0.94, 1), (0.95, 2)):
        again = ModelCheckpoint(tmp_path, "val_acc", save_top_k=2)
        stub_run([value], again, first=epoch, resumed=callback)
        callback = again
        assert len({name for _, name in callback.best}) == len(callback.best)
        assert {name for _, name in callback.best} <= names_in(tmp_path)


def test_another_metric_after_a_resume_begins_a_list_of_its_own(tmp_path: Path) -> None:
    by_accuracy, by_loss = ModelCheckpoint(tmp_path, "val_acc"), ModelCheckpoint(tmp_path, "lr", "min")
    stub_run([0.9], by_accuracy)
    with pytest.warns(UserWarning, match=r"ModelCheckpoint begins anew: it was saved with .*'val_acc'.* has .*'min'"):
        stub_run([], by_loss, resumed=by_accuracy)
    assert by_loss.best == []
    by_loss.load_state_dict({"best": [(0.9, "best.pt")]})  # of an older version
    assert by_loss.best == [(0.9, "best.pt")]
    by_loss.load_state_dict(ModelCheckpoint(tmp_path).state_dict())  # nothing was watched: nothing to warn of
    assert by_loss.best == []


def test_without_a_metric_only_the_last_is_kept(tmp_path: Path) -> None:
    stub_run([0.5, 0.7], ModelCheckpoint(tmp_path))
    assert names_in(tmp_path) == {"last.pt"}


def test_a_metric_that_is_nan_at_first_is_no_best(tmp_path: Path) -> None:
    stub_run([math.nan, 0.1, 0.2, math.nan], ModelCheckpoint(tmp_path, "val_acc"))
    assert epoch_of(tmp_path / "best.pt") == 3


def test_every_n_steps_saves_in_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    save = ModelCheckpoint.save_last

    def watched(self: ModelCheckpoint, run: Any) -> None:
        steps.append(run.step)
        save(self, run)

    monkeypatch.setattr(ModelCheckpoint, "save_last", watched)
    train(tmp_path, epochs=3, every_n_steps=3)  # two updates an epoch
    assert steps == [2, 3, 4, 6, 6]


def test_an_unknown_metric_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor='val_accuracy' is not among the metrics of this run: .*val_acc, "):
        train(tmp_path, monitor="val_accuracy")


def test_a_failed_save_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "last.pt").mkdir()  # so that the rename fails
    with pytest.raises(OSError, match=r"last\.pt"), pytest.warns(UserWarning, match="of another run"):
        train(tmp_path)
    assert names_in(tmp_path) == {"last.pt"}


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    write_checkpoint(STATE, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt' is a file; give its folder, "):
        ModelCheckpoint(tmp_path / "best.pt")


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.999999999-0123abcd.tmp").write_bytes(b"half")
    mine = f".last.pt.{os.getpid()}-4567cdef.tmp"
    (tmp_path / mine).write_bytes(b"of a process that still writes it")
    (tmp_path / "mine.tmp").touch()
    train(tmp_path, epochs=1)
    assert names_in(tmp_path) == {"last.pt", "mine.tmp", mine}


def test_what_an_earlier_process_of_the_same_number_left_is_swept_up(tmp_path: Path) -> None:
    left = tmp_path / f".last.pt.{os.getpid()}-4567cdef.tmp"  # in a container the number is the same each time
    left.write_bytes(b"half")
    os.utime(left, (1e9, 1e9))  # in 2001
    train(tmp_path, epochs=1)
    assert names_in(tmp_path) == {"last.pt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maximum"}, "mode='maximum' is unknown; use 'min' for a loss or 'max' for an accuracy"),
        ({"save_top_k": 0}, "save_top_k=0 must be at least 1"),
        ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(tmp_path, **options)


def test_resume_finds_the_file_that_is_meant(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "run")
    assert find_checkpoint(None, [callback]) is None
    assert find_checkpoint("auto", [callback]) is None  # nothing to resume yet
    with pytest.raises(FileNotFoundError, match=r"resume='.*last\.pt': there is no checkpoint; 'auto' starts anew"):
        find_checkpoint(callback.last_path, [])
    write_checkpoint({}, callback.last_path)
    assert find_checkpoint("auto", [callback]) == callback.last_path
    assert find_checkpoint(tmp_path / "run", []) == callback.last_path
    assert find_checkpoint(str(callback.last_path), []) == callback.last_path
    with pytest.raises(ValueError, match="resume='auto' needs a ModelCheckpoint among the callbacks"):
        find_checkpoint("auto", [])


def test_auto_never_passes_over_what_is_there(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, "val_acc")
    (tmp_path / "weights.pt").touch()  # no checkpoint of the callback
    assert find_checkpoint("auto", [callback]) is None
    (tmp_path / "epoch=003-val_acc=0.9340.pt").touch()
    with pytest.warns(UserWarning, match=r"has no last\.pt; the run goes on from epoch=003-val_acc=0\.9340\.pt"):
        assert find_checkpoint("auto", [callback]) == tmp_path / "epoch=003-val_acc=0.9340.pt"
    callback.last_path.symlink_to(tmp_path / "unmounted" / "last.pt")
    with pytest.raises(FileNotFoundError, match=r"last\.pt': there is no checkpoint; the link leads nowhere"):
        find_checkpoint("auto", [callback])


@pytest.mark.filterwarnings("ignore:.*has no last.pt")
@pytest.mark.parametrize(("epochs_of_best", "chosen"), [(1, "epoch=1002"), (1003, "best"), (2000, "best")])
def test_without_last_the_epoch_decides_and_not_the_clock(epochs_of_best: int, chosen: str, tmp_path: Path) -> None:
    ahead = 4_000_000_000  # of a clock that was wrong when the first files were written; the best has the later name
    for time, epoch in ((ahead, 0), (ahead, 999), (5, 1002)):
        path = tmp_path / f"epoch={epoch:03d}-val_acc=0.5000.pt"
        path.touch()
        os.utime(path, (time, time))
    write_checkpoint({"run": {"epoch": epochs_of_best}}, tmp_path / "best.pt")
    found = find_checkpoint("auto", [ModelCheckpoint(tmp_path)])
    assert found is not None
    assert found.name.startswith(chosen)
    (tmp_path / "best.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"best\.pt is damaged"):  # it might be the newest, and nobody can tell
        find_checkpoint("auto", [ModelCheckpoint(tmp_path)])


def test_a_metric_that_is_nan_is_not_among_the_best(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="counts a metric that is NaN among the best"):
        ModelCheckpoint(tmp_path).load_state_dict({"best": [(math.nan, "best.pt")]})


def test_a_save_after_an_update_has_the_state_of_all_callbacks(tmp_path: Path) -> None:
    loader = Loader(ImageDataset(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ("a", "b")), 4)
    model, monitor = TinyNet(), LearningRateMonitor()
    callbacks = [ModelCheckpoint(tmp_path, every_n_steps=1), monitor]
    trainer = Trainer(max_steps=1, callbacks=callbacks, progress=False)
    trainer.fit(ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1)), loader)
    saved = {item["name"]: item["state"] for item in load_checkpoint(tmp_path / "last.pt")["callbacks"]}
    assert saved["LearningRateMonitor"] == monitor.state_dict()
    assert len(monitor.history) == 1


def test_saving_copies_nothing_that_shares_memory_with_training(tmp_path: Path) -> None:
    model = TinyNet()
    save_weights(model, tmp_path / "net.pt")
    before: dict[str, Tensor] = load_checkpoint(tmp_path / "net.pt")
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert torch.equal(before["0.weight"], load_checkpoint(tmp_path / "net.pt")["0.weight"])


def test_the_best_of_another_folder_are_chosen_anew(tmp_path: Path) -> None:
    def fit(folder: str, epochs: int, resume: Any = None, **options: Any) -> ModelCheckpoint:
        torch.manual_seed(0)
        pixels = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
        loader = Loader(ImageDataset(pixels, torch.arange(8) % 2, ("a", "b")), 4)
        model, saves = TinyNet(), ModelCheckpoint(tmp_path / folder, "val_loss", "max", **options)
        trainer = Trainer(max_epochs=epochs, callbacks=[saves], progress=False)
        task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
        trainer.fit(task, loader, loader, resume=resume)
        return saves

    fit("a", 2)
    with pytest.warns(UserWarning, match=r"b does not hold best\.pt, one of the best of the run that goes on"):
        saves = fit("b", 3, tmp_path / "a" / "last.pt")
    assert {"best.pt", "last.pt"} <= names_in(tmp_path / "b")
    assert [name for _, name in saves.best] == ["best.pt"]


def test_two_that_choose_the_best_need_two_folders(tmp_path: Path) -> None:
    model = TinyNet()
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    loader = Loader(ImageDataset(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ("a", "b")), 4)
    both = [
        ModelCheckpoint(tmp_path / "run", "val_acc"),
        ModelCheckpoint(tmp_path / "x" / ".." / "run", "val_loss", "min"),
    ]
    with pytest.raises(ValueError, match=r"ModelCheckpoints of val_acc and val_loss would both write best\.pt into"):
        Trainer(max_epochs=1, callbacks=both, progress=False).fit(task, loader, loader)


def test_auto_takes_the_checkpoint_that_has_trained_longer(tmp_path: Path) -> None:
    callbacks = [ModelCheckpoint(tmp_path / name) for name in "abc"]
    for name, step in (("a", 5), ("b", 9)):
        write_checkpoint({"run": {"step": step}}, tmp_path / name / "last.pt")
    assert find_checkpoint("auto", callbacks) == tmp_path / "b" / "last.pt"
    assert find_checkpoint("auto", callbacks[::2]) == tmp_path / "a" / "last.pt"
    (tmp_path / "b" / "last.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"another checkpoint is gone on from, if one is sound: .*last\.pt"):
        assert find_checkpoint("auto", callbacks) == tmp_path / "a" / "last.pt"


def fit_into(folder: Path, epochs: int, **options: Any) -> ModelCheckpoint:
    torch.manual_seed(0)
    model, save = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), ModelCheckpoint(folder, "val_acc")
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    batches = [(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 0, 1]))]
    Trainer(max_epochs=epochs, callbacks=[save], progress=False).fit(task, batches, batches, **options)
    return save


def test_a_run_from_elsewhere_takes_over_no_best_of_another(tmp_path: Path) -> None:
    fit_into(tmp_path / "a", 1)
    fit_into(tmp_path / "b", 1)
    with (
        pytest.warns(UserWarning, match=r"b holds a last\.pt, which the run that goes on from .* will replace"),
        pytest.warns(UserWarning, match=r"b does not hold best\.pt, one of the best of the run that goes on"),
    ):
        save = fit_into(tmp_path / "b", 2, resume=tmp_path / "a")
    assert load_checkpoint(save.best_path)["run"]["epoch"] == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("link", [False, True])
def test_a_run_from_a_backup_of_its_own_keeps_its_best(tmp_path: Path, link: bool) -> None:
    save = fit_into(tmp_path / "a", 1)
    backup = tmp_path / "backup.pt"
    backup.write_bytes(save.last_path.read_bytes())
    if link:
        save.last_path.unlink()
        save.last_path.symlink_to(backup)
        again = fit_into(tmp_path / "a", 1, resume="auto")
    else:
        with pytest.warns(UserWarning, match=r"a holds a last\.pt, which the run that goes on from .* will replace"):
            again = fit_into(tmp_path / "a", 1, resume=backup)
    assert again.best == save.best
