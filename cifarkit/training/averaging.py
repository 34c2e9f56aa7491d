"""Averages of the weights along the training path: SWA and EMA are one idea with two formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarkit.checks import check_integer, check_number
from cifarkit.layout import lay_out
from cifarkit.training.batchnorm import refresh_on_training_images
from cifarkit.training.callbacks import Callback
from cifarkit.training.distributed import average_statistics
from cifarkit.training.schedules import Schedule
from cifarkit.training.task import Task

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class WeightAveraging(Callback):
    """Average the networks of a task, and report the averaged ones beside the raw ones.

    The networks in training are never touched. After each epoch the BatchNorm statistics of the average, which the
    mean of weights does not have, are measured on ``batchnorm_samples`` training images; then the average is
    validated, and ``val_loss`` and ``val_acc`` of it are recorded as ``val_loss_<kind>`` and ``val_acc_<kind>``; of
    two averages of a kind the second is ``<kind>_2``. The average is part of every checkpoint, and
    :func:`cifarkit.training.load_weights` reads it. In one saved within an epoch it has the BatchNorm statistics of
    the raw network; :func:`cifarkit.training.refresh_batchnorm` measures its own.

    Args:
        network: which child of the task to average; None averages them all.
        batchnorm_samples: training images that refresh BatchNorm; 0 copies the statistics of the raw network.
    """

    order = -10
    kind = "average"

    def __init__(self, network: str | None = None, batchnorm_samples: int = 2_000) -> None:
        self.network, self.batchnorm_samples = network, check_integer("batchnorm_samples", batchnorm_samples, 0)
        self.averaged: AveragedModel | None = None
        self.suffix = self.kind  # of the names of its metrics
        self._raw: frozenset[str] | None = None  # names of the metrics of the last epoch

    def average_function(self) -> Any:
        """Return the ``multi_avg_fn`` of AveragedModel, or None for the equal average."""
        return None

    def on_fit_start(self, run: Run) -> None:
        self._raw = None
        self.averaged = AveragedModel(self._networks(run.task), multi_avg_fn=self.average_function())
        before = takewhile(lambda item: item is not self, run.callbacks)
        alike = sum(isinstance(item, WeightAveraging) and item.kind == self.kind for item in before)
        self.suffix = f"{self.kind}_{alike + 1}" if alike else self.kind

    def on_epoch_end(self, run: Run) -> None:
        self._raw = frozenset(run.metrics)
        if not self.updates:
            return
        lay_out(self._averaged_networks(), run.task.layout)  # which may have changed since the fit began
        for name, network in self._averaged_networks().items() if self.batchnorm_samples else ():
            refresh_on_training_images(network, name, run, self.batchnorm_samples)
        average_statistics(self._averaged_networks())
        if run.val_loader is not None:
            with self.swapped(run.task):
                metrics = run.trainer.evaluate(run.task, run.val_loader)
            run.record({f"{name}_{self.suffix}": value for name, value in metrics.items()})

    def will_record(self, metric: str) -> bool:
        raw = metric.removesuffix(f"_{self.suffix}")
        known = self._raw is None or raw in self._raw  # else a misspelt name would be told of much later
        return not self.updates and raw != metric and raw.startswith("val_") and known

    @property
    def updates(self) -> int:
        """How many times the average has been updated."""
        return int(self.averaged.n_averaged.item()) if self.averaged is not None else 0

    def update(self, task: Task) -> None:
        """Take the present weights into the average."""
        assert self.averaged is not None
        self.averaged.update_parameters(self._networks(task))

    @contextmanager
    def swapped(self, task: Task) -> Iterator[None]:
        """Put the averaged networks in the task's place for a while; raise as :meth:`copy_to`."""
        self._require_updates()
        averaged = {id(module): self._averaged_networks()[name] for name, module in self._networks(task).items()}
        raw = {name: module for name, module in task._modules.items() if id(module) in averaged}  # or two names
        try:
            for name, module in raw.items():
                setattr(task, name, averaged[id(module)])
            yield
        finally:
            for name, module in raw.items():
                setattr(task, name, module)

    def copy_to(self, task: Task) -> None:
        """Overwrite the task's networks with their averages; raise ValueError if no weights have entered them yet."""
        self._require_updates()
        for name, module in self._networks(task).items():
            module.load_state_dict(self._averaged_networks()[name].state_dict())

    def _require_updates(self) -> None:
        if not self.updates:
            raise ValueError(
                f"no weights have entered the average {self.suffix!r} yet; train longer, or let it begin sooner"
            )

    def state_dict(self) -> dict[str, Any]:
        if self.averaged is None:
            return {}
        return {"kind": self.suffix, "averaged": self._averaged_networks().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.averaged is not None
        self._averaged_networks().load_state_dict(state["averaged"])
        self.averaged.n_averaged.fill_(state["updates"])

    def _networks(self, task: Task) -> nn.ModuleDict:
        children = dict(task.named_children())
        if self.network is None:
            trained = {name: child for name, child in children.items() if next(child.parameters(), None) is not None}
            if taken := [name for name in trained if hasattr(nn.ModuleDict, name)]:
                raise ValueError(f"a network of the task is called {taken[0]!r}, as no average of it can be; rename it")
            return nn.ModuleDict(trained)
        if self.network not in children:
            raise ValueError(f"network={self.network!r} is no child of the task; it has {sorted(children)}")
        return nn.ModuleDict({self.network: children[self.network]})

    def _averaged_networks(self) -> nn.ModuleDict:
        assert self.averaged is not None
        networks = self.averaged.module
        assert isinstance(networks, nn.ModuleDict)
        return networks


class StochasticWeightAveraging(WeightAveraging):
    """Average equally the weights at the end of each epoch of the last part of the run.

    Args:
        swa_lr: learning rate of the first parameter group while averaging, the others keep their ratio to it;
            None follows the schedule.
        start: progress in [0, 1) from which weights are averaged.
        every_n_steps: average after so many updates instead of once an epoch. An epoch that max_steps or a callback
            ends in the middle does not count, as a resume may complete it.
    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization".
    """

    kind = "swa"

    def __init__(
        self,
        swa_lr: float | None = None,
        start: float = 0.75,
        *,
        every_n_steps: int | None = None,
        network: str | None = None,
        batchnorm_samples: int = 2_000,
    ) -> None:
        super().__init__(network, batchnorm_samples)
        self.swa_lr = None if swa_lr is None else check_number("swa_lr", swa_lr, 0, above=True)
        self.start = check_number("start", start, 0, 1, below=True)
        self.every_n_steps = None if every_n_steps is None else check_integer("every_n_steps", every_n_steps, 1)

    def on_step_end(self, run: Run) -> None:
        if self.every_n_steps and run.progress >= self.start and run.step % self.every_n_steps == 0:
            self.update(run.task)

    def on_epoch_end(self, run: Run) -> None:
        if not self.every_n_steps and run.progress >= self.start and not run.batches:
            self.update(run.task)
        super().on_epoch_end(run)

    def bend_schedule(self, schedule: Schedule, run: Run) -> Schedule:
        if self.swa_lr is None:
            return schedule
        first_group = next(iter(run.task.optimizers.values())).param_groups[0]
        factor = self.swa_lr / check_number("lr of the first parameter group", first_group["base_rate"], 0, above=True)
        return lambda progress: schedule(progress) if progress < self.start else factor


class ExponentialMovingAverage(WeightAveraging):
    """Follow the weights with an exponential moving average, updated after every optimizer update.

    average = decay * average + (1 - decay) * weights; the first update copies the weights.

    Args:
        decay: in [0, 1); 0.999 remembers about 1,000 updates.
        network, batchnorm_samples: as for :class:`WeightAveraging`.
    Source: Polyak and Juditsky 1992; as in ``torch.optim.swa_utils.get_ema_multi_avg_fn``.
    """

    kind = "ema"

    def __init__(self, decay: float = 0.999, *, network: str | None = None, batchnorm_samples: int = 2_000) -> None:
        super().__init__(network, batchnorm_samples)
        self.decay = check_number("decay", decay, 0, 1, below=True)

    def average_function(self) -> Any:
        return get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]

    def on_step_end(self, run: Run) -> None:
        self.update(run.task)
