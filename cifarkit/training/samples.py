"""Grids of generated images as training goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarkit import plots
from cifarkit.checks import check_callable, check_integer, name_kinds
from cifarkit.files import shown
from cifarkit.inference import evaluation_mode
from cifarkit.seeding import RngState
from cifarkit.training.averaging import WeightAveraging
from cifarkit.training.callbacks import Callback
from cifarkit.training.checkpoint import ModelCheckpoint
from cifarkit.training.distributed import from_first_rank

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class SampleGrid(Callback):
    """Make images after epochs and at the end, for the loggers and as a picture, ``folder/epoch-000.png``.

    The networks are in evaluation mode meanwhile, and training does not notice which random numbers are drawn. Of
    several processes rank 0 makes them and the others wait; all must have the callback.

    Pictures replace links of their names. A folder below that of the run's checkpoints must be no link: whoever packed
    a run that is resumed may have put it there. The run's own folder may be one, to another disk for example.

    Args:
        sample: task -> images (B, C, H, W) in [-1, 1]; from the same noise each time, they can be compared.
        folder: where the pictures go; None keeps none.
        every_n_epochs: how often; the last epoch has its picture in any case.
        average: a callback such as ExponentialMovingAverage, whose averaged networks stand in the task meanwhile.
        columns: images in a row of the picture, such as the samples of one class.
    Raises:
        TypeError: if sample cannot be called or average is no such callback, and later if sample returns no tensor.
        ValueError: if every_n_epochs or columns is below 1, and at the start for a folder that is such a link, or an
            average that is none of the Trainer's callbacks.
    """

    def __init__(
        self,
        sample: Callable[[Any], Tensor],
        folder: str | Path | None = None,
        *,
        every_n_epochs: int = 1,
        average: WeightAveraging | None = None,
        columns: int = 8,
    ) -> None:
        self.sample = check_callable("sample", sample, "give a function of the task that returns images")
        if average is not None and not isinstance(average, WeightAveraging):
            advice = "give the callback, such as ExponentialMovingAverage(0.999)"
            raise TypeError(f"average is a {type(average).__name__}; {advice}")
        self.folder, self.average = None if folder is None else Path(folder), average
        self.every_n_epochs = check_integer("every_n_epochs", every_n_epochs, 1)
        self.columns = check_integer("columns", columns, 1)

    def on_fit_start(self, run: Run) -> None:
        if self.average is not None and not any(item is self.average for item in run.callbacks):
            raise ValueError("average is none of the Trainer's callbacks, so it averages nothing; add it to them")
        if self.folder is None:
            return
        roots = [item.folder for item in run.callbacks if isinstance(item, ModelCheckpoint)]
        for part in (self.folder, *self.folder.parents):
            if part.is_symlink() and any(root.absolute() in part.absolute().parents for root in roots):
                raise ValueError(
                    f"{shown(part)} is a link inside the folder of a run; remove it, or give another folder"
                )

    def on_epoch_end(self, run: Run) -> None:
        if self._is_due(run):
            from_first_rank(lambda: self._make(run))

    def on_fit_end(self, run: Run) -> None:
        if run.history and not self._is_due(run):  # what a run of any length has come to in the end
            from_first_rank(lambda: self._make(run))

    def _is_due(self, run: Run) -> bool:
        due: bool = (run.history[-1]["epoch"] + 1) % self.every_n_epochs == 0
        return due

    def _make(self, run: Run) -> None:
        epoch = run.history[-1]["epoch"]
        averaged = (
            self.average.swapped(run.task) if self.average is not None and self.average.updates else nullcontext()
        )
        rng = RngState.capture()
        with averaged, evaluation_mode(run.task), torch.no_grad():
            images = self.sample(run.task)
        rng.restore()
        if not isinstance(images, Tensor):
            raise TypeError(f"sample gives {name_kinds(images)}; it must return a tensor of images (B, C, H, W)")
        images = images.float().cpu().clamp(-1, 1)
        run.log_images("samples", (images + 1) / 2)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"epoch-{epoch:03d}.png"
            plots.image_grid(images, columns=self.columns, path=path, value_range=(-1, 1))
