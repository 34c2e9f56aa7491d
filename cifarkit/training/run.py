"""The state of one fit: counters, metrics and everything a checkpoint has to carry."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarkit.seeding import RngState
from cifarkit.training.callbacks import Callback
from cifarkit.training.compatibility import require_own_parameters, require_same_task
from cifarkit.training.config import describe, warn_of_differences
from cifarkit.training.distributed import average_statistics, gather, rank, require_alike, separate_random_states
from cifarkit.training.loading import (
    generator_states,
    replayed,
    require_batches,
    set_generator_states,
    undisturbed,
)
from cifarkit.training.meters import Meters, NonFiniteLossError
from cifarkit.training.task import Batch, Task, Update, metric_name

if TYPE_CHECKING:
    from cifarkit.training.loggers import Logger
    from cifarkit.training.trainer import Trainer

FORMAT_VERSION = 1


class Run:
    """What a fit has done so far; the Trainer makes it, callbacks and loggers read it.

    Attributes:
        task, train_loader, val_loader, device: what is trained, on what, and where.
        step: optimizer updates done. A step that fp16 skipped does not count.
        epoch: epochs completed, so the number of the running one, from 0.
        total_steps: updates that the whole fit would make.
        history: one dict an epoch: epoch, step, seconds, the epoch's metrics.
        metrics: the newest value of every metric.
        stopped_because: why the run ended early, or None.
        resumed: whether it continues a checkpoint.
        config: the settings in plain JSON types.
        images: training images seen, by all processes.
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
        require_own_parameters(task)
        self.schedule = trainer.schedule
        self.step = self.epoch = self.images = 0
        self.batches = 0  # micro-batches of the running epoch that are used up
        self.batches_in_epoch = len(train_loader)  # type: ignore[arg-type]
        self.total_steps = trainer.accumulation.total_updates(
            self.batches_in_epoch, trainer.max_epochs, trainer.max_steps
        )
        self.meters, self.at_log_step, self.stepped = Meters(), False, False
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.stopped_because: str | None = None
        self.last_checkpoint: str | None = None
        self.resumed = False
        self.config = describe(self)
        require_alike(
            training_batches=self.batches_in_epoch,
            validation_batches=len(val_loader) if val_loader is not None else None,  # type: ignore[arg-type]
            updates=self.total_steps,
            callbacks=[type(item).__name__ for item in trainer.callbacks],
            parameters=[tuple(parameter.shape) for parameter in self.parameters],
        )
        self._log_later: dict[str, float] = {}
        self._loader_state: dict[str, Any] | None = None
        self._rng_at_epoch_start: RngState | None = None
        self._generators = generator_states(train_loader)  # before the running epoch drew its order
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
    def example_images(self) -> Tensor:
        """One training image (1, C, H, W) on the device, transformed as in training; the run does not notice."""
        with undisturbed(self.train_loader) as batches:
            images: Tensor = self.trainer.to_device(next(iter(batches)))[0]
        return images[:1]

    def notify(self, hook: str) -> None:
        """Call one hook of every callback, in order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self)

    def stop(self, reason: str) -> None:
        """End the run after this update; the first reason is kept."""
        self.stopped_because = self.stopped_because or reason

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the newest epoch: to ``metrics`` and to the last row of ``history``."""
        self.metrics.update(metrics)
        if self.history:
            self.history[-1].update(metrics)

    def log_later(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the next log line."""
        self._log_later.update(metrics)

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
            self.mark_position()  # before another is asked for, as a loader that is used up moves on to its next epoch
            window.append(self.trainer.to_device(batch))
        return window

    def require_finite(self, metrics: Mapping[str, float]) -> None:
        """Raise NonFiniteLossError for a loss among the metrics that is infinite or NaN."""
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise NonFiniteLossError(f"{name} is {value} after step {self.step - 1}", max(self.step - 1, 0))

    def log(self) -> None:
        """Read the metrics since the last log step off the device and send them to the loggers.

        Raises:
            NonFiniteLossError: if a loss is infinite or NaN and no callback has put that right.
        """
        try:
            metrics = self.meters.end_interval()
        except NonFiniteLossError as error:
            if not any(callback.on_non_finite(self, error) for callback in self.callbacks):
                raise
            metrics = self.meters.end_interval()
        self._log_later, later = {}, self._log_later
        metrics |= {"lr": self._first_rate()} | later | {"images_per_second": self._speed(self._interval_clock)}
        self._interval_clock = (time.perf_counter(), self.images)
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log(metrics, self.step)

    def end_epoch(self, validation: Mapping[str, float], whole: bool) -> None:
        """Write the epoch's row; a partial epoch, ended by max_steps or a callback, may be continued by a resume."""
        row = {"epoch": self.epoch, "step": self.step, **self.meters.epoch_means(), **validation}
        row |= {"lr": self._first_rate(), "images_per_second": self._speed(self._epoch_clock), "seconds": self.seconds}
        if whole:
            self.epoch, self.batches, self.meters = self.epoch + 1, 0, Meters()
        self.mark_position()
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

    def log_images(self, name: str, images: Tensor) -> None:
        """Send a grid of images, uint8 or float in [0, 1], to every logger."""
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
        self._generators = generator_states(self.train_loader)
        set_epoch = getattr(getattr(self.train_loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:  # a DistributedSampler repeats its order otherwise
            set_epoch(self.epoch)
        if self.batches == 0 or self._rng_at_epoch_start is None or hasattr(self.train_loader, "load_state_dict"):
            self._rng_at_epoch_start = RngState.capture()
            return iter(self.train_loader)
        return replayed(self.train_loader, self.batches, self._rng_at_epoch_start)

    def mark_position(self) -> None:
        """Note where the loader stands, before it is asked for more or moves on to the next epoch."""
        state_of = getattr(self.train_loader, "state_dict", None)
        self._loader_state = state_of() if state_of else None

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
        self.meters.flush()
        average_statistics(self.task)
        self._require_finite_weights()
        own, *others = gather(self._own_state())
        names = ("step", "epoch", "batches", "images", "history", "metrics", "seconds")
        counters = {name: getattr(self, name) for name in names}
        return {
            "format_version": FORMAT_VERSION,
            "run": counters | {"meters": self.meters.state_dict()},
            "task": self.task.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.task.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "callbacks": [{"name": type(item).__name__, "state": item.state_dict()} for item in self.callbacks],
            "config": self.config,
            **own,
            "other_ranks": others,
        }

    def _own_state(self) -> dict[str, Any]:
        """Return what each process has for itself."""
        return {
            "loader": self._loader_state,
            "rng": RngState.capture().state_dict(),
            "generators": self._generators if self.batches else generator_states(self.train_loader),
            "rng_at_epoch_start": self._rng_at_epoch_start.state_dict() if self._rng_at_epoch_start else None,
        }

    def _require_finite_weights(self) -> None:
        floating = [tensor for tensor in self.task.state_dict().values() if tensor.is_floating_point()]
        if floating and not torch.stack([tensor.isfinite().all() for tensor in floating]).all():
            raise NonFiniteLossError(f"a weight is not finite after step {self.step - 1}", max(self.step - 1, 0))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up everything but the random states and the callbacks, which come last.

        Learning rates and other settings of the optimizers come from the state, too.

        Raises:
            ValueError: if the state belongs to another task.
        """
        require_same_task(self.task, state)
        state = state | _part_of_this_rank(state)
        self.task.load_state_dict(state["task"])
        for name, optimizer in self.task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, scaler in self.scalers.items():
            if state["scalers"].get(name):  # empty when it was saved in another precision
                scaler.load_state_dict(state["scalers"][name])
        counters = dict(state["run"])
        self.meters.load_state_dict(counters.pop("meters"))
        self._seconds_before, self._started = counters.pop("seconds"), time.perf_counter()
        for name, value in counters.items():
            setattr(self, name, value)
        self.history = [row for row in self.history if row["epoch"] < self.epoch]  # drop the row of a partial epoch
        self._loader_state = state["loader"]
        if self._loader_state is not None and hasattr(self.train_loader, "load_state_dict"):
            self.train_loader.load_state_dict(self._loader_state)
            self.batches = getattr(self.train_loader, "position", self.batches)  # in batches of the present size
        set_generator_states(self.train_loader, state["generators"])
        warn_of_differences(state["config"]["environment"])
        if state["rng_at_epoch_start"] is not None:
            self._rng_at_epoch_start = RngState.from_state_dict(state["rng_at_epoch_start"])
        self.resumed = True

    def set_random_states(self, state: dict[str, Any] | None) -> None:
        """Restore the random states of this rank; one that was not there yet gets states of its own."""
        own = None if state is None else _part_of_this_rank(state)
        if state is not None:
            RngState.from_state_dict((own or state)["rng"]).restore()
        if not own:
            separate_random_states()

    def load_callbacks(self, states: list[dict[str, Any]]) -> None:
        """Give each callback the state saved by the first unused one of its kind; new kinds start fresh."""
        unused = list(states)
        for callback in self.callbacks:
            match = next((state for state in unused if state["name"] == type(callback).__name__), None)
            if match is not None:
                unused.remove(match)
                callback.load_state_dict(match["state"])
        self.notify("on_resume")


def _part_of_this_rank(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds for this rank alone; nothing if it was saved by fewer processes."""
    first = {name: state[name] for name in ("rng", "loader", "generators", "rng_at_epoch_start")}
    parts: list[dict[str, Any]] = [first, *state.get("other_ranks", [])]
    return parts[rank()] if rank() < len(parts) else {}


def _overrides(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(Callback, hook)
