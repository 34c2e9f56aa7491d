"""Checkpoints of runs that are not whole: an entry taken away or made something else is named, and nothing changes."""

import copy
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifarkit.data import ImageDataset, Loader
from cifarkit.training import (
    Callback,
    ClassificationTask,
    EarlyStopping,
    ExponentialMovingAverage,
    ModelCheckpoint,
    Run,
    StochasticWeightAveraging,
    Trainer,
)
from cifarkit.training.archive import load_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:fp16-mixed is meant for GPUs", "ignore:the resumed run may not be equal"
)
Path_ = tuple[Any, ...]


class StopInside(Callback):
    """Stop in the middle of a later epoch; fp16 skips some updates at first, so their number says little."""

    def on_step_end(self, run: Run) -> None:
        if run.epoch and run.batches == 2:
            run.stop("far enough")


def make_task() -> ClassificationTask:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 2))
    return ClassificationTask(model, torch.optim.AdamW(model.parameters(), 0.01))


def make_loader() -> Loader:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4), np.uint8)
    return Loader(ImageDataset(images, np.arange(12) % 2, ("a", "b")), 4, shuffle=True)


def fit(task: ClassificationTask, loader: Any, folder: Path, *more: Callback, resume: Any = None) -> Run:
    averages = [StochasticWeightAveraging(start=0.3, batchnorm_samples=0), ExponentialMovingAverage(0.9)]
    callbacks = [*averages, EarlyStopping("train_loss"), ModelCheckpoint(folder, "train_loss", "min"), *more]
    trainer = Trainer(max_epochs=4, precision="fp16-mixed", device="cpu", callbacks=callbacks, progress=False)
    return trainer.fit(task, loader, resume=resume)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was stopped inside an epoch."""
    place = tmp_path_factory.mktemp("run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(make_task(), make_loader(), place, StopInside())
    assert load_checkpoint(place / "last.pt")["run"]["batches"] == 2
    return place


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Yield the place of every entry of dicts and lists; tensors and tuples are one entry."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(state: Any, path: Path_, change: Any) -> Any:
    """Return a copy of the state, one entry of it gone or replaced."""
    result = copy.deepcopy(state)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    value = holder.pop(path[-1])
    if change != "gone":
        other = {"text": 7 if isinstance(value, str) else "text", "dict": [1] if isinstance(value, dict) else {}}[
            change
        ]
        holder.insert(path[-1], other) if isinstance(holder, list) else holder.update({path[-1]: other})
    return result


def may_be_anything(path: Path_) -> bool:
    """Tell whether nobody reads the entry: the config but for the parts that are compared."""
    compared = path[1:3] == ("optimizers", "model") and path[-1] in ("model", "class", "groups", "params", 0)
    read = path[1:] in (("environment",), ("optimizers",)) or (compared and "betas" not in path)
    return path[0] == "config" and len(path) > 1 and not read


def may_be_gone(path: Path_) -> bool:
    """Tell whether the entry may be absent in the checkpoint of another run."""
    whole = {2: ("callbacks",), 4: ("optimizers",)}.get(len(path)) == path[:1] and path[-2] in ("callbacks", "state")
    depth = {"metrics": 3, "meters": 4, "history": 4}.get(path[1] if path[0] == "run" and len(path) > 1 else "")
    needed = path[1:2] == ("history",) and path[-1] in ("epoch", "step", "lr", "images_per_second", "seconds")
    whole = whole or path == ("run", "history", 1)  # the row of the epoch that was stopped, which is made anew
    return may_be_anything(path) or whole or (len(path) == depth and not needed) or path[-2:-1] == ("best",)


def require_refusal(state: Any, path: Path_, folder: Path) -> None:
    """Resume, and find the entry or what holds it in the refusal, and the task and the loader as they were."""
    task, loader = make_task(), make_loader()
    before = copy.deepcopy([task.state_dict(), task.optimizers["model"].state_dict(), loader.state_dict()])
    write_checkpoint(state, folder / "changed.pt")
    with pytest.raises(ValueError, match=r"changed\.pt: ") as caught:
        fit(task, loader, folder / "again", resume=folder / "changed.pt")
    assert any(repr(key) in str(caught.value) for key in path), (path, str(caught.value))
    after = [task.state_dict(), task.optimizers["model"].state_dict(), loader.state_dict()]
    assert str(before[1:]) == str(after[1:])
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("change", ["gone", "text", "dict"])
def test_an_entry_that_is_gone_or_another_thing_is_named(change: str, folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt")
    free = may_be_gone if change == "gone" else may_be_anything
    hurt = [path for path in places(state) if not free(path) and path != ("format_version",)]
    hurt = [path for path in hurt if path[-1] != "grad_norm"]  # beside losses, callbacks may record text

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.sampled_from(hurt))
    def refuses(path: Path_) -> None:
        require_refusal(changed(state, path, change), path, folder)

    refuses()


def test_what_may_be_absent_is_no_hindrance(folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt")

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.sampled_from([path for path in places(state) if may_be_gone(path)]))
    def goes_on(path: Path_) -> None:
        write_checkpoint(changed(state, path, "gone"), folder / "changed.pt")
        assert fit(make_task(), make_loader(), folder / "again", resume=folder / "changed.pt").epoch == 4

    goes_on()


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_another_version_is_named(version: Any, folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt") | {"format_version": version}
    require_refusal(state, ("format_version",), folder)


def numpy_state(position: int) -> Any:
    return ("MT19937", torch.zeros(624, dtype=torch.int64), position, 0, 0.0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "step"), -1),
        (("run", "step"), 2.0),
        (("run", "step"), 10**6),  # more updates than images
        (("run", "images"), 10**30),
        (("run", "seconds"), math.nan),
        (("run", "batches"), 10**9),
        (("run", "epoch"), 2**62),
        (("run", "metrics", 7), 1.0),
        (("run", "history", 0, 7), 1.0),
        (("run", "meters", "epoch", 7), [1.0, 1]),
        (("run", "meters", "interval", "train_loss"), [1.0, 0]),
        (("loader", "epoch"), -1),
        (("loader", "epoch"), 10**40),
        (("loader", "samples"), -5),
        (("task", "model.0.weight"), torch.full((2, 3, 3, 3), math.nan)),
        (("task", "model.1.running_var"), torch.tensor([1.0, math.inf])),
        (("scalers", "model", "scale"), math.nan),
        (("scalers", "model", "scale"), 10**40),
        (("scalers", "model", "scale"), 1e40),
        (("scalers", "model", "growth_factor"), 10**40),
        (("scalers", "model", "growth_factor"), -2.0),
        (("scalers", "model", "_growth_tracker"), 2**62),
        (("run", "meters", "epoch", "train_loss"), [1.0]),
        (("run", "meters", "epoch", "train_loss"), [10**400, 1]),
        (("run", "history"), []),
        (("task", "model.0.weight"), torch.zeros(2, 3, 3, 3).to_sparse()),
        (("task", "model.0.weight"), torch.zeros(2, 3, 3, 3, dtype=torch.int64)),
        (("optimizers", "model", "param_groups", 0, "betas"), (0.9,)),
        (("optimizers", "model", "param_groups", 0, "params"), [0] * 8),
        (("optimizers", "model", "param_groups", 0, "betas"), (5.0, 5.0)),
        (("optimizers", "model", "param_groups", 0, "eps"), -1.0),
        (("optimizers", "model", "param_groups", 0, "lr"), math.nan),
        (("optimizers", "model", "param_groups", 0, "lr"), -1.0),
        (("optimizers", "model", "param_groups", 0, "base_rate"), math.inf),
        (("optimizers", "model", "param_groups", 0, "base_rate"), 10**40),
        (("optimizers", "model", "param_groups", 0, "base_rate"), 10**400),
        (("optimizers", "model", "param_groups", 0, "weight_decay"), 1e40),
        (("optimizers", "model", "param_groups", 0, "amsgrad"), True),
        (("optimizers", "model", "param_groups", 0, "capturable"), True),  # of a run on a GPU
        (("optimizers", "model", "state", 2, "exp_avg"), torch.zeros(3)),
        (("optimizers", "model", "state", 0, "exp_avg"), torch.zeros(1).expand(2, 3, 3, 3)),
        (("optimizers", "model", "state", 4, "exp_avg"), torch.zeros(15).as_strided((8, 8), (1, 1))),
        (("optimizers", "model", "state", 0, "exp_avg"), torch.full((2, 3, 3, 3), math.nan)),
        (("optimizers", "model", "state", 0, "exp_avg_sq"), torch.full((2, 3, 3, 3), -1.0)),
        (("optimizers", "model", "state", 0, "step"), torch.tensor(math.inf)),
        (("rng", "torch_cpu"), torch.zeros(3, dtype=torch.uint8)),
        (("rng", "numpy"), numpy_state(10**6)),  # which NumPy would believe, and read what lies behind its keys
        (("rng", "python"), (3, [0] * 625, "text")),
        (("generators",), [torch.get_rng_state()]),
        (("loader",), None),
        (("other_ranks",), [{}]),
    ],
)
def test_values_that_cannot_be_are_named(path: Path_, value: Any, folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt")
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    require_refusal(state, path, folder)


@pytest.mark.parametrize("entry", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    "change", [lambda x: x.sum(), lambda x: x.long(), lambda x: x[None], lambda x: x.flatten()[:1]], ids=range(4)
)
def test_moments_that_are_wrong_for_all_parameters_alike_are_named(entry: str, change: Any, folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt")
    for values in state["optimizers"]["model"]["state"].values():
        values[entry] = change(values[entry])
    require_refusal(state, (entry,), folder)


def test_an_average_that_is_not_finite_is_named(folder: Path) -> None:
    for index in (0, 1):
        state = load_checkpoint(folder / "last.pt")
        averaged = state["callbacks"][index]["state"]["averaged"]
        averaged["model.1.running_var"].fill_(math.inf)  # measured anew after each epoch, so no hindrance
        write_checkpoint(state, folder / "changed.pt")
        fit(make_task(), make_loader(), folder / "again", resume=folder / "changed.pt")
        averaged["model.0.weight"][0] = math.nan
        require_refusal(state, ("callbacks", index, "state", "averaged", "model.0.weight"), folder)


def test_more_used_batches_than_there_are_is_named_with_any_loader(tmp_path: Path) -> None:
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 2), 4)  # which keeps no position
    fit(make_task(), loader, tmp_path, StopInside())
    state = load_checkpoint(tmp_path / "last.pt")
    state["run"]["batches"] = 4
    write_checkpoint(state, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=r"\['batches'\] is 4, of 3 batches in an epoch"):
        fit(make_task(), loader, tmp_path / "again", resume=tmp_path / "changed.pt")


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {}),
    (torch.optim.Adam, {"amsgrad": True, "lr": torch.tensor(0.01)}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Rprop, {}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.filterwarnings("ignore:.*has no last.pt")
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda item: getattr(item, "__name__", ""))
def test_every_optimizer_of_pytorch_goes_on(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    def task() -> ClassificationTask:
        own = make_task()
        return ClassificationTask(own.model, kind(own.model.parameters(), **({"lr": 0.01} | options)))

    fit(task(), make_loader(), tmp_path, StopInside())
    assert fit(task(), make_loader(), tmp_path, resume=tmp_path).epoch == 4


def test_settings_that_an_older_pytorch_had_not_are_added(folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt")
    state["config"]["environment"]["torch"] = "2.6.0"
    del state["optimizers"]["model"]["param_groups"][0]["foreach"]
    write_checkpoint(state, folder / "old.pt")
    assert fit(make_task(), make_loader(), folder / "again", resume=folder / "old.pt").epoch == 4


def test_the_whole_checkpoint_goes_on(folder: Path) -> None:
    run = fit(make_task(), make_loader(), folder / "again", resume=folder / "last.pt")
    assert run.resumed
    assert (run.epoch, run.images) == (4, 48)


def test_a_callback_of_somebody_else_that_refuses_is_named(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": 3}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("sen")

    task, loader = make_task(), make_loader()
    fit(task, loader, tmp_path, Odd(), StopInside())
    before: dict[str, Tensor] = copy.deepcopy(make_task().state_dict())
    fresh = make_task()
    fresh.load_state_dict(before)
    with pytest.raises(ValueError, match=r"last\.pt: checkpoint\['callbacks'\]\[\d\]\['state'\] does not fit this Odd"):
        fit(fresh, make_loader(), tmp_path, Odd(), resume=tmp_path / "last.pt")
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
