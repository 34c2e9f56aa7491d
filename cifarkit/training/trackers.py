"""TensorBoard and Weights & Biases, both imported when they are asked for."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarkit.layout import lay_out
from cifarkit.plots import to_pixels
from cifarkit.training.loggers import Logger

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class _ScalarLogger(Logger):
    """What TensorBoard and Weights & Biases share: numbers named step/... and epoch/..., grids of images."""

    _written: dict[str, float] = {}  # noqa: RUF012 - of the newest epoch; replaced, never changed

    def start(self, run: Run) -> None:
        self._written = _numbers(run.history)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._write({f"step/{name}": value for name, value in metrics.items()}, step)

    def log_epoch(self, run: Run) -> None:
        self._written = {}
        self._write_epoch(run)

    def _write_epoch(self, run: Run) -> None:
        """Write the numbers of the newest epoch that are not written yet, such as the SWA accuracy at the end."""
        row = _numbers(run.history)
        if row.get("epoch", 0) < self._written.get("epoch", 0):
            return  # a resumed run has dropped the row of a part of an epoch, and was stopped before the whole one's
        new = {f"epoch/{name}": value for name, value in row.items() if self._written.get(name) != value}
        if new:
            self._write(new, run.step)
        self._written = row

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        raise NotImplementedError


class TensorBoardLogger(_ScalarLogger):
    """Write TensorBoard event files: scalars under step/ and epoch/, image grids, the network's graph if asked.

    All share the optimizer update as their axis. A second run in the same folder goes to the subfolder 2, then 3, which
    TensorBoard shows as runs of their own; a resumed run continues the newest and hides what lay beyond its checkpoint.

    Args:
        folder: where the event files go; made if missing.
        graph: also draw ``run.task.model`` as it handles ``run.example_images``.
    """

    def __init__(self, folder: str | Path, *, graph: bool = False) -> None:
        self.folder, self.graph = Path(folder), graph
        self._writer: Any = None

    def start(self, run: Run) -> None:
        super().start(run)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs the package tensorboard: pip install tensorboard") from error
        folders = itertools.chain([self.folder], (self.folder / str(number) for number in itertools.count(2)))
        taken = list(itertools.takewhile(lambda folder: any(folder.glob("events.out.tfevents.*")), folders))
        free = self.folder / str(len(taken) + 1) if taken else self.folder
        purge = run.step + 1 if run.resumed else None  # TensorBoard hides this step and what follows it
        self._writer = SummaryWriter(str(taken[-1] if run.resumed and taken else free), purge_step=purge)
        if self.graph and not run.resumed:
            self._add_graph(run)

    def log_images(self, name: str, images: Tensor, step: int) -> None:
        self._writer.add_image(name, _image_grid(images), step)

    def close(self, run: Run) -> None:
        if self._writer is not None:
            self._write_epoch(run)
            if run.stopped_because:
                self._writer.add_text("stopped_because", run.stopped_because, run.step)
            self._writer.close()
            self._writer = None

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run keeps what it logged

    def _add_graph(self, run: Run) -> None:
        model: Any = getattr(run.task, "model", run.task)
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # tensorboard still needs torch.jit.trace
            # Traced on a copy, so that modes, statistics and random state of the run stay as they are.
            subject = lay_out(copy.deepcopy(model).eval(), torch.contiguous_format)  # any network takes that
            self._writer.add_graph(subject, run.example_images.contiguous())


class WandbLogger(_ScalarLogger):
    """Send scalars and image grids to Weights & Biases, by default into a local folder only.

    An offline run is uploaded later with ``wandb sync``. A resumed run starts a new record unless options give an
    ``id`` and ``resume="allow"``.

    Args:
        project: the project the run is listed under.
        name: of the run; None lets the service choose one.
        folder: the folder in which wandb makes its own.
        mode: "offline", "online" or "disabled".
        options: handed to ``wandb.init``, such as tags or group.
    Raises:
        ImportError: if wandb is not installed.
        ValueError: if the mode is none of the three.
    """

    def __init__(
        self, project: str, *, name: str | None = None, folder: str | Path = ".", mode: str = "offline", **options: Any
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"mode={mode!r} is unknown; give 'offline', 'online' or 'disabled'")
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbLogger needs the package wandb: pip install cifarkit[wandb]") from error
        self.folder = Path(folder)
        self._wandb: Any = wandb
        self._settings = {"project": project, "name": name, "dir": str(folder), "mode": mode, **options}
        self._record: Any = None

    def start(self, run: Run) -> None:
        super().start(run)
        self.folder.mkdir(parents=True, exist_ok=True)  # wandb would quietly write to a temporary folder instead
        self._record = self._wandb.init(config=run.config, **self._settings)

    def log_images(self, name: str, images: Tensor, step: int) -> None:
        pixels = _image_grid(images).permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
        self._record.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self, run: Run) -> None:
        if self._record is not None:
            self._write_epoch(run)
            if run.stopped_because:
                self._record.summary["stopped_because"] = run.stopped_because
            self._record.finish()
            self._record = None

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        self._record.log(dict(scalars), step=step)


def _numbers(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the numbers of the newest row."""
    return {name: value for row in history[-1:] for name, value in row.items() if isinstance(value, int | float)}


def _image_grid(images: Tensor) -> Tensor:
    """Lay a batch out as one picture, uint8 (3, H, W)."""
    from torchvision.utils import make_grid

    pixels = torch.from_numpy(to_pixels(images)).permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
    grid: Tensor = make_grid(pixels, nrow=min(8, math.ceil(math.sqrt(len(pixels)))), padding=1, pad_value=255)
    return grid
