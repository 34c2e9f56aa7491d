"""How many updates a run is to do, settled once, when it begins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cifarkit.checks import check_integer, check_number
from cifarkit.files import read_file, shown, write_atomically
from cifarkit.training.distributed import from_first_rank, process_group, rank
from cifarkit.training.estimate import timed_epochs
from cifarkit.training.loading import require_batches
from cifarkit.training.task import Task
from cifarkit.training.trainer import Trainer

_LARGEST = 10_000  # bytes


@process_group()
def plan_updates(
    path: str | Path,
    task: Task,
    loader: Iterable[Any],
    settings: Mapping[str, Any],
    *,
    epochs: int,
    minutes: float | None = None,
    share: float = 0.9,
    timed: int = 20,
) -> int:
    """Return the updates of a run, and keep them beside it, so that a run that goes on comes to the same end.

    Its learning rate and the length of its average depend on that end. Once a checkpoint lies beside the plan, what is
    asked for later and differs is not heeded, and a line says so; a run that was killed before its first is planned
    anew.

    Args:
        path: of the JSON file, ``{"updates": 1000}``, in the folder of the run's checkpoints, ``*.pt``.
        task, loader: of the run; both are as before afterwards.
        settings: arguments of its Trainer but for the end.
        epochs: its length, unless minutes are given: then it is as many updates as fit into them.
        share: of the minutes that is for updates; the rest is for averages, validation, grids and saves.
        timed: updates to time for that, of each size of image and each accumulation.
    Raises:
        ValueError: if a number is out of range, the loader is empty, or the file is damaged.
        TypeError: if the loader has no length, or the settings are none of a Trainer.
    """
    path, epochs, timed = Path(path), check_integer("epochs", epochs, 1), check_integer("timed", timed, 1)
    require_batches("loader", loader)
    minutes = None if minutes is None else check_number("minutes", minutes, 0, above=True)
    share = check_number("share", share, 0, 1, above=True)
    begun = from_first_rank(lambda: any(path.parent.glob("*.pt")))
    updates = from_first_rank(lambda: _read(path) if begun and path.exists() else None)
    if not begun and path.exists() and rank() == 0:
        print(f"{path} is made anew, as no checkpoint, *.pt, lies beside it", flush=True)
    trial = Trainer(**{**settings, "max_steps": 1, "progress": False})
    by_epochs = trial.accumulation.total_updates(len(loader), epochs, None)  # type: ignore[arg-type]
    if updates is not None:
        if rank() == 0 and (minutes or updates != by_epochs):
            print(f"{path} plans {updates:,} updates, which hold; epochs and minutes do not change them", flush=True)
        return updates
    updates = by_epochs if minutes is None else _fitting(trial, task, loader, share * minutes, timed)
    from_first_rank(lambda: write_atomically(json.dumps({"updates": updates}).encode(), path))
    return updates


def _fitting(trial: Trainer, task: Task, loader: Iterable[Any], minutes: float, timed: int) -> int:
    """Return as many updates as fit, epoch by epoch, after timing some of each kind."""
    left, updates, epochs = 60 * minutes, 0, 0.0
    for whole, seconds in timed_epochs(trial, task, loader, timed):
        fitting = min(whole, int(left / seconds))
        left, updates, epochs = left - fitting * seconds, updates + fitting, epochs + fitting / whole
        if fitting < whole:
            break
    updates = max(updates, 1)
    if rank() == 0:
        mean = (60 * minutes - left) / updates or seconds
        print(f"{mean:.3f} s an update: {updates:,} updates, {epochs:.1f} epochs, are planned", flush=True)
    return updates


def _read(path: Path) -> int:
    try:
        return check_integer("updates", json.loads(read_file(path, _LARGEST))["updates"], 1)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{shown(path)} holds no plan of a run ({error!r}); remove it to plan anew") from error
