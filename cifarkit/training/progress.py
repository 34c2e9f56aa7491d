"""What a person sees of a run: a bar on a terminal, elsewhere a line an epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from cifarkit.training.callbacks import Callback
from cifarkit.training.loggers import Logger

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class ProgressBar(Callback, Logger):
    """One tqdm bar a fit on a terminal; when stdout is no terminal, one line an epoch.

    The bar moves with every update; losses and accuracies follow at log steps, when they are read anyway.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, run: Run) -> None:
        if run.trainer.precision.reason is not None:
            print(run.trainer.precision.reason, flush=True)
        if run.resumed:
            print(f"goes on from {run.last_checkpoint} after {run.step:,} updates", flush=True)
        if sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=run.total_steps, initial=run.step, unit="step", dynamic_ncols=True, file=sys.stdout)

    def on_step_end(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.update(run.step - self._bar.n)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(summary(metrics), refresh=False)

    def log_epoch(self, run: Run) -> None:
        line = f"epoch {run.history[-1]['epoch']}: {summary(run.history[-1])}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if run.stopped_because:
            print(f"stopped at step {run.step}: {run.stopped_because}", flush=True)


def summary(metrics: Mapping[str, Any]) -> str:
    """Put metrics on one line: accuracies in percent, rates in their own unit.

    >>> summary({"epoch": 0, "train_loss": 1.5, "val_acc": 0.925, "images_per_second": 180.4})
    'train_loss 1.500  val_acc 92.50%  180 images/s'
    """
    parts = []
    for name, value in metrics.items():
        if not isinstance(value, Real):  # a text or nothing, which a callback may record
            continue
        if "acc" in name:
            parts.append(f"{name} {value:.2%}")
        elif "loss" in name:
            parts.append(f"{name} {value:.3f}")
        elif name == "images_per_second":
            parts.append(f"{value:.0f} images/s")
        elif name == "seconds":
            parts.append(f"{value:.0f} s")
        elif name == "lr":
            parts.append(f"lr {value:.3g}")
    return "  ".join(parts)
