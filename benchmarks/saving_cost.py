"""What does saving cost, and how soon does a run go on?

    python benchmarks/saving_cost.py            # six minutes of training with a save a minute, and five resumes
    python benchmarks/saving_cost.py --tiny     # seconds, to see that it runs

A ResNet-18 is trained with SGD with momentum and an average of its weights, so a checkpoint holds its weights three
times. Saves go through ModelCheckpoint and end when the file is on the disk. The cost is the seconds spent in them as a
share of all seconds of the training. A resume is timed from the call of ``fit`` to its first batch, in a process that
has Python, PyTorch and the data loaded already, and with the checkpoint in the cache of the system.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from report import Report, Spread, Table, arguments, destination
from torch import Tensor

from cifarkit import Callback, ClassificationTask, Run, Trainer
from cifarkit.data import ImageDataset, Loader, shapes
from cifarkit.models import resnet18
from cifarkit.training import ExponentialMovingAverage, ModelCheckpoint

BATCH = 128
MOST_SHARE, MOST_SECONDS = 0.005, 3.0  # what the issue allows


class TimedSaves(Callback):
    """Save after so many seconds, again and again, and stop after so many saves."""

    def __init__(self, folder: Path, every_seconds: float, saves: int) -> None:
        self.checkpoint, self.every_seconds, self.saves = ModelCheckpoint(folder), every_seconds, saves
        self.took: list[float] = []
        self.began = self.last = 0.0
        self.total = 0.0

    def on_epoch_start(self, run: Run) -> None:
        if not self.began:
            self.began = self.last = time.perf_counter()

    def on_step_end(self, run: Run) -> None:
        start = time.perf_counter()
        if start - self.last < self.every_seconds:
            return
        self.checkpoint.save_last(run)
        self.last = time.perf_counter()  # a pause between two saves is one without saving
        self.took.append(self.last - start)
        if len(self.took) == self.saves:
            self.total = self.last - self.began
            run.stop("enough saves")


class NotingLoader(Loader):
    """Note when the first batch is there."""

    at: float | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().__iter__():
            self.at = self.at or time.perf_counter()
            yield batch


class StopAtOnce(Callback):
    def on_step_end(self, run: Run) -> None:
        run.stop("resumed")


def make_task() -> ClassificationTask:
    model = resnet18()
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))


def fit(data: ImageDataset, batch: int, callback: Callback, *, resume: Path | None = None) -> NotingLoader:
    callbacks, loader = [ExponentialMovingAverage(), callback], NotingLoader(data, batch, shuffle=True)
    trainer = Trainer(max_epochs=10_000, callbacks=callbacks, progress=False)
    trainer.fit(make_task(), loader, resume=resume)
    return loader


def resume_seconds(data: ImageDataset, batch: int, path: Path) -> float:
    start = time.perf_counter()
    loader = fit(data, batch, StopAtOnce(), resume=path)
    assert loader.at is not None
    return loader.at - start


def main() -> None:
    parser = arguments(__doc__, "saving_cost")
    parser.add_argument("--folder", type=Path, help="where to save, to time that disk; else the system's temporary one")
    options = parser.parse_args()
    every, saves, resumes, batch = (1.0, 2, 1, 4) if options.tiny else (60.0, 6, 5, BATCH)
    data = shapes(256 if options.tiny else 10_000)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, timed = Path(folder) / "last.pt", TimedSaves(Path(folder), every, saves)
        fit(data, batch, timed)
        megabytes = path.stat().st_size / 1e6
        resumed = Spread.of([resume_seconds(data, batch, path) for _ in range(resumes)])
    share, saved = sum(timed.took) / timed.total, Spread.of(timed.took)
    rows = [
        ["seconds a save", saved.text()],
        ["share of training time", f"{share:.2%}"],
        ["seconds from fit(resume=...) to the first batch", resumed.text()],
        ["megabytes of the checkpoint", f"{megabytes:.0f}"],
    ]
    title = f"ResNet-18, batches of {batch}, a save every {every:.0f} s, {saves} saves in {timed.total:.0f} s"
    settings = {"batch": batch, "every_seconds": every, "saves": saves, "resumes": resumes}
    report = Report("saving_cost", settings, tables=[Table(title, ["what", "found"], rows)])
    report.figures = {"save_seconds": timed.took, "training_seconds": timed.total, "megabytes": megabytes}
    report.figures["resume_seconds"] = {"median": resumed.median, "low": resumed.low, "high": resumed.high}
    report.aim("saving costs under 0.5 % at one save a minute", f"{share:.2%}", share < MOST_SHARE)
    report.aim("a ResNet-18 resumes within 3 s", f"{resumed.high:.2f} s at most", resumed.high < MOST_SECONDS)
    report.publish(destination(options, "saving_cost"))


if __name__ == "__main__":
    main()
