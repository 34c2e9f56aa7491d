"""Where a run writes what it measured: CSV files, TensorBoard, Weights & Biases.

A logger only observes. What it cannot write raises: a run whose records are lost is better stopped. TensorBoard and
Weights & Biases are imported when a run starts.
"""

from __future__ import annotations

import copy
import csv
import datetime
import io
import itertools
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifarkit.files import write_atomically
from cifarkit.plots import to_pixels

if TYPE_CHECKING:
    from cifarkit.training.run import Run


class Logger:
    """Observe a run and write down what it measures; each method may be overridden, none has to be."""

    def start(self, run: Run) -> None:
        """Open what is needed; called before the first step, with run.resumed telling whether the run continues."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the means since the last call; step counts optimizer updates."""

    def log_epoch(self, run: Run) -> None:
        """Take the newest row of run.history, at the end of an epoch."""

    def log_images(self, name: str, images: Tensor, step: int) -> None:
        """Take a batch of images (B, C, H, W), uint8 or float in [0, 1]."""

    def close(self, run: Run) -> None:
        """Finish, also after an error; run.stopped_because may say why the run ended early."""


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """Create ``root/<YYYY-MM-DD>-<name>`` and return it, with -2, -3 and so on added if that is taken.

    Two processes that ask at once get different folders: the file system decides who was first.

    Raises:
        ValueError: if the name is empty or is not one folder name.
    """
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"name={name!r} is no folder name; give one without slashes, such as 'resnet18-cutout'")
    first = Path(root) / f"{datetime.date.today():%Y-%m-%d}-{name}"
    first.parent.mkdir(parents=True, exist_ok=True)
    folder, number = first, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


class CSVLogger(Logger):
    """Write metrics.csv (a row an epoch), steps.csv (a row a log step) and config.json, with no extra package.

    metrics.csv is rewritten whole after each epoch, so it may gain columns late and is never torn. A folder that
    already holds a run is not overwritten: the next one writes metrics-2.csv, steps-2.csv and config-2.json. A resumed
    run continues the newest files, its rows beyond the checkpoint dropped, so they end as if nothing had happened.

    Args:
        folder: where the files go; made if missing. :func:`run_folder` gives a fresh one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._number = 0  # of the three files; 0 before the start
        self._columns: list[str] = []  # of steps.csv

    def start(self, run: Run) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        taken = len(list(itertools.takewhile(self._is_taken, itertools.count(1))))
        self._columns = []
        if run.resumed and taken:
            self._number = taken
            rows = [row for row in _read_rows(self._file("steps.csv")) if int(row["step"]) <= run.step]
            self._columns = list(rows[0]) if rows else []
            write_atomically(_csv_text(self._columns, rows).encode(), self._file("steps.csv"))
            self._write_metrics(run.history, None)
        else:
            self._number = self._claim(taken + 1)
        write_atomically(f"{json.dumps(run.config, indent=2)}\n".encode(), self._file("config.json"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        path = self._file("steps.csv")
        row = {"step": step, **metrics}
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            write_atomically(_csv_text(self._columns, _read_rows(path)).encode(), path)
        with path.open("a", newline="", encoding="utf-8") as file:  # closed each time, so a kill loses nothing
            file.write(_csv_text(self._columns, [row], header=False))

    def log_epoch(self, run: Run) -> None:
        self._write_metrics(run.history, None)

    def close(self, run: Run) -> None:
        if self._number == 0:  # the start failed, and its error is on its way
            return
        nothing = [{"epoch": run.epoch, "step": run.step}] if run.stopped_because else []
        self._write_metrics(run.history or nothing, run.stopped_because)
        self._number = 0

    def _write_metrics(self, history: Sequence[Mapping[str, Any]], reason: str | None) -> None:
        rows = [dict(row) for row in history]
        if rows:
            rows[-1]["stopped_because"] = reason
            names = dict.fromkeys(name for row in rows for name in row if name != "stopped_because")
            write_atomically(_csv_text([*names, "stopped_because"], rows).encode(), self._file("metrics.csv"))

    def _claim(self, number: int) -> int:
        """Create steps.csv of the first free number at or after this one; the file system lets one process win."""
        while True:
            try:
                self._file("steps.csv", number).open("x").close()
                return number
            except FileExistsError:
                number += 1

    def _is_taken(self, number: int) -> bool:
        return any(self._file(name, number).exists() for name in ("metrics.csv", "steps.csv", "config.json"))

    def _file(self, name: str, number: int | None = None) -> Path:
        number = number or self._number
        if number == 0:
            raise RuntimeError("CSVLogger has no open run; call start(run) first, as Trainer.fit does")
        return self.folder / (name if number == 1 else name.replace(".", f"-{number}."))


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
        graph: also draw ``run.task.model`` as it handles ``run.example_images``; without those a warning says so.
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
        images = getattr(run, "example_images", None)
        if images is None:
            warnings.warn("TensorBoardLogger(graph=True): run.example_images is missing, no graph drawn", stacklevel=3)
            return
        model: Any = getattr(run.task, "model", run.task)
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        model = getattr(model, "module", model) if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # tensorboard still needs torch.jit.trace
            # Traced on a copy, so that modes, statistics and random state of the run stay as they are.
            self._writer.add_graph(copy.deepcopy(model).eval(), images)


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


def _csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    """Format rows; a missing value or None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file without its last line if a kill cut that short; a missing file has no rows."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
