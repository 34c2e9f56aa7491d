"""Where a run writes what it measured: what a logger is, and CSV files.

A logger only observes. What it cannot write raises: a run whose records are lost is better stopped. Of several
processes only rank 0 has loggers.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cifarkit.checks import check_numbers
from cifarkit.files import read_file, shown, write_atomically
from cifarkit.training.distributed import from_first_rank, process_group, rank

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


def in_unit_range(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Map float images from (low, high) to [0, 1], clipped; uint8 stays as it is.

    Raises:
        ValueError: if value_range is not two finite numbers, the lower first.
    """
    numbers = check_numbers("value_range", value_range)
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise ValueError(f"value_range={value_range} must be (low, high), such as (-1, 1)")
    low, high = numbers
    return ((images.float() - low) / (high - low)).clamp(0, 1) if images.is_floating_point() else images


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """Create ``root/<YYYY-MM-DD>-<name>`` and return it, with -2, -3 and so on added if that is taken.

    Two runs that ask at once get different folders, as the file system decides who was first; the processes that
    torchrun has started for one run get the same. Started again after one was killed, they get a new one, and a
    warning: a run that shall go on then needs a folder of a name that does not change.

    Raises:
        ValueError: if the name is empty or is not one folder name.
    """
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"name={name!r} is no folder name; give one without slashes, such as 'resnet18-cutout'")
    with process_group():
        folder = from_first_rank(lambda: _free_folder(Path(root) / f"{datetime.date.today():%Y-%m-%d}-{name}"))
    if rank() == 0 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        warnings.warn(
            f"torchrun has started this script again, and it begins from nothing in a new folder, {folder}; for it to "
            "go on, give the run a folder of your own choice and call fit(resume='auto')",
            stacklevel=2,
        )
    return folder


def _free_folder(first: Path) -> Path:
    """Create a folder of that name, or with the first free number behind it."""
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
            rows = _rows_until(run.step, self._file("steps.csv"))
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


def _csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    """Format rows; a missing value or None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows_until(step: int, path: Path) -> list[dict[str, str]]:
    """Return the rows of steps.csv that a run resumed at a step keeps."""
    try:
        return [row for row in _read_rows(path) if int(row["step"]) <= step]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{shown(path)} is damaged: a row has no whole number as its step ({error})") from error


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file without its last line if a kill cut that short; a missing file has no rows."""
    text = read_file(path).decode("utf-8") if path.exists() else ""
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
