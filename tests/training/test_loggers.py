"""Loggers: what stands in their files, after a clean run, a crash and a resume."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifarkit.training import CSVLogger, Logger, TensorBoardLogger, WandbLogger, run_folder


def stub_run(**changes: Any) -> Any:
    values = {"history": [], "metrics": {}, "step": 0, "epoch": 0, "stopped_because": None, "resumed": False}
    return SimpleNamespace(**values | {"config": {"seed": 0, "max_epochs": 4}, "task": nn.Linear(2, 2)} | changes)


def train(logger: Logger, run: Any, epochs: int, *, kill_at: int | None = None) -> Any:
    """Play a run of four updates an epoch, a log step every second one; a killed run is never closed."""
    logger.start(run)
    while run.epoch < epochs:
        while run.step < 4 * run.epoch + 4:
            run.step += 1
            if run.step % 2 == 0:
                logger.log({"train_loss": 1 / run.step, "lr": 0.1}, run.step)
            if run.step == kill_at:
                return run
        run.epoch += 1
        run.history.append({"epoch": run.epoch - 1, "train_loss": 1 / run.step, "val_acc": 0.5})
        logger.log_epoch(run)
    logger.close(run)
    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_base_logger_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger, run = Logger(), stub_run()
    train(logger, run, 1)
    logger.log_images("samples", torch.zeros(1, 3, 4, 4), 1)
    assert [*tmp_path.iterdir()] == []


def test_run_folders_are_never_shared(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: run_folder("try", tmp_path / "runs"), range(16)))
    assert len(set(folders)) == 16
    assert all(folder.is_dir() for folder in folders)
    plain = min(folders, key=lambda folder: len(folder.name))
    assert plain.name.count("-") == 3
    assert plain.name.endswith("-try")
    assert plain.with_name(f"{plain.name}-16").is_dir()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_run_folder_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder name"):
        run_folder(name, tmp_path)


def test_csv_files(tmp_path: Path) -> None:
    logger, run = CSVLogger(tmp_path / "run"), stub_run()
    logger.start(run)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == run.config
    run = train(CSVLogger(tmp_path / "other"), run, 2)
    assert names_in(tmp_path / "other") == {"metrics.csv", "steps.csv", "config.json"}
    assert [row["step"] for row in rows_of(tmp_path / "other" / "steps.csv")] == ["2", "4", "6", "8"]
    assert (tmp_path / "other" / "steps.csv").read_text().startswith("step,train_loss,lr\n2,0.5,0.1\n")
    assert (tmp_path / "other" / "metrics.csv").read_text() == (
        "epoch,train_loss,val_acc,stopped_because\n0,0.25,0.5,\n1,0.125,0.5,\n"
    )


def test_csv_takes_late_columns_and_the_reason(tmp_path: Path) -> None:
    logger, run = CSVLogger(tmp_path), stub_run()
    logger.start(run)
    logger.log({"train_loss": 1.0}, 1)
    logger.log({"train_loss": 0.5, "lr": 0.1}, 2)
    run.history += [{"epoch": 0, "val_acc": 0.1}, {"epoch": 1, "val_acc": None}]
    logger.log_epoch(run)
    run.history[-1]["val_acc_swa"] = 0.3
    run.stopped_because = 'val_acc did not rise, "patience" 5'
    logger.close(run)
    assert (tmp_path / "steps.csv").read_text() == "step,train_loss,lr\n1,1.0,\n2,0.5,0.1\n"
    first, last = rows_of(tmp_path / "metrics.csv")
    assert first == {"epoch": "0", "val_acc": "0.1", "val_acc_swa": "", "stopped_because": ""}
    assert last == {"epoch": "1", "val_acc": "", "val_acc_swa": "0.3", "stopped_because": run.stopped_because}
    assert "stopped_because" not in run.history[-1]


def test_csv_tells_why_a_run_stopped_in_its_first_epoch(tmp_path: Path) -> None:
    logger, run = CSVLogger(tmp_path), stub_run()
    logger.start(run)
    run.step, run.stopped_because = 3, "loss is nan at step 3"
    logger.close(run)
    assert rows_of(tmp_path / "metrics.csv") == [
        {"epoch": "0", "step": "3", "stopped_because": "loss is nan at step 3"}
    ]


@pytest.mark.parametrize("torn", ["", "10", "12,0.0833"])
def test_csv_of_a_resumed_run_equals_the_undisturbed_one(tmp_path: Path, torn: str) -> None:
    train(CSVLogger(tmp_path / "whole"), stub_run(), 4)
    cut = train(CSVLogger(tmp_path / "cut"), stub_run(), 4, kill_at=10)  # epoch 2 of 4
    with (tmp_path / "cut" / "steps.csv").open("a") as file:
        file.write(torn)  # what a kill may leave of a row
    resumed = stub_run(history=cut.history[:1], step=5, epoch=1, resumed=True)  # the checkpoint is older
    train(CSVLogger(tmp_path / "cut"), resumed, 4)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("content", ["epoch,lr\n1,0.1\n", "step,lr\nmany,0.1\n"])
def test_a_damaged_csv_of_a_resumed_run_is_named(tmp_path: Path, content: str) -> None:
    train(CSVLogger(tmp_path), stub_run(), 2)
    (tmp_path / "steps.csv").write_text(content)
    with pytest.raises(ValueError, match=r"steps\.csv is damaged: a row has no whole number as its step"):
        CSVLogger(tmp_path).start(stub_run(step=1, resumed=True))


def test_csv_resumed_before_its_first_row(tmp_path: Path) -> None:
    train(CSVLogger(tmp_path / "whole"), stub_run(), 2)
    train(CSVLogger(tmp_path / "cut"), stub_run(), 2, kill_at=3)
    train(CSVLogger(tmp_path / "cut"), stub_run(step=1, resumed=True), 2)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_csv_overwrites_no_older_run(tmp_path: Path) -> None:
    train(CSVLogger(tmp_path), stub_run(), 1)
    before = contents(tmp_path)
    logger = CSVLogger(tmp_path)
    train(logger, stub_run(config={"seed": 1}), 2)
    train(logger, stub_run(config={"seed": 2}), 1, kill_at=1)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(rows_of(tmp_path / "metrics-2.csv")) == 2
    assert json.loads((tmp_path / "config-3.json").read_text()) == {"seed": 2}
    train(CSVLogger(tmp_path), stub_run(config={"seed": 2}, resumed=True), 1)
    assert len(names_in(tmp_path)) == 9  # three runs of three files: the resumed one went on in its own


def test_csv_failures_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="call start"):
        CSVLogger(tmp_path).log({"lr": 0.1}, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        CSVLogger(tmp_path / "file").start(stub_run())
    logger, run = CSVLogger(tmp_path / "run"), stub_run()
    train(logger, run, 1, kill_at=1)
    run.history.append({"epoch": 0})

    def fail(_: int) -> None:
        raise OSError("disk full")

    logger.log_epoch(run)
    whole = contents(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", fail)
    run.history.append({"epoch": 1})
    with pytest.raises(OSError, match="disk full"):
        logger.log_epoch(run)
    assert contents(tmp_path / "run") == whole  # the old file is still whole, and no temporary one is left
    CSVLogger(tmp_path / "never").close(run)  # a logger that was not started has nothing to close


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def test_tensorboard_scalars_images_and_reason(tmp_path: Path) -> None:
    logger, run = TensorBoardLogger(tmp_path), stub_run()
    logger.start(run)
    logger.log({"lr": 0.5}, 2)
    run.step = 4
    run.history.append({"epoch": 0, "val_acc": 0.25, "val_loss": None})
    logger.log_epoch(run)
    assert scalars(tmp_path, "step/lr") == [(2, 0.5)]  # on the disk before the close
    logger.log_images("samples", torch.rand(10, 3, 8, 8), 4)
    run.history[-1]["val_acc_swa"] = 0.75
    run.stopped_because = "time is up"
    logger.close(run)
    logger.close(run)
    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) == {"step/lr", "epoch/epoch", "epoch/val_acc", "epoch/val_acc_swa"}
    assert scalars(tmp_path, "epoch/val_acc") == [(4, 0.25)]
    assert scalars(tmp_path, "epoch/val_acc_swa") == [(4, 0.75)]
    image = events.Images("samples")[0]
    assert (image.step, image.width, image.height) == (4, 4 * 9 + 1, 3 * 9 + 1)
    assert b"time is up" in events.Tensors("stopped_because/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    killed, run = TensorBoardLogger(tmp_path), stub_run()
    train(killed, run, 2, kill_at=7)
    killed._writer.close()
    train(TensorBoardLogger(tmp_path), stub_run(step=5, epoch=1, history=run.history[:1], resumed=True), 2)
    assert [step for step, _ in scalars(tmp_path, "step/train_loss")] == [2, 4, 6, 8]
    assert [step for step, _ in scalars(tmp_path, "epoch/val_acc")] == [4, 8]


def test_tensorboard_writes_no_older_epoch_again(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "val_acc": 0.5}, {"epoch": 1, "val_acc": 0.25}]
    logger, run = TensorBoardLogger(tmp_path), stub_run(step=6, epoch=1, history=rows, resumed=True)
    logger.start(run)
    del rows[-1]  # that of a part of an epoch, which goes as the epoch goes on
    logger.close(run)  # and the run is stopped again before its end
    assert "epoch/val_acc" not in read_events(tmp_path).Tags()["scalars"]


def test_tensorboard_keeps_runs_apart(tmp_path: Path) -> None:
    for epochs in (1, 2, 3):
        train(TensorBoardLogger(tmp_path), stub_run(), epochs)
    train(TensorBoardLogger(tmp_path), stub_run(step=12, epoch=3, resumed=True), 4)
    counts = [len(scalars(folder, "epoch/val_acc")) for folder in (tmp_path, tmp_path / "2", tmp_path / "3")]
    assert counts == [1, 2, 4]


def test_tensorboard_graph_leaves_the_run_alone(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3).eval()  # frozen: it must not be set back to training
    task = nn.Module()
    task.model = nn.Sequential(norm, nn.Dropout(), nn.Flatten(), nn.Linear(48, 2))
    logger, run = TensorBoardLogger(tmp_path, graph=True), stub_run(task=task, example_images=torch.rand(2, 3, 4, 4))
    state, modes = torch.get_rng_state(), [module.training for module in task.modules()]
    train(logger, run, 1)
    assert read_events(tmp_path).Tags()["graph"]
    assert [module.training for module in task.modules()] == modes
    assert norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 4, 4), ValueError, "images has shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), TypeError, "images must be a uint8 or float"),
        (torch.full((1, 3, 4, 4), -1.0), ValueError, r"outside \[0, 1\]"),
    ],
)
def test_images_are_checked(images: torch.Tensor, error: type, message: str, tmp_path: Path) -> None:
    logger, run = TensorBoardLogger(tmp_path), stub_run()
    logger.start(run)
    with pytest.raises(error, match=message):
        logger.log_images("samples", images, 0)
    logger.close(run)


class FakeWandb(ModuleType):
    """Remembers what it is told; its run is the module itself."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, str] = {}
        self.finished = 0

    def init(self, **settings: Any) -> Any:
        self.settings = settings
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, pixels: np.ndarray) -> tuple[int, ...]:  # noqa: N802 - the name of the real one
        return pixels.shape


def test_wandb_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logger, run = WandbLogger("cifar", name="first", folder=tmp_path / "w", tags=["a"]), stub_run()
    logger.start(run)
    logger.log({"lr": 0.5}, 2)
    run.step = 4
    run.history.append({"epoch": 0, "val_acc": 0.25, "note": "text"})
    logger.log_epoch(run)
    logger.log_images("samples", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 4)
    run.history[-1]["val_acc_swa"] = 0.5
    run.stopped_because = "time is up"
    logger.close(run)
    logger.close(run)
    assert fake.settings == {"project": "cifar", "name": "first", "dir": str(tmp_path / "w"), "mode": "offline",
                             "config": run.config, "tags": ["a"]}  # fmt: skip
    epoch = {"epoch/epoch": 0, "epoch/val_acc": 0.25}
    assert fake.lines == [
        (2, {"step/lr": 0.5}),
        (4, epoch),
        (4, {"samples": (19, 19, 3)}),
        (4, {"epoch/val_acc_swa": 0.5}),
    ]
    assert (fake.summary, fake.finished) == ({"stopped_because": "time is up"}, 1)
    assert (tmp_path / "w").is_dir()


def test_wandb_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mode='of' is unknown; give 'offline'"):
        WandbLogger("cifar", mode="of")
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import finds when the package is missing
    with pytest.raises(ImportError, match=r"pip install cifarkit\[wandb\]"):
        WandbLogger("cifar")


def test_wandb_offline_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    logger, run = WandbLogger("cifar", folder=tmp_path), stub_run()
    logger.start(run)
    logger.log_images("samples", torch.rand(4, 3, 8, 8), 0)
    logger.log({"lr": 0.1}, 1)
    run.history.append({"epoch": 0, "val_acc": 0.5})
    logger.log_epoch(run)
    logger.close(run)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples*.png"))


def test_importing_loggers_is_light() -> None:
    program = """
import sys
import cifarkit.training.loggers, cifarkit.training.trackers
print(sorted({"tensorboard", "wandb", "matplotlib"} & set(sys.modules)), "torch.utils.tensorboard" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] False"
