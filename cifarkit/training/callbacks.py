"""Observers of a run. They may stop it; they never change the mathematics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cifarkit.training.schedules import Schedule

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class Callback:
    """Hooks that the Trainer calls, each with the run. Override what you need.

    Callbacks of lower ``order`` act first, equal ones in the order they were given: averaging (-10) adds its metrics
    before others read them, checkpoints (10) save after the others have updated their state.
    """

    order = 0

    def on_fit_start(self, run: Run) -> None:
        """Before the first update; a resumed run has its weights and counters, and this callback's state comes next."""

    def on_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch, or of what is left of it after a resume."""

    def on_step_end(self, run: Run) -> None:
        """After every optimizer update; ``run.step`` counts it already."""

    def on_epoch_end(self, run: Run) -> None:
        """After validation; ``run.history[-1]`` is the epoch's row and ``run.epoch`` counts it already."""

    def on_interrupt(self, run: Run) -> None:
        """On SIGTERM or Ctrl-C, between two updates, just before the process leaves."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch of a run that was not interrupted."""

    def bend_schedule(self, schedule: Schedule, run: Run) -> Schedule:
        """Return the schedule to follow; the same one unless the callback documents otherwise."""
        return schedule

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`."""


def check_mode(mode: str) -> str:
    """Return mode if it is "min" or "max".

    Raises:
        ValueError: if it is not.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r} is unknown; use 'min' for a loss or 'max' for an accuracy")
    return mode


def monitored_value(metrics: Mapping[str, float], monitor: str) -> float:
    """Look up a metric.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    if monitor not in metrics:
        raise ValueError(f"monitor={monitor!r} is not among the metrics of this run: {', '.join(sorted(metrics))}")
    return metrics[monitor]


class EarlyStopping(Callback):
    """Stop when a metric has not improved for some epochs.

    Args:
        monitor: name of an epoch metric, such as "val_loss".
        mode: "min" if lower is better, "max" if higher is.
        patience: stop after so many epochs in a row without improvement; 0 and 1 both stop at the first.
        min_delta: what counts as an improvement, in units of the metric.
    Raises:
        ValueError: for a misspelt mode, a patience below 0, and at the first epoch for an unknown metric.
    """

    def __init__(self, monitor: str, mode: str = "min", patience: int = 5, min_delta: float = 0.0) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience} must be at least 0 epochs")
        self.monitor, self.mode, self.patience, self.min_delta = monitor, check_mode(mode), patience, abs(min_delta)
        self.best, self.best_epoch = math.inf if mode == "min" else -math.inf, -1

    def on_fit_start(self, run: Run) -> None:
        self.best, self.best_epoch = math.inf if self.mode == "min" else -math.inf, run.epoch - 1

    def on_epoch_end(self, run: Run) -> None:
        value, epoch = monitored_value(run.metrics, self.monitor), run.epoch - 1
        if run.batches:
            return  # an epoch that ended in the middle: the run is over, and a resume completes it before it is judged
        gain = self.best - value if self.mode == "min" else value - self.best
        if math.isnan(value):
            run.stop(f"{self.monitor} is NaN in epoch {epoch}")
        elif gain > self.min_delta:
            self.best, self.best_epoch = value, epoch
        elif epoch - self.best_epoch >= max(self.patience, 1):
            run.stop(
                f"{self.monitor} has not improved on {self.best:.4g} (epoch {self.best_epoch}) "
                f"for {epoch - self.best_epoch} epochs"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class TimeLimit(Callback):
    """Stop after some seconds of training, counted over all resumes; the epoch's validation still runs.

    Raises:
        ValueError: if seconds is not positive.
    """

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds={seconds} must be positive")
        self.seconds, self._spent, self._started = float(seconds), 0.0, time.monotonic()

    def on_fit_start(self, run: Run) -> None:
        self._spent, self._started = 0.0, time.monotonic()

    def on_step_end(self, run: Run) -> None:
        if self.spent() >= self.seconds:
            run.stop(f"the time limit of {self.seconds:g} seconds is used up")

    def spent(self) -> float:
        """Return the seconds trained so far."""
        return self._spent + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spent, self._started = state["spent"], time.monotonic()


class LearningRateMonitor(Callback):
    """Keep the learning rate of every parameter group at every update, and log them when there are several.

    Attributes:
        history: name of the group ("lr" or "lr_<optimizer>_<group>") to its rates, one an update.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def on_fit_start(self, run: Run) -> None:
        self.history = {}

    def on_step_end(self, run: Run) -> None:
        rates = run.learning_rates()
        for name, rate in rates.items():
            self.history.setdefault(name, []).append(rate)
        if len(rates) > 1:
            run.log_later(rates)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
