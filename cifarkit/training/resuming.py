"""What the checkpoint of a run holds, and how a run takes it up: all of it, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cifarkit.seeding import RngState, seed_everything
from cifarkit.training.callbacks import Callback
from cifarkit.training.compatibility import require_same_task
from cifarkit.training.config import describe_optimizers, log_other_settings, warn_of_differences
from cifarkit.training.distributed import average_statistics, gather, rank, world_size
from cifarkit.training.kinds import require_like
from cifarkit.training.loading import generator_states, set_generator_states
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.schedules import remember_new_rates
from cifarkit.training.snapshot import copied_state
from cifarkit.training.structure import FORMAT_VERSION, STATISTICS, require_fitting, require_whole

if TYPE_CHECKING:
    from cifarkit.training.run import Run

_log = logging.getLogger(__name__)
_WATCHED = {"monitor", "mode"}  # entries of callbacks that older checkpoints have not
_COUNTERS = ("step", "epoch", "batches", "images", "history", "metrics", "seconds")
_OPTIONAL = ("recorded", "unlogged")  # tables, for the row and for the log line to come


def state_of(run: Run) -> dict[str, Any]:
    """Return everything a resumed run needs, in tensors and plain types; all processes must ask at once.

    Raises:
        NonFiniteLossError: if a loss since the last log step or a weight is not finite: no bad state is saved.
    """
    run.read_losses()
    average_statistics(run.task)
    _require_finite_weights(run)
    for optimizer in run.task.optimizers.values():
        remember_new_rates(optimizer)
    own, *others = gather(run.position.state_dict(run.batches))
    counters = {name: getattr(run, name) for name in _COUNTERS}
    counters |= {name: getattr(run, name) for name in _OPTIONAL if getattr(run, name)}
    return {
        "format_version": FORMAT_VERSION,
        "run": counters | {"meters": run.meters.state_dict()},
        "task": run.task.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.task.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in run.scalers.items()},
        "callbacks": [{"name": type(item).__name__, "state": item.state_dict()} for item in run.callbacks],
        "config": run.config | {"optimizers": describe_optimizers(run.task)},  # a callback may have added a group
        **own,
        "other_ranks": others,
    }


def unbounded_buffers(task: nn.Module) -> frozenset[str]:
    """Name the buffers that are not finite before training, as a mask of -inf, and may stay so; BatchNorm's may not."""
    named = task.named_buffers(remove_duplicate=False)
    floats = [(name, item) for name, item in named if item.is_floating_point() and not name.endswith(STATISTICS)]
    return frozenset(name for name, item in floats if not bool(item.isfinite().all()))


def _require_finite_weights(run: Run) -> None:
    state = [tensor for name, tensor in run.task.state_dict().items() if name not in run.unbounded]
    floating = [tensor for tensor in state if tensor.is_floating_point() and tensor.numel()]
    # The extremes of a tensor are finite if all of it is; unlike isfinite() they need no memory of its size.
    finite = [extreme.isfinite() for tensor in floating for extreme in tensor.aminmax()]
    if finite and not torch.stack(finite).all():
        raise NonFiniteLossError(f"a weight is not finite after step {run.step - 1}", max(run.step - 1, 0))


def take_up(run: Run, state: dict[str, Any]) -> None:
    """Take up everything but the random states and the callbacks, which come last.

    Raises:
        ValueError: if the state is not whole or belongs to another task; then nothing has changed.
    """
    if "format_version" in state:  # else the next line says what it is
        require_whole(state, run)
    require_same_task(run.task, state)
    require_fitting(state, run)
    state = state | _part_of_this_rank(state)
    run.position.load_state_dict(state)  # first, as it may refuse
    run.task.load_state_dict(state["task"])
    given = run.config["optimizers"]
    for name, optimizer in run.task.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    run.config["optimizers"] = describe_optimizers(run.task)
    for name, scaler in run.scalers.items():
        if state["scalers"].get(name):  # empty when it was saved in another precision
            scaler.load_state_dict(state["scalers"][name])
    counters = dict(state["run"])
    run.meters.load_state_dict(counters.pop("meters"))
    run.go_on_counting(counters.pop("seconds"))
    run.recorded, run.unlogged = (counters.get(name, {}) for name in _OPTIONAL)
    for name in counters.keys() & {*_COUNTERS}:
        setattr(run, name, counters[name])
    run.logged_step = run.step
    if state["loader"] is not None and hasattr(run.train_loader, "load_state_dict"):
        run.batches = getattr(run.train_loader, "position", run.batches)  # in batches of the present size
    warn_of_differences(state["config"]["environment"])
    if rank() == 0:
        log_other_settings(state["config"], run.config, given)
    run.resumed = True


def restore_random_states(state: dict[str, Any] | None) -> None:
    """Restore the random states of this rank; one that was not there yet gets states of its own."""
    own = None if state is None else _part_of_this_rank(state)
    if state is not None:
        separate_random_states()  # of devices, too, that the saved process did not have
        RngState.from_state_dict((own or state)["rng"]).restore()
    if not own:
        separate_random_states()


def separate_random_states() -> None:
    """Give this rank random states of its own, as all come with those of the same seed; rank 0 keeps its own."""
    if world_size() > 1 and rank():
        seed_everything((int(torch.randint(2**32, ()).item()) + rank()) % 2**32)


def restore_callbacks(run: Run, states: list[dict[str, Any]]) -> None:
    """Give each callback the state saved by the first unused one of its kind; log what nobody takes.

    Raises:
        ValueError: if a callback does not take its state.
    """
    unused = list(enumerate(states))
    matches: list[tuple[Callback, dict[str, Any], str]] = []
    for callback in run.callbacks:
        match = next((item for item in unused if item[1]["name"] == type(callback).__name__), None)
        if match is not None:
            unused.remove(match)
            where = f"checkpoint['callbacks'][{match[0]}]['state']"
            if type(callback).__module__.startswith("cifarkit."):  # those of others may have entries that come and go
                absent = _WATCHED if not _WATCHED & match[1]["state"].keys() else set()
                own = {name: value for name, value in callback.state_dict().items() if name not in absent}
                require_like(match[1]["state"], own, where)
            matches.append((callback, match[1]["state"], where))
    dropped = [saved["name"] for _, saved in unused if saved["state"]]
    if dropped and rank() == 0:
        _log.warning(
            "the checkpoint holds the states of callbacks that this run has not: %s", ", ".join(map(repr, dropped))
        )
    for callback, state, where in matches:
        try:
            callback.load_state_dict(state)
        except Exception as error:
            reason = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{where} does not fit this {type(callback).__name__}: {reason}") from error
    run.notify("on_resume")


@contextmanager
def unchanged_by_a_failure(run: Run) -> Iterator[None]:
    """Put task, optimizers and loader back as they were if the block raises."""
    task, loader = run.task, run.train_loader
    weights = copied_state(task)
    optimizers = {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()}
    position, generators = getattr(loader, "state_dict", lambda: None)(), generator_states(loader)
    try:
        yield
    except BaseException:
        task.load_state_dict(weights)
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        if position is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(position)
        set_generator_states(loader, generators)
        raise


@contextmanager
def naming(checkpoint: Path | None) -> Iterator[None]:
    """Put the name of the file before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def _part_of_this_rank(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds for this rank alone; nothing if it was saved by fewer processes."""
    first = {name: state[name] for name in ("rng", "loader", "generators", "rng_at_epoch_start")}
    parts: list[dict[str, Any]] = [first, *state["other_ranks"]]
    return parts[rank()] if rank() < len(parts) else {}
