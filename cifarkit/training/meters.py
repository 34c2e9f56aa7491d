"""Running means that stay on the device until somebody looks."""

from __future__ import annotations

import math
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from cifarkit.training.distributed import gather


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number, so the weights can no longer be trusted.

    Attributes:
        step: number of the first such update, from 0.
    """

    def __init__(self, message: str | None, step: int) -> None:
        super().__init__(message)
        self.step = step


class Meters:
    """Weighted means of scalar tensors over a log interval and over an epoch.

    ``add`` only keeps a reference; ``flush`` reads everything pending in one transfer and adds it up in Python's
    float64 in the order it came, so the result does not depend on how often it is read. The sums are those of all
    processes, update by update, so they flush together.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[str, Tensor, int, int]] = []
        self.interval: dict[str, list[float]] = {}  # name -> [weighted sum, samples]
        self.epoch: dict[str, list[float]] = {}

    def add(self, name: str, mean: Tensor, samples: int, step: int) -> None:
        """Remember a mean over ``samples`` samples, made in update number ``step``."""
        if not isinstance(mean, Tensor) or mean.dim():
            what = f"of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            raise TypeError(f"{name!r} must be a scalar tensor, the mean over the batch; got {what}")
        self._pending.append((name, mean.detach(), samples, step))

    def forget(self, step: int) -> None:
        """Drop what update number ``step`` has added since the last flush, because it is made again."""
        self._pending = [item for item in self._pending if item[3] != step]

    def flush(self) -> None:
        """Bring pending values to the host.

        Raises:
            NonFiniteLossError: if one of the losses is not finite; it names the first such step.
        """
        pending, self._pending = self._pending, []
        names, means, samples_of, steps = zip(*pending, strict=True) if pending else ((), (), (), ())
        device = next((mean.device for mean in means if mean.device.type != "cpu"), torch.device("cpu"))
        on_one = [mean.to(device, torch.float32) for mean in means]
        values = torch.stack(on_one).tolist() if on_one else []  # the only wait for the device
        everyones = chain(*gather([*zip(names, values, samples_of, steps, strict=True)]))
        for name, value, samples, step in sorted(everyones, key=itemgetter(3)):
            if name.endswith("loss") and not math.isfinite(value):
                raise NonFiniteLossError(f"{name} is {value} at step {step}", step)
            for sums in (self.interval, self.epoch):
                total = sums.setdefault(name, [0.0, 0])
                total[0] += value * samples
                total[1] += samples

    def end_interval(self) -> dict[str, float]:
        """Return the means since the last call and start a new interval."""
        self.flush()
        return self.take_interval()

    def take_interval(self) -> dict[str, float]:
        """Return the means of what was flushed since the last call, and start a new interval."""
        means, self.interval = _means(self.interval), {}
        return means

    def epoch_means(self) -> dict[str, float]:
        """Return the means of the epoch so far."""
        self.flush()
        return _means(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {"interval": self.interval, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = []
        self.interval, self.epoch = state["interval"], state["epoch"]


def _means(sums: dict[str, list[float]]) -> dict[str, float]:
    return {name: total / samples for name, (total, samples) in sums.items()}
