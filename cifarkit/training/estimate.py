"""How long a fit will take, from a few of its updates."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from cifarkit.checks import check_integer
from cifarkit.training.accumulation import AccumulationPlan
from cifarkit.training.callbacks import Callback
from cifarkit.training.loading import iterating, require_batches, undisturbed
from cifarkit.training.snapshot import untouched
from cifarkit.training.task import Task, check_task
from cifarkit.training.trainer import Trainer

if TYPE_CHECKING:
    from cifarkit.training.run import Run

_WARM_UP = 3  # updates that are not timed: the first ones build kernels and fetch memory


def estimate_seconds(trainer: Trainer, task: Task, loader: Iterable[Any], *, steps: int = 20) -> float:
    """Time some updates and say how long ``trainer.fit(task, loader)`` will take.

    Validation, callbacks and compiling are not counted. Epochs of images of another size, as
    :class:`cifarkit.transforms.ByEpoch` makes them, are timed apart; what else changes as training goes on, such as
    ``SelectiveTask(start=...)``, is not seen. Task, loader and random states are as before afterwards.

    Args:
        steps: updates to time for each size of image, at least 1.
    Returns:
        seconds of the whole fit, from its first epoch.
    Raises:
        ValueError: if steps is below 1, or the loader is empty.
        TypeError: if the loader has no length.
    """
    steps = check_integer("steps", steps, 1)
    require_batches("loader", loader)
    updates = _updates_by_epoch(trainer, len(loader))  # type: ignore[arg-type]
    timed: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for epoch, count in enumerate(updates):
        batches, factor = _SameEpoch(loader, epoch), trainer.accumulation.factor(epoch)
        kind = (factor, *_shape_of_first(batches))
        if kind not in timed:
            with untouched(check_task(task)), undisturbed(loader):
                timed[kind] = _seconds_an_update(trainer, task, batches, factor, steps)
        total += count * timed[kind]
    return total


class _SameEpoch:
    """The batches of one epoch, however often they are asked for; the loader stays where it is."""

    def __init__(self, loader: Iterable[Any], epoch: int) -> None:
        self.loader, self.epoch = loader, epoch

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        with undisturbed(self.loader) as batches:
            if hasattr(batches, "epoch"):  # a Loader, whose transform may depend on the epoch
                batches.epoch = self.epoch
            yield from batches


def _updates_by_epoch(trainer: Trainer, batches: int) -> list[int]:
    left = trainer.accumulation.total_updates(batches, trainer.max_epochs, trainer.max_steps)
    updates: list[int] = []
    while left > 0:
        updates.append(min(left, trainer.accumulation.updates(batches, len(updates))))
        left -= updates[-1]
    return updates


def _shape_of_first(loader: Iterable[Any]) -> tuple[int, ...]:
    with iterating(loader) as batches:
        return tuple(next(batches)[0].shape)


def _seconds_an_update(trainer: Trainer, task: Task, loader: Any, factor: int, steps: int) -> float:
    clock = _Clock()
    trial = copy.copy(trainer)
    trial.accumulation = AccumulationPlan(factor)
    trial.max_epochs, trial.max_steps = None, _WARM_UP + steps
    trial.callbacks, trial.loggers, trial.progress = [clock], [], False
    trial.fit(task, loader)
    return clock.median()


class _Clock(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, run: Run) -> None:
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        self.times.append(time.perf_counter())

    def median(self) -> float:
        """Return the seconds of a typical update; a mean would count what other programs did meanwhile."""
        waits = [after - before for before, after in pairwise(self.times)]
        return statistics.median(waits[_WARM_UP - 1 :])
