"""torchrun itself: a killed process is started again and goes on from the last checkpoint, also that of an example."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from test_distributed import classifier, fit, gan, loader

from cifarkit import seed_everything
from cifarkit.data import shapes
from cifarkit.training import Callback, ModelCheckpoint, Run, Task, distributed, load_checkpoint, run_folder

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are looked up in /proc")


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT), *filter(None, sys.path)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


# A script whose rank 1 kills itself.


class Kill(Callback):
    """Kill rank 1 once, when a checkpoint is two updates old."""

    def on_step_end(self, run: Run) -> None:
        if run.step == 6 and distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


TASKS: dict[str, Callable[[], Task]] = {"classifier": lambda: classifier(dropout=0.5), "gan": gan}


def train_until_killed(folder: Path, kind: str, *callbacks: Callback) -> None:
    seed_everything(1)
    saves = ModelCheckpoint(folder, every_n_steps=4)
    run = fit(TASKS[kind](), loader(8), None, saves, *callbacks, resume="auto")
    assert run.step == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_all_start_again_from_the_last_checkpoint(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys; from test_torchrun import *; "
        "train_until_killed(pathlib.Path(sys.argv[1]), sys.argv[2], *[Kill()][: len(sys.argv) - 3])"
    )
    for name, extra in (("killed", ["kill"]), ("whole", [])):
        command = [*TORCHRUN, str(script), str(tmp_path / name), kind, *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
        assert done.returncode == 0, done.stderr
        assert ("exitcode: -9" in done.stderr) == bool(extra)
    killed, whole = (load_checkpoint(tmp_path / name / "last.pt")["task"] for name in ("killed", "whole"))
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)


# The examples, as they are.


def rank_1_below(parent: int) -> int | None:
    """Return the process that torchrun started as rank 1, None if it does not run yet."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above = int(re.search(r"PPid:\s+(\d+)", (place / "status").read_text())[1])  # type: ignore[index]
            if above == parent and b"\0RANK=1\0" in b"\0" + (place / "environ").read_bytes():
                return int(place.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


def kill_rank_1_when(path: Path, command: Sequence[str], place: Path) -> str:
    """Start a command, kill its rank 1 once when a file is there, and return what it writes if it ends well."""
    with (place / "words").open("w+") as words:
        process = subprocess.Popen(command, cwd=place, stdout=words, stderr=words, env=environment())
        try:
            deadline = time.monotonic() + 200
            while not (path.exists() and (victim := rank_1_below(process.pid))):
                assert process.poll() is None, (place / "words").read_text()
                assert time.monotonic() < deadline, (place / "words").read_text()
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            code = process.wait(200)
        finally:
            process.terminate()  # which torchrun passes on to its workers
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    text = (place / "words").read_text()
    assert code == 0, text
    return text


SHORT = ["--data", "small.npz", "--epochs", "16", "--batch-size", "24", "--folder", "runs/fixed"]
EXAMPLES = {
    "train_classifier.py": [],
    "train_dcgan.py": ["--base-channels", "8", "--recipe", "plain"],
    "train_ddpm.py": ["--base-channels", "8", "--multipliers", "1", "1", "--every", "100"],
}


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_goes_on_in_its_folder_when_a_rank_is_killed(example: str, tmp_path: Path) -> None:
    shapes(120, size=16).save(tmp_path / "small.npz")
    folder = tmp_path / "runs" / "fixed"
    command = [*TORCHRUN, str(ROOT / "examples" / example), *SHORT, *EXAMPLES[example]]
    words = kill_rank_1_when(folder / "last.pt", command, tmp_path)
    assert re.search(r"exitcode\s*: -9", words)
    assert [path.name for path in folder.parent.iterdir()] == ["fixed"]
    assert not (folder / "metrics-2.csv").exists()  # which one that began from nothing would write
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [*range(16)]
    assert load_checkpoint(folder / "last.pt")["run"]["epoch"] == 16


@needs_proc
@pytest.mark.slow
def test_the_command_line_trains_with_two_processes(tmp_path: Path) -> None:
    for recipe in ("4-minutes", "ddpm"):
        command = [*TORCHRUN, "-m", "cifarkit", "train", "--tiny", "--recipe", recipe, "--folder", f"runs/{recipe}"]
        for _ in range(2 if recipe == "4-minutes" else 1):  # the second time it is over already
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment(), check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("report.html") == 1  # rank 0 alone speaks
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["4-minutes", "ddpm"]


@pytest.mark.slow
def test_on_the_command_line_rank_0_alone_needs_the_folder(tmp_path: Path) -> None:
    script = tmp_path / "apart.py"
    script.write_text(
        "import os, sys; from cifarkit import commands; own = os.environ['RANK']; "
        "os.makedirs(own, exist_ok=True); os.chdir(own); sys.exit(commands.main(sys.argv[1:]))"
    )
    for flags in (["--tiny", "--folder", "runs/two"], ["--tiny", "--folder", "runs/two"], ["--resume", "runs/two"]):
        command = [*TORCHRUN, str(script), "train", *flags]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment(), check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "0" / "runs" / "two" / "last.pt").exists()
    assert not [*(tmp_path / "1").iterdir()]


@pytest.mark.slow
def test_the_processes_of_an_export_share_the_images(tmp_path: Path) -> None:
    flags = ["--tiny", "--folder", "out", "--batch-size", "4"]
    command = [*TORCHRUN, str(ROOT / "examples" / "generate_dataset.py"), *flags]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ImageDataset(12 images" in done.stdout  # three of the five parts, of four images each
    assert len([*(tmp_path / "out").rglob("*.png")]) == 20


def test_a_new_folder_for_a_script_that_torchrun_starts_again_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    run_folder("try", tmp_path)
    assert not recwarn
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.warns(UserWarning, match=r"begins from nothing in a new folder, .*-try-2; .*resume='auto'"):
        run_folder("try", tmp_path)
