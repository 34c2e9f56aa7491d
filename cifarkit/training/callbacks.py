"""Observers of a run. They may stop it; they never change the mathematics."""

from __future__ import annotations

import math
import re
import time
import warnings
from typing import TYPE_CHECKING, Any

from cifarkit.checks import check_integer, check_number
from cifarkit.training.compatibility import is_of_this_metric
from cifarkit.training.schedules import Schedule

if TYPE_CHECKING:
    from cifarkit.training.meters import NonFiniteLossError
    from cifarkit.training.run import Run


class Callback:
    """Hooks that the Trainer calls, each with the run. Override what you need.

    Callbacks of lower ``order`` act first, equal ones in the order they were given: averaging (-10) adds its metrics
    before others read them.
    """

    order = 0

    def on_fit_start(self, run: Run) -> None:
        """Before the first update; a resumed run has its weights and counters, and this callback's state comes next."""

    def on_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch, or of what is left of it after a resume."""

    def on_step_end(self, run: Run) -> None:
        """After every optimizer update; ``run.step`` counts it already."""

    def on_non_finite(self, run: Run, error: NonFiniteLossError) -> bool:
        """When a loss is found not to be finite, at a log step or a save; true if this run may go on all the same."""
        return False

    def on_epoch_end(self, run: Run) -> None:
        """After validation; ``run.history[-1]`` is the epoch's row and ``run.epoch`` counts it already."""

    def on_interrupt(self, run: Run) -> None:
        """On SIGTERM or Ctrl-C, between two updates, just before the process leaves."""

    def on_resume(self, run: Run) -> None:
        """After ``load_state_dict``, before the first update; the run may be over already."""

    def on_save(self, run: Run) -> None:
        """After every callback's ``on_epoch_end``, so that what is saved is the state of all of them."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch of a run that was not interrupted."""

    def bend_schedule(self, schedule: Schedule, run: Run) -> Schedule:
        """Return the schedule to follow; the same one unless the callback documents otherwise."""
        return schedule

    def will_record(self, metric: str) -> bool:
        """Tell whether this callback records a metric of that name in some later epoch."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`."""


def check_mode(mode: str, monitor: str | None = None) -> str:
    """Return mode if it is "min" or "max", and warn if the name of the metric says the opposite.

    Raises:
        ValueError: if it is neither.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r} is unknown; use 'min' for a loss or 'max' for an accuracy")
    raw = re.sub(r"_(ema|swa)(_\d+)?$", "", monitor or "")  # of which val_loss_ema is the average
    likely = {"loss": "min", "acc": "max"}.get(raw.rpartition("_")[2], mode)
    if likely != mode:
        warnings.warn(f"monitor={monitor!r} with mode={mode!r} prefers the worst; give mode={likely!r}", stacklevel=3)
    return mode


def monitored_value(run: Run, monitor: str, advice: str = "") -> float | None:
    """Look up a metric of the epoch; None if a callback will record it only later, as SWA does.

    Raises:
        ValueError: if there is none of that name; the message lists those there are, and gives the advice.
    """
    if monitor in run.metrics:
        return run.metrics[monitor]
    if any(callback.will_record(monitor) for callback in run.callbacks):
        return None
    names = ", ".join(sorted(run.metrics))
    raise ValueError(f"monitor={monitor!r} is not among the metrics of this run: {names}{advice and f'; {advice}'}")


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
        self.monitor, self.mode = monitor, check_mode(mode, monitor)
        self.patience = check_integer("patience", patience, 0)
        self.min_delta = abs(check_number("min_delta", min_delta))
        self._worst = math.inf if mode == "min" else -math.inf
        self.best, self.best_epoch = self._worst, -1

    def on_fit_start(self, run: Run) -> None:
        self.best, self.best_epoch = self._worst, run.epoch - 1

    def on_epoch_end(self, run: Run) -> None:
        advice = f"a callback that records it must stand before {type(self).__name__} in the list of callbacks"
        value, epoch = monitored_value(run, self.monitor, advice), run.epoch - 1
        if value is None or run.batches:
            return  # an epoch that ended in the middle: the run is over, and a resume completes it before it is judged
        gain = self.best - value if self.mode == "min" else value - self.best
        if math.isnan(value):
            run.stop(f"{self.monitor} is NaN in epoch {epoch}")
        elif gain > self.min_delta:
            self.best, self.best_epoch = value, epoch
        else:
            self._stop_if_stale(run)

    def on_resume(self, run: Run) -> None:
        if run.epoch and not run.batches and math.isnan(run.metrics.get(self.monitor) or 0):
            run.stop(f"{self.monitor} is NaN in epoch {run.epoch - 1}")
        self._stop_if_stale(run)  # the run had ended for this reason, unless patience has been raised since

    def _stop_if_stale(self, run: Run) -> None:
        stale = run.epoch - 1 - self.best_epoch
        if self.best != self._worst and stale >= max(self.patience, 1):
            run.stop(f"{self.monitor} has not improved on {self.best:.4g} (epoch {self.best_epoch}) for {stale} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "monitor": self.monitor, "mode": self.mode}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if is_of_this_metric(state, self):
            self.best, self.best_epoch = state["best"], state["best_epoch"]


class TimeLimit(Callback):
    """Stop after some seconds of training, counted over all resumes; the epoch's validation still runs.

    Raises:
        ValueError: if seconds is not positive.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_number("seconds", seconds, 0, above=True)
        self._spent, self._started = 0.0, time.monotonic()

    def on_fit_start(self, run: Run) -> None:
        self._spent, self._started = 0.0, time.monotonic()

    def on_step_end(self, run: Run) -> None:
        if self.spent() >= self.seconds:
            run.stop(f"the time limit of {self.seconds:g} seconds is used up")

    def on_resume(self, run: Run) -> None:
        self.on_step_end(run)

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
        history: name of the group ("lr", "lr_1" of the second, "generator_lr" of one of several optimizers) to its
            rates, one an update.
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
