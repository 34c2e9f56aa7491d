"""SIGTERM and Ctrl-C: noted, acted on after the update, saved, and the exit code of the signal."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.training import Callback, ClassificationTask, ModelCheckpoint, Run, Trainer, interrupts, load_checkpoint
from cifarkit.training.interrupts import Interrupted, InterruptGuard


class Send(Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_end(self, run: Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


def tiny_fit(*callbacks: Callback, resume: Path | None = None, progress: bool = False, **settings: Any) -> Run:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 4, 4), torch.randint(10, (8,))) for _ in range(3)]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 10))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    trainer = Trainer(max_epochs=3, callbacks=callbacks, progress=progress, **settings)
    return trainer.fit(task, batches, batches, resume=resume)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 3, 9])  # in mid-epoch, at an epoch's end, at the very end
def test_a_signal_finishes_the_update_and_saves(number: signal.Signals, code: int, step: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        tiny_fit(ModelCheckpoint(tmp_path), Send(number, step))
    assert left.value.code == code
    assert signal.getsignal(number) == before
    assert load_checkpoint(tmp_path / "last.pt")["run"]["step"] == step
    resumed, whole = tiny_fit(resume=tmp_path / "last.pt"), tiny_fit()
    assert resumed.step == whole.step == 9
    for name, weight in whole.task.state_dict().items():
        assert torch.equal(weight, resumed.task.state_dict()[name])
    assert [row["val_loss"] for row in resumed.history] == [row["val_loss"] for row in whole.history]


@pytest.mark.parametrize("max_steps", [2, 3])  # within the epoch, and at its end
def test_a_signal_in_the_last_validation_leaves_it_to_the_resume(
    max_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ClassificationTask.evaluate

    def interrupted(task: ClassificationTask, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, batch)

    whole = tiny_fit(max_steps=max_steps)
    monkeypatch.setattr(ClassificationTask, "evaluate", interrupted)
    with pytest.raises(SystemExit):
        tiny_fit(ModelCheckpoint(tmp_path, "val_acc"), max_steps=max_steps)
    monkeypatch.undo()
    resumed = tiny_fit(ModelCheckpoint(tmp_path, "val_acc"), max_steps=max_steps, resume=tmp_path / "last.pt")
    assert [(row["step"], row["val_loss"]) for row in resumed.history] == [(max_steps, whole.history[0]["val_loss"])]
    assert (resumed.epoch, resumed.batches) == (whole.epoch, whole.batches)
    assert (tmp_path / "best.pt").exists()


def test_ctrl_c_in_an_interactive_interpreter_leaves_it_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(ModelCheckpoint(tmp_path), Send(signal.SIGINT, 4))
    assert load_checkpoint(tmp_path / "last.pt")["run"]["step"] == 4
    with pytest.raises(SystemExit):
        tiny_fit(Send(signal.SIGTERM, 4))


def test_a_process_leaves_with_143_and_its_run_resumes(tmp_path: Path) -> None:
    program = (
        "import sys; from test_interrupts import *; tiny_fit(ModelCheckpoint(sys.argv[1]), Send(15, 4), progress=True)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", program, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert killed.returncode == 143, killed.stderr
    advice = f"go on with resume='{tmp_path / 'last.pt'}'"
    assert killed.stdout.splitlines()[-1] == f"stopped at step 4: SIGTERM was received; {advice}"
    assert "Traceback" not in killed.stderr
    resumed, whole = tiny_fit(resume=tmp_path / "last.pt"), tiny_fit()
    assert resumed.step == 9
    torch.testing.assert_close(resumed.task.state_dict(), whole.task.state_dict())  # threads may differ there


IN_A_GROUP = """
import os, signal, sys, time, torch
from torch import nn
from cifarkit.training import Callback, ClassificationTask, ModelCheckpoint, Trainer

folder, when = sys.argv[1:]

class Images(torch.utils.data.Dataset):
    seen = 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.seen += 1
        if self.seen == {"waiting": 5, "the beginning": 1}.get(when):
            os.killpg(0, signal.SIGTERM)  # by the worker, while the loop waits for its batch
        return torch.full((3, 4, 4), float(index)), index

class Send(Callback):
    def on_step_end(self, run):
        if run.step == 2 and when == "training":
            os.killpg(0, signal.SIGTERM)  # to the worker, too, as systemd and Slurm do
            time.sleep(0.5)

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 10))
task = ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.01))
loader = torch.utils.data.DataLoader(Images(), 2, shuffle=True, num_workers=1, prefetch_factor=1)
callbacks = [ModelCheckpoint(folder), Send()]
epochs = 1 if when == "first" else 2
Trainer(max_epochs=epochs, callbacks=callbacks, progress=False).fit(task, loader, resume="auto")
"""


def in_a_group(folder: Path, when: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IN_A_GROUP, str(folder), when]
    return subprocess.run(command, start_new_session=True, timeout=120, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert in_a_group(folder, "never").returncode == 0
    return folder


@pytest.mark.parametrize(("when", "step"), [("training", 2), ("waiting", 2), ("the beginning", 4)])
def test_a_signal_to_all_processes_ends_no_update_by_the_death_of_a_worker(
    when: str, step: int, undisturbed: Path, tmp_path: Path
) -> None:
    if when == "the beginning":  # of the second epoch
        assert in_a_group(tmp_path, "first").returncode == 0
    ended = in_a_group(tmp_path, when)
    assert ended.returncode == (-signal.SIGTERM if when == "the beginning" else 143), ended.stderr  # as a shell, 143
    assert "race condition" not in ended.stderr
    assert load_checkpoint(tmp_path / "last.pt")["run"]["step"] == step
    assert in_a_group(tmp_path, "never").returncode == 0
    weights, expected = (load_checkpoint(folder / "last.pt")["task"] for folder in (tmp_path, undisturbed))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_an_error_is_shown_before_the_signal_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)

    def fail() -> None:
        with InterruptGuard():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("no power")

    with pytest.raises(ValueError, match="no power"):
        fail()
    assert raised == [signal.SIGTERM]
    assert "ValueError: no power" in capsys.readouterr().err


@pytest.fixture
def foreground() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt: a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
def test_the_second_signal_acts_at_once() -> None:
    with InterruptGuard() as guard:
        guard.check()
        assert guard.name == "no signal"
        os.kill(os.getpid(), signal.SIGINT)
        assert (guard.name, guard.exit_code) == ("SIGINT", 130)
        with pytest.raises(Interrupted):
            guard.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_sigterm_that_is_handed_on_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(signal, "raise_signal", lambda number: acted.append(number))
    acted: list[int] = []
    with InterruptGuard() as guard:
        guard.signal_number = signal.SIGTERM  # as heed notes that of another rank
        for clock[0] in (100.0, 100.9, 101.2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert acted == ([signal.SIGTERM] if clock[0] > 101 else [])
        with pytest.raises(Interrupted):
            guard.check()


def test_other_threads_have_no_guard() -> None:
    handlers: list[object] = []

    def train() -> None:
        with InterruptGuard() as guard:
            guard.check()
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert handlers == [before]
