"""SampleGrid: when pictures are made, of what network, and that training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.training import (
    Callback,
    ClassificationTask,
    ExponentialMovingAverage,
    Logger,
    ModelCheckpoint,
    Run,
    Trainer,
)
from cifarkit.training.samples import SampleGrid

BATCHES = [(torch.full((4, 3, 4, 4), 0.5), torch.arange(4) % 2)] * 3


class Recorder(Logger):
    def __init__(self) -> None:
        self.images: list[tuple[str, int, Tensor]] = []

    def log_images(self, name: str, images: Tensor, step: int) -> None:
        self.images.append((name, step, images))


def make_task() -> ClassificationTask:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 2))
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))


def fit(*callbacks: Callback, epochs: int = 3, recorder: Logger | None = None) -> Run:
    loggers = [] if recorder is None else [recorder]
    return Trainer(max_epochs=epochs, callbacks=callbacks, loggers=loggers, progress=False).fit(make_task(), BATCHES)


def paint(task: Any) -> Tensor:
    """Draw from the global state and overshoot the range."""
    return torch.randn(2, 3, 4, 4) * 3


def test_pictures_go_to_the_loggers_and_the_folder(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(SampleGrid(paint, tmp_path / "new", every_n_epochs=2), epochs=5, recorder=recorder)
    assert [(name, step) for name, step, _ in recorder.images] == [("samples", 6), ("samples", 12), ("samples", 15)]
    assert all(images.min() >= 0 and images.max() <= 1 for _, _, images in recorder.images)
    assert sorted(path.name for path in tmp_path.glob("new/*")) == ["epoch-001.png", "epoch-003.png", "epoch-004.png"]


def test_images_of_another_range_are_mapped_for_the_loggers() -> None:
    class Log(Callback):
        def on_fit_end(self, run: Run) -> None:
            images = torch.tensor([-2.0, -1.0, 0.0, 1.0]).expand(1, 3, 1, 4)
            run.log_images("wide", images, value_range=(-1, 1))
            run.log_images("bytes", images.byte(), value_range=(-1, 1))
            for wrong in ((1, -1), (0, 1, 2)):
                with pytest.raises(ValueError, match=r"value_range=\(.*\) must be \(low, high\), such as"):
                    run.log_images("wrong", images, value_range=wrong)  # type: ignore[arg-type]

    recorder = Recorder()
    fit(Log(), epochs=1, recorder=recorder)
    (_, _, wide), (_, _, whole) = recorder.images
    assert wide[0, 0, 0].tolist() == [0, 0, 0.5, 1]
    assert whole.dtype == torch.uint8


def test_the_last_picture_is_made_once() -> None:
    recorder = Recorder()
    fit(SampleGrid(paint, every_n_epochs=2), epochs=4, recorder=recorder)
    fit(SampleGrid(paint, every_n_epochs=2), epochs=0, recorder=recorder)
    assert [step for _, step, _ in recorder.images] == [6, 12]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(SampleGrid(paint))
    assert not list(tmp_path.iterdir())


def test_training_does_not_notice() -> None:
    with_grid, without = fit(SampleGrid(paint)), fit()
    for name, tensor in without.task.state_dict().items():
        assert torch.equal(with_grid.task.state_dict()[name], tensor)


def test_networks_are_in_evaluation_mode_without_gradients_and_the_averaged_ones_if_asked() -> None:
    seen: list[Any] = []

    def look(task: Any) -> Tensor:
        seen.append((task.model, task.model.training, torch.is_grad_enabled()))
        return torch.zeros(1, 3, 4, 4)

    average = ExponentialMovingAverage(0.9)
    run = fit(SampleGrid(look, average=average), average, SampleGrid(look), epochs=1)
    assert average.averaged is not None
    assert [item[0] for item in seen] == [average.averaged.module.get_submodule("model"), run.task.model]
    assert not any(training or grad for _, training, grad in seen)


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="sample is None; give a function of the task that returns images"):
        SampleGrid(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every_n_epochs=0 must be at least 1"):
        SampleGrid(paint, every_n_epochs=0)
    with pytest.raises(TypeError, match="average is a int; give the callback, such as ExponentialMovingAverage"):
        SampleGrid(paint, average=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"sample gives list of \['int'\]; it must return a tensor of images \(B, C, H"):
        fit(SampleGrid(lambda task: [1]), epochs=1)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="average is none of the Trainer's callbacks, so it averages nothing"):
        fit(SampleGrid(paint, average=ExponentialMovingAverage(0.9)), ExponentialMovingAverage(0.9), epochs=1)


def test_pictures_go_through_no_link_inside_the_folder_of_a_run(tmp_path: Path) -> None:
    outside, disk, run = tmp_path / "outside", tmp_path / "disk", tmp_path / "run"
    outside.mkdir()
    disk.mkdir()
    run.symlink_to(disk)  # the user's own, to another disk
    fit(SampleGrid(paint, run / "samples"), ModelCheckpoint(run), epochs=1)
    assert [path.name for path in (disk / "samples").iterdir()] == ["epoch-000.png"]
    (disk / "planted").symlink_to(outside)
    for folder in (run / "planted", run / "planted" / "samples"):
        with pytest.raises(ValueError, match="planted is a link inside the folder of a run; remove it"):
            fit(SampleGrid(paint, folder), ModelCheckpoint(run))
    assert not list(outside.iterdir())
    with pytest.warns(UserWarning, match="of another run"):  # a folder that is named by itself is the user's choice
        fit(SampleGrid(paint, disk / "planted"), ModelCheckpoint(run), epochs=1)
    assert [path.name for path in outside.iterdir()] == ["epoch-000.png"]
