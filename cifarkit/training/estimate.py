"""How long a fit will take, from a few of its updates."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import torch

from cifarkit.checks import check_integer
from cifarkit.training.accumulation import AccumulationPlan
from cifarkit.training.callbacks import Callback
from cifarkit.training.contract import check_task
from cifarkit.training.distributed import gather, process_group
from cifarkit.training.loading import iterating, require_batches, undisturbed
from cifarkit.training.snapshot import untouched
from cifarkit.training.task import Task
from cifarkit.training.trainer import Trainer

if TYPE_CHECKING:
    from cifarkit.training.run import Run

_WARM_UP = 3  # updates that are not timed: the first ones build kernels and fetch memory


@process_group()
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
    left = trainer.accumulation.total_updates(len(loader), trainer.max_epochs, trainer.max_steps)  # type: ignore[arg-type]
    epochs, total = timed_epochs(trainer, task, loader, steps), 0.0
    while left > 0:
        updates, seconds = next(epochs)
        total += min(updates, left) * seconds
        left -= updates
    return total


def timed_epochs(trainer: Trainer, task: Task, loader: Iterable[Any], steps: int) -> Iterator[tuple[int, float]]:
    """Yield of epoch after epoch, without end, the updates and the seconds of each; of several processes rank 0's."""
    timed: dict[tuple[Any, ...], float] = {}
    shape: tuple[int, ...] = ()
    for epoch in count():
        batches, factor = _SameEpoch(loader, epoch), trainer.accumulation.factor(epoch)
        if not shape or hasattr(loader, "epoch"):  # of another loader one epoch is as large as the next
            shape = _shape_of_first(batches)
        kind = (factor, *shape)
        if kind not in timed:
            with untouched(check_task(task)), undisturbed(loader):
                timed[kind] = gather(_seconds_an_update(trainer, task, batches, factor, steps))[0]
        yield trainer.accumulation.updates(len(batches), epoch), timed[kind]


class _SameEpoch:
    """The batches of one epoch, however often they are asked for; the loader stays where it is."""

    def __init__(self, loader: Iterable[Any], epoch: int) -> None:
        self.loader, self.epoch = loader, epoch

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        with undisturbed(self.loader) as batches, _at_epoch(batches, self.epoch):
            yield from batches


@contextmanager
def _at_epoch(loader: Any, epoch: int) -> Iterator[None]:
    """Put a loader that counts epochs into another for a while: its transform may depend on that."""
    own = getattr(loader, "epoch", None)
    if own is None:
        yield
        return
    loader.epoch = epoch
    try:
        yield
    finally:
        loader.epoch = own  # of one that makes no copies of itself


def _shape_of_first(loader: Iterable[Any]) -> tuple[int, ...]:
    with iterating(loader) as batches:
        return tuple(next(batches)[0].shape)


def _seconds_an_update(trainer: Trainer, task: Task, loader: Any, factor: int, steps: int) -> float:
    clock = _Clock()
    trial = copy.copy(trainer)
    trial.accumulation = AccumulationPlan(factor)
    trial.max_epochs, trial.max_steps = None, _WARM_UP + steps
    trial.callbacks, trial.loggers, trial.progress = [clock], [], False
    trial.schedule = lambda progress: 0.0  # which takes as long, and does not diverge
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
