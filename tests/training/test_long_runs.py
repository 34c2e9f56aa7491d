"""Long trainings and many of them in one process: memory stays flat, no thread and no open file is left."""

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.data import ImageDataset, Loader
from cifarkit.training import (
    Callback,
    ClassificationTask,
    CSVLogger,
    ExponentialMovingAverage,
    ModelCheckpoint,
    Run,
    StochasticWeightAveraging,
    TensorBoardLogger,
    Trainer,
)
from cifarkit.transforms import Compose, RandomCrop, RandomHorizontalFlip

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files and pages are read from /proc")
FIRST, LAST = 500, 2_000  # updates between which nothing may grow
MOST_BYTES = 8 * 2**20  # by which the heap may, as its arrangement changes


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_task() -> ClassificationTask:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))


def make_loader(transform: Any = None) -> Loader:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    return Loader(ImageDataset(images, torch.arange(40) % 2, ("a", "b")), 4, shuffle=True, transform=transform)


def fit(callbacks: list[Callback], *, max_steps: int, **options: Any) -> Run:
    augment = Compose([RandomCrop(8, 1), RandomHorizontalFlip()])
    trainer = Trainer(max_steps=max_steps, callbacks=callbacks, progress=False, log_every_n_steps=10, **options)
    return trainer.fit(make_task(), make_loader(augment), make_loader())


def open_files() -> list[str]:
    """Where the descriptors of this process lead; that of the listing itself is gone when it is looked at."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  (as text)
    return sorted(str(link.readlink()) for link in links if link.is_symlink())


class Scales(Callback):
    """Count tensors and resident bytes after some updates."""

    def __init__(self) -> None:
        self.tensors: list[int] = []
        self.resident: list[int] = []

    def on_step_end(self, run: Run) -> None:
        if run.step in (FIRST, LAST):
            gc.collect()
            self.tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))


@needs_proc
@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_updates(tmp_path: Path) -> None:
    scales = Scales()
    averages = [StochasticWeightAveraging(start=0.1), ExponentialMovingAverage(0.9)]
    fit([*averages, ModelCheckpoint(tmp_path, every_n_steps=250), scales], max_steps=LAST + 1)
    first, last = scales.tensors
    assert abs(last - first) <= 10  # both times just after a log step, but for the batches that are being prepared
    assert scales.resident[1] - scales.resident[0] < MOST_BYTES


@needs_proc
@pytest.mark.slow
def test_fifty_fits_leave_no_thread_no_file_and_no_tensor(tmp_path: Path) -> None:
    before: tuple[Any, ...] = ()
    for turn in range(52):
        place = tmp_path / str(turn)
        loggers = [CSVLogger(place), TensorBoardLogger(place)]
        fit([ExponentialMovingAverage(), ModelCheckpoint(place)], max_steps=12, loggers=loggers)
        gc.collect()
        tensors = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
        if turn == 1:  # what the first fits open or import for good is there
            before = threading.active_count(), open_files(), tensors
    assert (threading.active_count(), open_files(), tensors) == before


class Failing(Callback):
    def on_step_end(self, run: Run) -> None:
        assert any(thread.name.startswith("cifarkit-loader") for thread in threading.enumerate())
        if run.step == 3:
            raise KeyError("third update")


@needs_proc
def test_an_exception_stops_prefetching_while_it_is_still_held(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(KeyError, match="third update") as caught:
        fit([Failing()], max_steps=10, loggers=[CSVLogger(tmp_path)])
    assert caught.tb is not None  # the frames of the fit, and with them its loader, are alive
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cifarkit-loader")]
    assert open_files() == before


def test_an_exception_in_validation_stops_prefetching() -> None:
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise KeyError("validation")

    trainer = Trainer(max_epochs=1, progress=False)
    with pytest.raises(KeyError, match="validation"):
        trainer.fit(make_task(), make_loader(), make_loader(fail))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cifarkit-loader")]
