"""Is a state that of a whole run? Every entry is looked at before the run takes up any of them.

Each is held to its kind, and to values that a run can have saved: nothing but finite weights, rates that its optimizer
takes, as many batches as there are. Three things cannot be told and are left out: which metrics there were, for which
parameters an optimizer has not yet seen a gradient, and the parts of the config that only people read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarkit.training.kinds import (
    AMOUNT,
    COUNT,
    FLAG,
    LIST,
    NOTHING,
    NUMBER,
    POSITIVE,
    SUM,
    TABLE,
    TENSOR,
    TEXT,
    Kind,
    describe,
    entry,
    require,
    require_finite,
    require_like,
    tensor_of,
)
from cifarkit.training.loading import generator_states
from cifarkit.training.moments import require_optimizer_state

if TYPE_CHECKING:
    from cifarkit.training.run import Run

FORMAT_VERSION = 1
_ROW = ("epoch", "step", "lr", "images_per_second", "seconds")  # what every row of a history has
RECORDED = NUMBER | FLAG | NOTHING | TEXT | TENSOR
STATISTICS = ("running_mean", "running_var")
_SINGLE = torch.finfo(torch.float32)
_SCALE = Kind(
    "a float above 0 that fits into fp32",
    lambda value: type(value) is float and _SINGLE.tiny <= value <= _SINGLE.max,
)
_SCALER = {
    "scale": _SCALE,
    "growth_factor": Kind("a finite float above 1", lambda value: type(value) is float and 1 < value < math.inf),
    "backoff_factor": Kind("a number between 0 and 1", lambda value: POSITIVE.fits(value) and value < 1),
    "growth_interval": COUNT,
    # PyTorch keeps it as an int32.
    "_growth_tracker": Kind("an integer from 0 to 2**31 - 1", lambda value: COUNT.fits(value) and value < 2**31),
}


def require_whole(state: Mapping[str, Any], run: Run) -> None:
    """Raise ValueError for the first entry that every checkpoint has and this one has not, or of another kind."""
    version = state["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint['format_version'] is {describe(version)}, and this cifarkit reads {FORMAT_VERSION}; resume "
            "with the version that wrote it, or take single networks out of it with load_weights"
        )
    _require_counters(entry(state, "run", TABLE, "checkpoint"))
    own = run.task.state_dict()
    for key, value in entry(state, "task", TABLE, "checkpoint").items():
        if isinstance(own.get(key), Tensor):
            require(value, tensor_of(own[key].dtype), f"checkpoint['task'][{key!r}]")
        else:
            require(value, TENSOR, f"checkpoint['task'][{key!r}]")
    require_finite(state["task"], "checkpoint['task']", but_for=run.unbounded)
    for index, item in enumerate(entry(state, "callbacks", LIST, "checkpoint")):
        where = f"checkpoint['callbacks'][{index}]"
        require(item, TABLE, where)
        entry(item, "name", TEXT, where)
        own_state = entry(item, "state", TABLE, where)
        if TABLE.fits(own_state.get("averaged")):
            averaged = own_state["averaged"].items()  # whose statistics of BatchNorm are measured anew
            lasting = {name: tensor for name, tensor in averaged if not str(name).endswith(STATISTICS)}
            require_finite(lasting, f"{where}['state']['averaged']", but_for=run.unbounded)
    _require_config(entry(state, "config", TABLE, "checkpoint"))


def require_fitting(state: Mapping[str, Any], run: Run) -> None:
    """Raise ValueError if optimizers, scalers, positions or random states cannot be taken up by this run."""
    same_torch = state["config"]["environment"].get("torch") == str(torch.__version__)
    tables = {name: entry(state, name, TABLE, "checkpoint") for name in ("optimizers", "scalers")}
    for name, optimizer in run.task.optimizers.items():
        where = f"checkpoint['optimizers'][{name!r}]"
        saved = entry(tables["optimizers"], name, TABLE, "checkpoint['optimizers']")
        require_optimizer_state(saved, optimizer, where, same_torch=same_torch)
        scaler = entry(tables["scalers"], name, TABLE, "checkpoint['scalers']")
        for key, kind in _SCALER.items() if scaler else ():
            entry(scaler, key, kind, f"checkpoint['scalers'][{name!r}]")
    inside = state["run"]["batches"] > 0
    _require_position(state, run, "checkpoint", inside)
    _require_used(state, run)
    for index, part in enumerate(entry(state, "other_ranks", LIST, "checkpoint")):
        require(part, TABLE, f"checkpoint['other_ranks'][{index}]")
        _require_position(part, run, f"checkpoint['other_ranks'][{index}]", inside)


def _require_counters(counters: Mapping[str, Any]) -> None:
    where = "checkpoint['run']"
    for name in ("step", "epoch", "batches", "images"):
        entry(counters, name, COUNT, where)
    entry(counters, "seconds", AMOUNT, where)
    if counters["step"] > counters["images"]:
        raise ValueError(f"{where}['step'] is {counters['step']}, of {counters['images']} images")
    tables = {f"{where}['metrics']": (entry(counters, "metrics", TABLE, where), NUMBER)}
    for name in {"recorded", "unlogged"} & counters.keys():  # for the row and for the log line to come
        tables[f"{where}[{name!r}]"] = entry(counters, name, TABLE, where), NUMBER
    meters = entry(counters, "meters", TABLE, where)
    for name in ("interval", "epoch"):
        tables[f"{where}['meters'][{name!r}]"] = entry(meters, name, TABLE, f"{where}['meters']"), SUM
    rows = entry(counters, "history", LIST, where)
    for index, row in enumerate(rows):
        require(row, TABLE, f"{where}['history'][{index}]")
        for name in _ROW:
            entry(row, name, NUMBER, f"{where}['history'][{index}]")
        tables[f"{where}['history'][{index}]"] = row, NUMBER
    for place, (table, kind) in tables.items():
        for name, value in table.items():
            require(name, TEXT, f"a key of {place}")
            own = kind is SUM or name in _ROW or name.startswith(("train_", "val_"))
            require(value, kind if own else RECORDED, f"{place}[{name!r}]")  # callbacks record what they like
    done = [row["epoch"] for row in rows if row["epoch"] < counters["epoch"]]
    if len(done) != counters["epoch"] or done != [*range(len(done))]:  # in this order: an epoch may be any number
        raise ValueError(f"{where}['history'] has rows of the epochs {done} where {counters['epoch']} are done")


def _require_config(config: Mapping[str, Any]) -> None:
    entry(config, "environment", TABLE, "checkpoint['config']")
    for name, optimizer in entry(config, "optimizers", TABLE, "checkpoint['config']").items():
        where = f"checkpoint['config']['optimizers'][{name!r}]"
        require(optimizer, TABLE, where)
        entry(optimizer, "class", TEXT, where)
        for index, group in enumerate(entry(optimizer, "groups", LIST, where)):
            require(group, TABLE, f"{where}['groups'][{index}]")
            entry(group, "params", COUNT, f"{where}['groups'][{index}]")


def _require_position(part: Mapping[str, Any], run: Run, where: str, inside: bool) -> None:
    """Check what one process has for itself; ``inside`` tells whether it stood inside an epoch."""
    loader, name = run.train_loader, type(run.train_loader).__name__
    saved = entry(part, "loader", TABLE | NOTHING, where)
    if hasattr(loader, "position") and hasattr(loader, "state_dict"):  # one that counts, as cifarkit's own do
        if saved is not None:
            own_position = loader.state_dict()
            require_like(saved, own_position, f"{where}['loader']")
            for key in {"epoch", "samples"} & own_position.keys():
                entry(saved, key, COUNT, f"{where}['loader']")
        elif inside:
            raise ValueError(f"{where}['loader'] is None, of a loader that keeps no position; this {name} needs one")
    states, own = entry(part, "generators", LIST, where), generator_states(loader)
    if len(states) != len(own):
        raise ValueError(f"{where}['generators'] has {len(states)} states; this {name} has {len(own)} generators")
    for index, state in enumerate(states):
        setter = torch.Generator().set_state if own[index].shape == torch.get_rng_state().shape else _set_cuda
        _attempt(setter, state, f"{where}['generators'][{index}]")
    _require_random_states(entry(part, "rng", TABLE, where), f"{where}['rng']")
    at_start = entry(part, "rng_at_epoch_start", TABLE | NOTHING, where)
    if at_start is not None:
        _require_random_states(at_start, f"{where}['rng_at_epoch_start']")


def _require_used(state: Mapping[str, Any], run: Run) -> None:
    """Refuse more used batches than an epoch can have; their size may have been another, but not below one sample."""
    batches, saved = state["run"]["batches"], state["loader"]
    samples = saved.get("samples") if saved is not None else None
    if batches and saved is None:
        described = state["config"].get("loader")
        before = described.get("batches") if isinstance(described, Mapping) else None
        if before is not None and before != run.batches_in_epoch:
            raise ValueError(
                f"the checkpoint was made within an epoch of {before!r} batches, and train_loader has "
                f"{run.batches_in_epoch}: only loaders with a state_dict know where they were; give one of as many "
                "batches as then, or start anew from the weights by cifarkit.load_weights"
            )
    most, of = (samples, "used samples") if type(samples) is int else (run.batches_in_epoch, "batches in an epoch")
    if batches > most:
        raise ValueError(f"checkpoint['run']['batches'] is {batches}, of {most} {of}")


def _require_random_states(states: Mapping[str, Any], where: str) -> None:
    """Set generators of no further use to the states."""
    setters: dict[str, Callable[[Any], Any]] = {"python": _set_python, "numpy": _set_numpy}
    setters |= {"torch_cpu": torch.Generator().set_state, "torch_cuda": _set_all_cuda}
    for name, setter in setters.items():
        if name not in states:
            raise ValueError(f"{where}[{name!r}] is missing")
        _attempt(setter, states[name], f"{where}[{name!r}]")


def _attempt(setter: Callable[[Any], Any], state: Any, where: str) -> None:
    try:
        setter(state)
    except Exception as error:  # generators raise many kinds for a state that is none
        raise ValueError(f"{where} is no random state: {error}") from error


def _set_python(state: Any) -> None:
    version, internal, gauss = state
    require(gauss, NUMBER | NOTHING, "its last number")
    random.Random().setstate((version, tuple(internal), gauss))


def _set_numpy(state: Any) -> None:
    name, keys, position, has_gauss, gauss = state
    require(keys, tensor_of(torch.int64), "its keys")
    # NumPy believes a position and would read behind the end of its keys.
    if name != "MT19937" or keys.shape != (624,) or not (COUNT.fits(position) and position <= 624):
        raise ValueError(f"{name!r}, {tuple(keys.shape)} keys, position {position!r}")
    require(has_gauss, COUNT, "its flag")
    require(gauss, NUMBER, "its last number")


def _set_all_cuda(states: Any) -> None:
    require(states, LIST, "what there is of CUDA")
    for state in states:
        _set_cuda(state)


def _set_cuda(state: Any) -> None:
    require(state, tensor_of(torch.uint8), "a state of CUDA")
