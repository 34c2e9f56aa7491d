"""The state of one fit: counters, metrics, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cifarkit.training.callbacks import Callback
from cifarkit.training.compatibility import require_own_parameters
from cifarkit.training.config import describe
from cifarkit.training.distributed import require_alike
from cifarkit.training.evaluation import to_device
from cifarkit.training.kinds import NUMBER, as_number, require
from cifarkit.training.loading import require_batches, undisturbed
from cifarkit.training.loggers import in_unit_range
from cifarkit.training.meters import Meters, NonFiniteLossError
from cifarkit.training.position import Position
from cifarkit.training.resuming import state_of, take_up, unbounded_buffers
from cifarkit.training.structure import RECORDED
from cifarkit.training.task import Batch, Task, Update, metric_name

if TYPE_CHECKING:
    from cifarkit.training.loggers import Logger
    from cifarkit.training.trainer import Trainer


class Run:
    """What a fit has done so far; the Trainer makes it, callbacks and loggers read it.

    Attributes:
        task, train_loader, val_loader, device: what is trained, on what, and where.
        step: optimizer updates done. A step that fp16 skipped does not count.
        epoch: epochs completed, so the number of the running one, from 0.
        total_steps: updates that the whole fit would make.
        history: one dict an epoch: epoch, step, seconds, the epoch's metrics.
        metrics: the newest value of every metric; after an epoch those of its row.
        stopped_because: why the run ended early, or None.
        resumed: whether it continues a checkpoint.
        config: the settings in plain JSON types.
        images: training images seen, by all processes.
        position: where this process stands in the training loader.
    """

    def __init__(
        self,
        trainer: Trainer,
        task: Task,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
    ) -> None:
        require_batches("train_loader", train_loader)
        if val_loader is not None:
            require_batches("val_loader", val_loader)
        self.trainer, self.task, self.train_loader, self.val_loader = trainer, task, train_loader, val_loader
        self.device = trainer.device
        self.callbacks = sorted(callbacks, key=lambda callback: callback.order)
        self.step_hooks = [item.on_step_end for item in self.callbacks if _overrides(item, "on_step_end")]
        self.loggers = list(loggers)
        self.scalers = {name: trainer.precision.scaler() for name in task.optimizers}
        self.parameters = list(task.parameters())
        self.unbounded = unbounded_buffers(task)  # which are left out where all must be finite
        require_own_parameters(task)
        self.schedule = trainer.schedule
        self.step = self.epoch = self.images = self.logged_step = 0
        self.batches = 0  # micro-batches of the running epoch that are used up
        self.batches_in_epoch = len(train_loader)  # type: ignore[arg-type]
        self.total_steps = trainer.accumulation.total_updates(
            self.batches_in_epoch, trainer.max_epochs, trainer.max_steps
        )
        self.meters, self.at_log_step, self.stepped = Meters(), False, False
        self.has_updated = self.is_open = False  # once an update has succeeded; while an epoch is on its way
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.recorded: dict[str, Any] = {}  # by callbacks, for the row of the running epoch
        self.stopped_because: str | None = None
        self.last_checkpoint: str | None = None
        self.resumed = False
        self.config = describe(self)
        require_alike(
            training_batches=self.batches_in_epoch,
            validation_batches=len(val_loader) if val_loader is not None else None,  # type: ignore[arg-type]
            updates=self.total_steps,
            precision=trainer.precision.name,  # "auto" depends on the device
            log_every_n_steps=trainer.log_every_n_steps,
            accumulate_grad_batches=trainer.accumulation.factors,
            callbacks=[type(item).__name__ for item in trainer.callbacks],
            parameters=[tuple(parameter.shape) for parameter in self.parameters],
        )
        self.position = Position(train_loader)
        self.unlogged: dict[str, Any] = {}  # for the next log line
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._epoch_clock = self._interval_clock = (self._started, 0)

    @property
    def seconds(self) -> float:
        """Wall time of the fit, validation included, over all resumes."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def progress(self) -> float:
        """Updates done over updates in all, in [0, 1]: what the schedules are functions of."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    @property
    def batches_left(self) -> int:
        """Micro-batches of the running epoch that are still to come."""
        return self.batches_in_epoch - self.batches

    @property
    def lacks_a_row(self) -> bool:
        """Whether batches of the running epoch are used up and its end is still to come, as where a save was made."""
        return self.batches > 0 and not any(row["epoch"] == self.epoch for row in self.history)

    @property
    def example_images(self) -> Tensor:
        """One training image (1, C, H, W) on the device, transformed as in training; the run does not notice."""
        with undisturbed(self.train_loader) as batches:
            images: Tensor = self.to_device(next(iter(batches)))[0]
        return images[:1]

    def to_device(self, batch: Batch) -> list[Tensor]:
        """Move a batch, its images in the layout of the networks."""
        return to_device(batch, self.device, self.task.layout)

    def notify(self, hook: str) -> None:
        """Call one hook of every callback, in order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self)

    def stop(self, reason: str) -> None:
        """End the run after this update; the first reason is kept."""
        self.stopped_because = self.stopped_because or reason

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add metrics, numbers or tensors of one, to ``metrics`` and to the last row of ``history``, the newest epoch.

        Within an epoch, as in ``on_step_end``, they are kept for its row, which is still to come.

        Raises:
            ValueError: if one is no number, flag, text, tensor or None, or of ``train_`` or ``val_`` and no number.
        """
        numbers = {name: as_number(value) for name, value in metrics.items()}
        for name, number in numbers.items():
            require(number, NUMBER if name.startswith(("train_", "val_")) else RECORDED, f"metrics[{name!r}]")
        for table in (self.metrics, *([self.recorded] if self.is_open or self.lacks_a_row else self.history[-1:])):
            table.update(numbers)

    def log_later(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the next log line."""
        self.unlogged |= {name: as_number(value) for name, value in metrics.items()}

    def add_metrics(self, update: Update, samples: int) -> None:
        """Keep the loss and metrics of one micro-batch, on the device."""
        name, add = update.optimizer, self.meters.add
        add(metric_name(name, "loss", prefix="train_"), update.loss, samples, self.step)
        for metric, value in update.metrics.items():
            add(metric_name(name, metric, prefix="train_"), value, samples, self.step)

    def drop_gradients(self) -> None:
        """Forget all gradients, including those left in judged networks."""
        for parameter in self.parameters:
            parameter.grad = None

    def take(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """Take the micro-batches of one update, at most count."""
        window: list[Batch] = []
        for batch in islice(batches, count):
            self.batches += 1
            self.position.mark()  # before another is asked for, as a loader that is used up moves on to its next epoch
            window.append(self.to_device(batch))
        if not self.batches:
            raise ValueError(f"train_loader gives no batch in epoch {self.epoch}; can it be iterated over only once?")
        return window

    def require_finite(self, metrics: Mapping[str, float]) -> None:
        """Raise NonFiniteLossError for a loss among the metrics that is infinite or NaN."""
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise NonFiniteLossError(f"{name} is {value} after step {self.step - 1}", max(self.step - 1, 0))

    def read_losses(self) -> None:
        """Read the metrics since the last time off the device.

        Raises:
            NonFiniteLossError: if a loss is infinite or NaN and no callback has put that right.
        """
        try:
            self.meters.flush()
        except NonFiniteLossError as error:
            if not any(callback.on_non_finite(self, error) for callback in self.callbacks):
                raise

    def log(self) -> None:
        """Send the means since the last log step to the loggers, once a step; raise as :meth:`read_losses` does."""
        self.read_losses()
        if self.step == self.logged_step:  # the updates since have been passed over
            return
        metrics = self.meters.take_interval()
        self.unlogged, later, self.logged_step = {}, self.unlogged, self.step
        metrics |= {"lr": self._first_rate()} | later | {"images_per_second": self._speed(self._interval_clock)}
        self._interval_clock = (time.perf_counter(), self.images)
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log(metrics, self.step)

    def end_epoch(self, validation: Mapping[str, float], whole: bool) -> None:
        """Write the epoch's row; a partial epoch, ended by max_steps or a callback, may be continued by a resume."""
        self.read_losses()
        row = {"epoch": self.epoch, "step": self.step, **self.meters.epoch_means(), **validation}
        row |= {"lr": self._first_rate(), "images_per_second": self._speed(self._epoch_clock), "seconds": self.seconds}
        row |= {name: value for name, value in self.recorded.items() if name not in row}  # what was measured wins
        if whole:
            self.epoch, self.batches, self.meters, self.recorded = self.epoch + 1, 0, Meters(), {}
        self.position.mark()
        self.is_open = False
        self.history.append(row)
        self.metrics = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        self.notify("on_epoch_end")
        self.notify("on_save")
        for logger in self.loggers:
            logger.log_epoch(self)

    def explain(self, error: NonFiniteLossError) -> str:
        """Say where the loss broke down, at what learning rate, and what is left."""
        group = next(iter(self.task.optimizers.values())).param_groups[0]
        rate = group["base_rate"] * self.schedule(error.step / max(self.total_steps, 1))
        return (
            f"{error} (learning rate {rate:.3g}); last good checkpoint: {self.last_checkpoint or 'none'}. "
            "A lower learning rate, a warm-up or gradient_clip_val may help, or NaN may be in the images"
        )

    def log_images(self, name: str, images: Tensor, value_range: tuple[float, float] | None = None) -> None:
        """Send a grid of images to every logger.

        Args:
            name: of the grid.
            images: (B, C, H, W), uint8 or float.
            value_range: the float values shown black and white, beyond which they are clipped, such as (-1, 1); None
                means [0, 1].
        Raises:
            ValueError: if value_range is not (low, high).
        """
        images = images if value_range is None else in_unit_range(images, value_range)
        for logger in self.loggers:
            logger.log_images(name, images, self.step)

    def learning_rates(self) -> dict[str, float]:
        """Return the present rate of every parameter group; a lone group is called "lr"."""
        groups = {
            f"{metric_name(name, 'lr')}{f'_{index}' if index else ''}": group["lr"]
            for name, optimizer in self.task.optimizers.items()
            for index, group in enumerate(optimizer.param_groups)
        }
        return {name: float(rate) for name, rate in groups.items()}

    def open_loader(self) -> Iterator[Any]:
        """Start the epoch's batches, or what is left of them."""
        self._epoch_clock = self._interval_clock = (time.perf_counter(), self.images)
        return self.position.open(self.epoch, self.batches)

    def _first_rate(self) -> float:
        return next(iter(self.learning_rates().values()))

    def _speed(self, since: tuple[float, int]) -> float:
        start, images = since
        return (self.images - images) / max(time.perf_counter() - start, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs, in tensors and plain types; all processes must ask at once.

        Raises:
            NonFiniteLossError: if a loss since the last log step or a weight is not finite: no bad state is saved.
        """
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up everything but the random states and the callbacks, which come last.

        Learning rates and other settings of the optimizers come from the state, too.

        Raises:
            ValueError: if the state is not whole or belongs to another task; then nothing has changed.
        """
        take_up(self, state)

    def go_on_counting(self, seconds: float) -> None:
        """Count the wall time from so many seconds on."""
        self._seconds_before, self._started = seconds, time.perf_counter()


def _overrides(callback: Callback, hook: str) -> bool:
    method = getattr(callback, hook)
    return getattr(method, "__func__", method) is not getattr(Callback, hook)
