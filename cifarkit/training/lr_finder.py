"""Find a learning rate: an ordinary fit whose schedule is a ramp, undone afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cifarkit.checks import check_integer, check_number
from cifarkit.training.callbacks import Callback
from cifarkit.training.contract import check_task
from cifarkit.training.loading import undisturbed
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.snapshot import untouched
from cifarkit.training.task import Task, metric_name
from cifarkit.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cifarkit.training.run import Run


@dataclass(frozen=True)
class LearningRateSweep:
    """What :func:`lr_find` saw.

    Attributes:
        learning_rates: of the first parameter group at each update, geometric.
        losses: training loss of each update, before the update.
        suggestion: learning rate in the middle of the steepest descent in log learning rate; None if the loss has
            no clear descent.
        verdict: the suggestion, or why there is none, in a sentence.
    """

    learning_rates: list[float] = field(repr=False)
    losses: list[float] = field(repr=False)
    suggestion: float | None = field(init=False)
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        suggestion, verdict = suggest(self.learning_rates, self.losses)
        object.__setattr__(self, "suggestion", suggestion)
        object.__setattr__(self, "verdict", verdict)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the sweep with the suggestion marked, and save it as PNG if path is given."""
        from cifarkit.plots import lr_sweep

        return lr_sweep(self.learning_rates, self.losses, self.suggestion, path, smooth=smoothed(self.losses))


def lr_find(
    task: Task,
    loader: Iterable[Any],
    *,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    steps: int = 100,
    trainer: Trainer | None = None,
) -> LearningRateSweep:
    """Raise the learning rate geometrically from min_lr to max_lr, and see where the loss falls fastest.

    Model, optimizer, random states, loader position and train or eval mode are as before afterwards, also after an
    exception or Ctrl-C. Groups of an optimizer keep the ratio of their rates; the sweep is that of the first group.

    Args:
        task: a task with one optimizer.
        loader: training batches; it is started anew when it is shorter than the sweep.
        min_lr, max_lr: ends of the sweep, 0 < min_lr < max_lr.
        steps: optimizer updates, at least 10; the sweep ends early when the loss explodes.
        trainer: whose precision, accumulation, clipping and device to use.
    Raises:
        ValueError: if an argument is out of range or the task has several optimizers.
    Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3.
    """
    min_lr, max_lr = check_number("min_lr", min_lr), check_number("max_lr", max_lr)
    if not 0 < min_lr < max_lr:
        raise ValueError(f"min_lr={min_lr} and max_lr={max_lr} must satisfy 0 < min_lr < max_lr")
    steps = check_integer("steps", steps, 10)
    if len(check_task(task).optimizers) != 1:
        raise ValueError(f"lr_find sweeps one optimizer; this task has {sorted(task.optimizers)}")
    (optimizer,) = task.optimizers.values()
    base = float(optimizer.param_groups[0]["lr"])
    if base <= 0:
        raise ValueError(f"the first parameter group has lr={base}; give a positive one, the ratios refer to it")
    recorder = _Recorder(*task.optimizers)
    sweeper = copy.copy(trainer) if trainer is not None else Trainer(max_steps=steps)
    sweeper.max_epochs, sweeper.max_steps = None, steps
    sweeper.callbacks, sweeper.loggers, sweeper.progress = [recorder], [], False
    sweeper.log_every_n_steps, sweeper.compile = 1, False
    ladder = geometric_ladder(min_lr, max_lr, steps)
    sweeper.schedule = lambda progress: ladder[min(round(progress * steps), steps - 1)] / base
    # A loss that is not finite is no failure here: the sweep looks for the end of what the task can bear.
    with untouched(task), undisturbed(loader) as batches, suppress(NonFiniteLossError):
        sweeper.fit(task, batches)
    return LearningRateSweep(recorder.learning_rates, recorder.losses)


def geometric_ladder(low: float, high: float, steps: int) -> list[float]:
    """Return rates evenly spaced in log from low to high, both included."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def suggest(learning_rates: list[float], losses: list[float]) -> tuple[float | None, str]:
    """Find the middle of the steepest descent of the smoothed loss in log learning rate.

    The steepest point is widened to the stretch around it that falls at least three quarters as fast, and the
    geometric middle of that stretch is the suggestion. At half as fast the slow beginning of a descent would be taken
    in, and the suggestion be too low.

    Returns:
        the rate, or None when the loss does not fall clearly; and a sentence.
    """
    if len(losses) < 10:
        return None, f"no suggestion: the loss exploded after {len(losses)} updates; start from a lower min_lr"
    logs, smooth = np.log10(np.asarray(learning_rates)), smoothed(losses)
    lowest = int(np.argmin(smooth))
    drop = float(smooth[: lowest + 1].max() - smooth[lowest])
    # Of 50 flat and noisy curves about one falls by chance by more than six standard deviations of its smoothed noise.
    if lowest < 3 or drop <= 6 * _smoothed_noise(losses):
        return None, "no suggestion: the loss has no clear descent; widen the sweep, use more steps or bigger batches"
    slope = np.gradient(smooth, logs)[: lowest + 1]
    steepest = int(np.argmin(slope))
    left = right = steepest
    while left > 0 and slope[left - 1] <= 0.75 * slope[steepest]:
        left -= 1
    while right < lowest and slope[right + 1] <= 0.75 * slope[steepest]:
        right += 1
    rate = float(10 ** ((logs[left] + logs[right]) / 2))
    return rate, f"suggested learning rate {rate:.3g}, the middle of the steepest descent"


def smoothed(losses: list[float]) -> NDArray[np.float64]:
    """Average with Gaussian weights over neighbouring updates, so that no lag shifts the curve."""
    values = np.asarray(losses, dtype=np.float64)
    distance = np.arange(len(values))[:, None] - np.arange(len(values))
    weights = np.exp(-0.5 * (distance / _width(len(values))) ** 2)
    averaged: NDArray[np.float64] = weights @ values / weights.sum(1)
    return averaged


def _width(updates: int) -> float:
    """Return the standard deviation of the smoothing weights, in updates."""
    return max(updates / 40, 1.0)


def _smoothed_noise(losses: list[float]) -> float:
    """Estimate the standard deviation that the noise of the losses has left after :func:`smoothed`.

    The median of the steps from loss to loss tells the noise even if the curve falls steeply or explodes in places.
    """
    noise = float(np.median(np.abs(np.diff(losses)))) / 0.6745 / math.sqrt(2)  # 0.6745: quartile of the normal law
    return noise / math.sqrt(2 * math.sqrt(math.pi) * _width(len(losses)))


class _Recorder(Callback):
    """Record rate and loss of each update, and stop when the loss has risen far above its range so far."""

    def __init__(self, optimizer: str) -> None:
        self.loss_name = metric_name(optimizer, "loss", prefix="train_")
        self.learning_rates: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.learning_rates.append(run.metrics["lr"])
        self.losses.append(run.metrics[self.loss_name])
        recent = float(np.mean(self.losses[-3:]))
        best, first = min(self.losses), float(np.mean(self.losses[:3]))
        if len(self.losses) > 10 and recent > first + 2 * (first - best) + 0.1 * abs(first):
            run.stop("the loss explodes")
