"""A run that was stopped anywhere continues bit for bit, also after kill -9; as a script, this file is such a run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import Draws, RngState
from cifarkit.training import (
    Callback,
    ClassificationTask,
    CSVLogger,
    EarlyStopping,
    ExponentialMovingAverage,
    ModelCheckpoint,
    Run,
    StochasticWeightAveraging,
    Trainer,
    load_checkpoint,
    save_weights,
)
from cifarkit.training.averaging import WeightAveraging
from cifarkit.training.checkpoint import write_checkpoint
from cifarkit.training.resuming import unbounded_buffers
from cifarkit.training.schedules import cosine

pytestmark = pytest.mark.filterwarnings("ignore:this processor has no bf16", "ignore:fp16-mixed is meant for GPUs")


class TinyNet(nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        conv, norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        super().__init__(conv, norm, nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(width * 4, 3))


def pictures(count: int) -> ImageDataset:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 3, (count,), generator=generator)
    pixels = torch.randint(0, 80, (count, 3, 4, 4), generator=generator) + 80 * labels[:, None, None, None]
    return ImageDataset(pixels.byte(), labels, ("a", "b", "c"))


def jitter(images: Tensor, draws: Draws) -> Tensor:
    return images + 0.3 * draws.normal(*images.shape[1:])


def mix(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix pairs by every global random state there is."""
    share = random.random() * np.random.rand()
    order = torch.randperm(len(images))
    targets = F.one_hot(labels, num_classes).float()
    return images.lerp(images[order], share), targets.lerp(targets[order], share)


def make_task(width: int = 4, learning_rate: float = 0.02) -> ClassificationTask:
    model = TinyNet(width)
    return ClassificationTask(model, torch.optim.AdamW(model.parameters(), learning_rate), mix=mix, label_smoothing=0.1)


def fit(
    callbacks: Iterable[Callback] = (),
    *,
    seed: int = 0,
    epochs: int = 6,
    resume: Any = None,
    train_loader: Any = None,
    **options: Any,
) -> Run:
    """Train from a seed; a resumed run is given another one, so that all it repeats is from the checkpoint."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"schedule": cosine(0.2), "log_every_n_steps": 2, "progress": False} | options
    batches = train_loader if train_loader is not None else Loader(pictures(36), 8, transform=jitter, shuffle=True)
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), **settings)
    return trainer.fit(make_task(), batches, Loader(pictures(10), 8), resume=resume)


def averages() -> list[Callback]:
    return [StochasticWeightAveraging(0.01, start=0.3), ExponentialMovingAverage(0.9)]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: Run) -> None:
        if run.step == self.step:
            run.stop("far enough")


class Snapshots(Callback):
    """Copy last.pt, which an update has just written, under the number of the update."""

    order = 120

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, run: Run) -> None:
        shutil.copyfile(self.folder / "last.pt", self.folder / f"{run.step}.pt")


def outcome(run: Run) -> dict[str, Any]:
    """Return all that two equal runs have in common."""
    clocks = ("seconds", "images_per_second")
    return {
        "task": run.task.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.task.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in run.scalers.items()},
        "history": [{name: value for name, value in row.items() if name not in clocks} for row in run.history],
        "counters": [run.step, run.epoch, run.images, run.batches, run.stopped_because],
        "averages": [callback.state_dict() for callback in run.callbacks if isinstance(callback, WeightAveraging)],
        "rng": RngState.capture().state_dict(),
    }


def assert_same(first: Any, second: Any, path: str = "run") -> None:
    """Compare nested states; tensors bit for bit."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (ours, theirs) in enumerate(zip(first, second, strict=True)):
            assert_same(ours, theirs, f"{path}[{index}]")
    else:
        assert first == second, path


# Epochs.


@pytest.mark.parametrize(
    ("options", "make_callbacks"),
    [
        ({}, list),
        ({}, averages),
        ({}, lambda: [EarlyStopping("train_loss", "max", patience=4), *averages()]),
        ({"accumulate_grad_batches": {0: 1, 2: 3}, "gradient_clip_val": 0.5}, averages),
        ({"precision": "bf16-mixed"}, averages),
        ({"precision": "fp16-mixed", "accumulate_grad_batches": 2}, averages),
        ({"precision": "fp16-mixed", "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, list),
    ],
    ids=["plain", "averages", "early-stopping", "accumulation", "bf16", "fp16-accumulation", "fp16-clip"],
)
def test_three_epochs_and_three_more_are_six(
    options: dict[str, Any], make_callbacks: Callable[[], list[Callback]], tmp_path: Path
) -> None:
    whole = outcome(fit(make_callbacks(), **options))
    if any(isinstance(callback, EarlyStopping) for callback in make_callbacks()):
        assert whole["counters"][4] is not None
        assert len(whole["history"]) < 6

    class StopAfterThree(Callback):
        def on_epoch_end(self, run: Run) -> None:
            if run.epoch == 3:
                run.stop("far enough")

    first = fit([*make_callbacks(), ModelCheckpoint(tmp_path), StopAfterThree()], **options)
    assert first.epoch == 3
    second = fit(make_callbacks(), seed=99, resume=tmp_path / "last.pt", **options)
    assert second.resumed
    assert_same(outcome(second), whole)


def test_max_epochs_may_be_raised(tmp_path: Path) -> None:
    schedule: dict[str, Any] = {"schedule": lambda progress: 1.0}
    fit([ModelCheckpoint(tmp_path)], epochs=3, **schedule)
    assert_same(outcome(fit(seed=99, resume=tmp_path, **schedule)), outcome(fit(**schedule)))


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    whole = fit([ModelCheckpoint(tmp_path)], epochs=2)
    again = fit([ModelCheckpoint(tmp_path)], epochs=2, seed=99, resume="auto")
    assert again.step == whole.step
    assert_same(dict(again.task.state_dict()), dict(whole.task.state_dict()))


def test_auto_starts_anew_and_then_goes_on(tmp_path: Path) -> None:
    first = fit([ModelCheckpoint(tmp_path), StopAt(9)], resume="auto")
    assert not first.resumed
    second = fit([ModelCheckpoint(tmp_path)], resume="auto")
    assert second.resumed
    assert_same(outcome(second), outcome(fit()))


def test_the_best_file_is_remembered(tmp_path: Path) -> None:
    whole, first, second = (ModelCheckpoint(tmp_path / name, "val_loss", "min", 2) for name in ("a", "b", "b"))
    fit([whole])
    fit([first, StopAt(13)])
    fit([second], resume="auto", seed=99)
    assert second.best[-1][0] <= first.best[-1][0]
    assert second.best == whole.best
    assert {path.name for path in (tmp_path / "b").iterdir()} >= {name for _, name in second.best}


@pytest.mark.parametrize(
    "shapes", [{"one": (), "two": (), "kernel": (2, 2)}, {"spectrum": (2,), "bias": (2,), "kernel": (2, 2)}]
)
def test_parameters_that_are_scalars_or_complex_are_resumed(shapes: dict[str, Any], tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in shapes.items():
                dtype = torch.complex64 if name == "spectrum" else torch.float32
                self.register_parameter(name, nn.Parameter(torch.ones(shape, dtype=dtype)))

        def forward(self, images: Tensor) -> Tensor:
            total = sum((parameter.abs().sum() for parameter in self.parameters()), torch.tensor(0.0))
            return images.flatten(1)[:, :2] * total

    batches = [(torch.ones(2, 3, 2, 2), torch.tensor([0, 1]))]
    for epochs in (1, 2):
        model = Net()
        task = ClassificationTask(model, torch.optim.AdamW(model.parameters(), 0.1), num_classes=2)
        callbacks = [ExponentialMovingAverage(0.9), ModelCheckpoint(tmp_path)]
        run = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False).fit(task, batches, resume="auto")
        assert (run.step, run.resumed) == (epochs, epochs == 2)


# The middle of an epoch.


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "fp16-mixed"}],
    ids=["plain", "accumulation", "fp16"],
)
def test_every_update_is_a_good_place_to_be_killed(options: dict[str, Any], tmp_path: Path) -> None:
    whole = fit(averages(), epochs=2, **options)
    expected = outcome(whole)
    fit([*averages(), ModelCheckpoint(tmp_path, every_n_steps=1), Snapshots(tmp_path)], epochs=2, **options)
    steps = sorted(int(path.stem) for path in tmp_path.glob("[0-9]*.pt"))
    assert steps == list(range(1, whole.step + 1))
    for step in steps:
        resumed = fit(averages(), epochs=2, seed=99, resume=tmp_path / f"{step}.pt", **options)
        assert_same(outcome(resumed), expected, f"resumed after {step} updates")


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_run_stopped_in_the_middle_of_an_epoch_completes_it(step: int, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [*averages(), EarlyStopping("val_loss", patience=3)]

    whole = fit(callbacks(), epochs=4)
    first = fit([*callbacks(), StopAt(step), ModelCheckpoint(tmp_path, "val_loss", "min")], epochs=4)
    assert first.history[-1]["step"] == step  # the part of an epoch has a row, which the resume writes anew
    assert_same(outcome(fit(callbacks(), epochs=4, seed=99, resume=tmp_path)), outcome(whole))


@pytest.mark.parametrize("source", ["cifarkit", "torch"])
@pytest.mark.parametrize("max_steps", [7, 10])  # within the second epoch, and at its end
def test_a_kill_after_the_last_update_leaves_the_end_of_its_epoch(max_steps: int, source: str, tmp_path: Path) -> None:
    def train(*callbacks: Callback, **options: Any) -> Run:
        own = Loader(pictures(36), 8, transform=jitter, shuffle=True)
        loader = own if source == "cifarkit" else DataLoader(NoisyPictures([]), batch_size=4, shuffle=True)
        return fit([*averages(), *callbacks], train_loader=loader, max_steps=max_steps, **options)

    expected = outcome(train(ModelCheckpoint(tmp_path, every_n_steps=1), Snapshots(tmp_path)))
    assert expected["history"][-1].keys() >= {"val_loss", "val_loss_swa" if max_steps == 10 else "val_loss_ema"}
    for checkpoint in (tmp_path / f"{max_steps}.pt", tmp_path / "last.pt"):  # before its end, and after
        assert_same(outcome(train(seed=99, resume=checkpoint)), expected, checkpoint.name)


def test_a_finished_run_keeps_the_row_of_its_last_part(tmp_path: Path) -> None:
    def train(**options: Any) -> Run:
        callbacks = [ModelCheckpoint(tmp_path, "val_acc")]
        return fit(callbacks, resume="auto", loggers=[CSVLogger(tmp_path)], **options)

    rows, table = train(max_steps=7).history, (tmp_path / "metrics.csv").read_text()
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 5), (1, 7)]
    assert train(max_steps=7).history == rows
    assert (tmp_path / "metrics.csv").read_text() == table
    assert [(row["epoch"], row["step"]) for row in train(max_steps=12).history] == [(0, 5), (1, 10), (2, 12)]


# Loaders that keep no state.


class NoisyPictures(Dataset[Any]):
    """A dataset that draws from the global random state, as torchvision's transforms do."""

    def __init__(self, log: list[int]) -> None:
        self.data, self.log = pictures(18), log

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.log.append(index)
        image, label = self.data[index]
        return image / 255 + 0.1 * torch.randn(image.shape), label


@pytest.mark.parametrize("source", ["torch", "list"])
def test_another_loader_goes_on_in_the_same_order(source: str, tmp_path: Path) -> None:
    log: list[int] = []

    def batches() -> Any:
        log.clear()
        if source == "torch":
            return DataLoader(NoisyPictures(log), batch_size=4, shuffle=True)
        return list(Loader(pictures(18), 4, transform=jitter))

    def train(callbacks: Iterable[Callback] = (), **options: Any) -> Run:
        return fit(callbacks, epochs=3, train_loader=batches(), **options)

    expected, order = outcome(train()), list(log)
    train([ModelCheckpoint(tmp_path, every_n_steps=1), Snapshots(tmp_path)])
    for step in (1, 4, 5, 7, 12, 15):
        assert_same(outcome(train(seed=99, resume=tmp_path / f"{step}.pt")), expected, f"resumed after {step} updates")
        begun = (step - 1) // 5  # the epoch the update belongs to, whose used batches are drawn again
        assert log == order[18 * begun :]


# What is of a kind of its own.


def masked_task() -> ClassificationTask:
    task = make_task()
    task.model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return task


def test_a_mask_of_minus_infinity_is_saved_and_taken_up(tmp_path: Path) -> None:
    def train(max_steps: int) -> Run:
        callbacks = [*averages(), ModelCheckpoint(tmp_path)]
        loader = Loader(pictures(36), 8, shuffle=True)
        trainer = Trainer(max_steps=max_steps, callbacks=callbacks, progress=False)
        return trainer.fit(masked_task(), loader, loader, resume="auto")

    train(8)
    assert train(12).step == 12


def test_lost_statistics_are_not_taken_for_unbounded_by_design() -> None:
    task = masked_task()
    task.model.get_buffer("1.running_var").fill_(torch.inf)
    assert unbounded_buffers(task) == {"model.mask"}


@pytest.mark.parametrize(("gone", "message"), [(("monitor", "mode"), None), (("mode",), r"\['mode'\] is missing")])
def test_a_checkpoint_that_does_not_say_what_was_watched_goes_on(
    gone: tuple[str, ...], message: str | None, tmp_path: Path
) -> None:
    def train(**options: Any) -> tuple[ModelCheckpoint, EarlyStopping]:
        saver, stopper = ModelCheckpoint(tmp_path / "a", "val_loss", "min"), EarlyStopping("val_loss")
        fit([saver, stopper], **options)
        return saver, stopper

    saver, stopper = train(epochs=1)
    state = load_checkpoint(saver.last_path)
    for item in state["callbacks"]:
        item["state"] = {name: value for name, value in item["state"].items() if name not in gone}
    write_checkpoint(state, tmp_path / "old.pt")
    if message is None:
        again = train(epochs=1, resume=tmp_path / "old.pt")
        assert (again[0].best, again[1].best) == (saver.best, stopper.best)
    else:
        with pytest.raises(ValueError, match=message):
            train(epochs=1, resume=tmp_path / "old.pt")


# What does not fit.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit([ModelCheckpoint(folder)], epochs=1)
    return folder / "last.pt"


def resume(task: ClassificationTask, path: Any) -> Run:
    loader = Loader(pictures(36), 8, transform=jitter, shuffle=True)
    return Trainer(max_epochs=2, progress=False).fit(task, loader, resume=path)


def test_a_run_goes_on_with_another_batch_size(tmp_path: Path) -> None:
    def run_with(batch_size: int, **settings: Any) -> Run:
        loader = Loader(pictures(64), batch_size, shuffle=True)
        trainer = Trainer(progress=False, callbacks=[ModelCheckpoint(tmp_path)], **settings)
        return trainer.fit(make_task(), loader, resume="auto")

    assert run_with(16, max_steps=2).batches_left == 2
    resumed = run_with(8, max_epochs=1)
    assert (resumed.step, resumed.epoch, resumed.images) == (2 + 4, 1, 64)
    assert "grad_norm" in resumed.metrics  # the last update of the epoch was a log step


def test_the_checkpoint_of_another_model_is_named(checkpoint: Path) -> None:
    message = (
        r"belongs to another model: 'model\.0\.weight' has shape \(4, 3, 3, 3\) there and \(5, 3, 3, 3\) in this task"
    )
    with pytest.raises(ValueError, match=message):
        resume(make_task(width=5), checkpoint)
    deeper = make_task()
    deeper.critic = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'critic\.weight' is only in this task; build the task that wrote"):
        resume(deeper, checkpoint)
    model = nn.Sequential(*list(TinyNet())[:2], nn.Flatten())
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"'model\.5\.weight' is only in the checkpoint; .* load_weights"):
        resume(task, checkpoint)


def test_a_refused_checkpoint_changes_nothing(checkpoint: Path) -> None:
    task = make_task(width=5)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(ValueError, match="another model"):
        resume(task, checkpoint)
    assert_same(dict(task.state_dict()), before)
    assert task.optimizers["model"].param_groups[0]["lr"] == 0.02


def test_a_missing_optimizer_is_named(checkpoint: Path) -> None:
    task = make_task()
    task.optimizers["critic"] = torch.optim.SGD(task.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"'critic' is None there and \('SGD', \[6\]\) here"):
        resume(task, checkpoint)


def test_a_file_of_weights_is_no_run(tmp_path: Path) -> None:
    save_weights(TinyNet(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is of no run and cannot be resumed; if it holds weights, use load_weights"):
        resume(make_task(), tmp_path / "weights.pt")


def test_a_path_that_is_missing_or_damaged_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"resume='.*absent\.pt': there is no checkpoint"):
        resume(make_task(), tmp_path / "absent.pt")
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.pt is damaged"):
        resume(make_task(), tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="resume='auto' needs a ModelCheckpoint"):
        resume(make_task(), "auto")


def test_a_position_in_other_data_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="the saved position has samples_in_dataset=36, this loader 20"):
        Trainer(max_epochs=2, progress=False).fit(make_task(), Loader(pictures(20), 8, shuffle=True), resume=checkpoint)


def test_a_checkpoint_says_what_made_it(checkpoint: Path) -> None:
    state = load_checkpoint(checkpoint)
    assert state["format_version"] == 1
    assert state["config"]["environment"]["torch"] == str(torch.__version__)
    assert state["config"]["task"]["class"] == "ClassificationTask"
    assert state["config"]["task"]["label_smoothing"] == 0.1
    assert torch.load(checkpoint, weights_only=True)["run"]["step"] == 5


def test_other_settings_are_logged(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(resume=checkpoint, epochs=7, gradient_clip_val=0.5)
    line, dropped = [record.getMessage() for record in caplog.records]
    assert dropped == "the checkpoint holds the states of callbacks that this run has not: 'ModelCheckpoint'"
    assert line.startswith("the run goes on with other settings than it was saved with: max_epochs was 1 and is 7")
    assert "gradient_clip_val was None and is 0.5" in line


def test_the_rates_of_the_checkpoint_are_kept_and_logged(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = make_task(learning_rate=0.5)
    loader = Loader(pictures(36), 8, transform=jitter, shuffle=True)
    Trainer(max_steps=6, progress=False).fit(task, loader, resume=checkpoint)
    assert task.optimizers["model"].param_groups[0]["lr"] == 0.02
    kept = "the settings of the checkpoint are kept: optimizers.model.groups.0.lr is 0.02, not 0.5"
    assert kept in [record.getMessage() for record in caplog.records]


def test_equal_settings_are_not_mentioned(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit([ModelCheckpoint(checkpoint.parent)], resume=checkpoint, epochs=1)
    assert not caplog.records


def test_settings_that_are_no_settings_are_shown_as_what_they_are(checkpoint: Path, caplog: Any) -> None:
    state, nested = load_checkpoint(checkpoint), dict[str, Any]()
    nested["again"] = nested
    state["config"] |= {"max_epochs": torch.zeros(3), "schedule": "\x1b]0;title\x07", "loader": nested, "task": [1]}
    torch.save(state, checkpoint.with_name("odd.pt"))
    fit(resume=checkpoint.with_name("odd.pt"), epochs=1)
    text = caplog.records[0].getMessage()
    assert "max_epochs was a Tensor and is 1" in text
    assert "\x1b" not in text


# kill -9.


def in_a_child(work: Callable[[], None], kill_after_seconds: float | None = None) -> bool:
    """Do the work in a forked process, killed after a while, and tell whether it came to its end.

    A fork has Python and PyTorch loaded already, so it starts in milliseconds.
    """
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return os.WIFEXITED(status)


def train_to_the_end(folder: Path) -> None:
    """Train, or go on where a killed process left off, and write what came out."""
    try:
        checkpoint = ModelCheckpoint(folder, "val_acc", every_n_steps=1 + os.getpid() % 2)
        run = fit([*averages(), checkpoint], epochs=4, resume="auto", accumulate_grad_batches={0: 1, 2: 2})
        write_checkpoint(outcome(run), folder / "outcome.pt")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def kill_at_random_moments(folder: Path, kills: int) -> None:
    """Train once undisturbed, then again and again under fire until so many processes have been killed."""
    start = time.perf_counter()
    assert in_a_child(lambda: train_to_the_end(folder / "undisturbed"))
    whole, delays, killed, runs = time.perf_counter() - start, random.Random(), 0, 0
    while killed < kills:
        shot, runs = folder / f"shot-{runs}", runs + 1
        while not (shot / "outcome.pt").exists():
            delay = delays.uniform(0, whole / 3) if killed < kills else None
            killed += not in_a_child(lambda: train_to_the_end(shot), delay)  # noqa: B023  (called at once)
    print(f"{killed} kills in {runs} runs of {whole:.2f} seconds")


def outcomes(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("shot-*/outcome.pt")):
        yield load_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start a process in milliseconds")
def test_kill_9_at_twenty_random_moments(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    undisturbed, survivors = load_checkpoint(tmp_path / "undisturbed" / "outcome.pt"), list(outcomes(tmp_path))
    assert survivors
    for survivor in survivors:
        assert_same(survivor, undisturbed, done.stdout)
    for folder in tmp_path.iterdir():
        assert {path.name for path in folder.iterdir()} == {"last.pt", "best.pt", "outcome.pt"}


if __name__ == "__main__":
    kill_at_random_moments(Path(sys.argv[1]), int(sys.argv[2]))
