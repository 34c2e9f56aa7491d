"""What the benchmarks of generators share: data, recipes that fill given minutes, exports, classifiers, work files."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import cifarkit
from cifarkit import data, diffusion, generation, recipes, schedules, training, transforms
from cifarkit.models import UNet

ROOT = Path(__file__).resolve().parents[1]
TRAIN_DDPM = Path("examples", "train_ddpm.py")
RECIPE = recipes.DDPM["strong"]
PRECISION = "bf16-mixed"
SCHEDULE = RECIPE.noise_schedule
PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


def load_sets(tiny: bool) -> tuple[str, data.ImageDataset, data.ImageDataset]:
    """Read CIFAR-10 where CIFARKIT_DATA says, or draw shapes; return name, training and test images."""
    folder = os.environ.get("CIFARKIT_DATA")
    if folder and not tiny:
        return "CIFAR-10", data.cifar10(folder), data.cifar10(folder, train=False)
    sizes = (300, 200) if tiny else (20_000, 2_000)
    return "shapes", data.shapes(sizes[0]), data.shapes(sizes[1], seed=1)


def train_ddpm(source: str | Path, folder: Path, minutes: float, tiny: bool, every: int = 5) -> None:
    """Train a diffusion model by examples/train_ddpm.py, or go on with what is in the folder.

    Args:
        source: "cifar10", "shapes" or a .npz file.
        folder: of the run; its last.pt holds the averaged network, see :func:`read_ddpm`.
        minutes: that the training is planned for.
        tiny: train for an epoch of 300 images instead.
        every: epochs between two grids; short epochs want them seldom, since the plan leaves a tenth for all of that.
    """
    command = [sys.executable, str(ROOT / TRAIN_DDPM), "--data", str(source)]
    command += ["--root", os.environ.get("CIFARKIT_DATA", "data"), "--folder", str(folder)]
    command += ["--recipe", "strong", "--precision", PRECISION]
    command += ["--tiny"] if tiny else ["--minutes", f"{minutes:g}", "--every", str(every)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with locked(folder / "lock") as lock:
        run_child(command, environment, lock)


def run_child(command: Sequence[str], environment: Mapping[str, str], lock: int) -> None:
    """Run a program to its end; hand SIGTERM and Ctrl-C on to it, and wait until it has saved.

    Args:
        lock: descriptor of a locked file, which the program keeps locked for as long as it runs, even if this
            process is killed.
    Raises:
        SystemExit: with the code of a signal that ended it.
        CalledProcessError: if it failed.
    """
    library = ctypes.CDLL(None)

    def end_with_parent() -> None:
        if sys.platform == "linux":
            library.prctl(PARENT_DIED, signal.SIGTERM)

    # In a session of its own: a terminal's Ctrl-C would reach it twice, and a second one ends it before it has saved.
    child = subprocess.Popen(
        command, env=dict(environment), pass_fds=[lock], start_new_session=True, preexec_fn=end_with_parent
    )
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, frame: child.send_signal(got)) for number in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code in {128 + number for number in numbers} | {-number for number in numbers}:
        raise SystemExit(code if code > 0 else 128 - code)
    if code:
        raise subprocess.CalledProcessError(code, command)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a file so that no second process works where this one does; yield its descriptor.

    Raises:
        SystemExit: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"another process is at work here, it holds {path}; wait for it or stop it") from None
        yield file.fileno()


def warn_of_load(most: float) -> None:
    """Say so if other programs are running, since a plan made on a busy machine is too short."""
    load = os.getloadavg()[0]
    if load > most:
        print(
            f"WARNING: the load average is {load:.1f}; plans and times made now are those of a busy machine", flush=True
        )


def file_hash(path: Path) -> str:
    """Return the start of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def ddpm_recipe() -> dict[str, Any]:
    """Return what a diffusion model is trained by, so that one of another recipe is not taken for it."""
    files = [file_hash(ROOT / name) for name in (TRAIN_DDPM, Path("cifarkit", "recipes", "ddpm.py"))]
    return {"recipe": json.loads(json.dumps(asdict(RECIPE))), "precision": PRECISION, "files": files}


def read_end(weights: Path, stopped_because: str | None = None) -> dict[str, Any]:
    """Return what a row says of a training's length, as its checkpoint, and plan.json beside it, tell it."""
    run, plan = cifarkit.load_checkpoint(weights)["run"], weights.parent / "plan.json"
    planned = json.loads(plan.read_text())["updates"] if plan.exists() else None
    if planned is not None and run["step"] < planned:
        stopped_because = stopped_because or "its end came before that of the plan, and the rate had not come down"
    end = {"updates": run["step"], "seconds": run["seconds"], "planned": planned}
    return end | {"stopped_because": stopped_because}


def read_ddpm(weights: Path, num_classes: int, tiny: bool) -> UNet:
    """Read the averaged U-Net of a run of the recipe.

    Raises:
        SystemExit: if it was trained to predict something else, whose samples would be garbage without an error.
    """
    trained = cifarkit.load_checkpoint(weights)["config"]["task"]
    if (trained["target"], trained["schedule"]) != (RECIPE.target, repr(SCHEDULE)):
        raise SystemExit(
            f"{weights} predicts {trained['target']} on {trained['schedule']}, not {RECIPE.target} on {SCHEDULE!r}"
        )
    network = (RECIPE.tiny() if tiny else RECIPE).network(num_classes, (3, 32, 32))
    cifarkit.load_weights(network, weights, average="ema")
    return network


def ddpm_sample(
    network: UNet, sampler: str, steps: int, shape: Sequence[int], guidance: float = 0.0
) -> Callable[..., Tensor]:
    """Return what ``generate_dataset`` wants, for "ddim", "ddpm" or "dpm-solver" and so many steps."""

    def sample(labels: Tensor, generators: generation.SampleGenerators) -> Tensor:
        noise = generators.normal(*shape)
        denoise = RECIPE.denoiser(network, labels, guidance=guidance)
        if sampler == "ddpm":
            return diffusion.sample_ddpm(denoise, noise, SCHEDULE, steps=steps, generator=[*generators])
        if sampler == "ddim":  # spaced as the peer's
            return diffusion.sample_ddim(denoise, noise, SCHEDULE, steps=steps)
        return diffusion.sample_dpm_solver(denoise, noise, SCHEDULE, steps=steps, spacing="quadratic")

    return sample


def fit_in_minutes(
    task: cifarkit.Task,
    loader: data.Loader,
    folder: Path,
    minutes: float,
    tiny: bool,
    *,
    share: float = 0.9,
    most_minutes: float | None = None,
) -> cifarkit.Run:
    """Train a task with one optimizer as examples/train_ddpm.py does, for peers: the same plan, rates and average.

    Args:
        minutes: that the training is planned for.
        share: of the minutes that updates are planned for; the rest is for averages and saves.
        most_minutes: after which it is stopped; None for the same as planned.
    """
    settings: dict[str, Any] = {"precision": PRECISION, "schedule": schedules.cosine(warmup=0.05)}
    settings |= {"gradient_clip_val": 1.0}
    plan, length = folder / "plan.json", {"minutes": None if tiny else minutes, "share": share}
    if not tiny and not plan.exists():
        warn_of_load((os.cpu_count() or 1) + 0.5)
    updates = training.plan_updates(plan, task, loader, settings, epochs=1, **length)
    average = training.ExponentialMovingAverage(1 - 1 / max(10, updates / 20))
    callbacks = [average, training.ModelCheckpoint(folder, every_n_steps=500)]
    callbacks += [] if tiny else [training.TimeLimit(60 * (most_minutes or minutes))]
    settings |= {"max_steps": updates, "callbacks": callbacks, "loggers": [training.CSVLogger(folder)]}
    return training.Trainer(**settings).fit(task, loader, resume="auto")


def seconds_an_update(task: cifarkit.Task, loader: data.Loader, steps: int = 20) -> float:
    """Time some updates in the precision of :func:`fit_in_minutes`; the task stays as it is."""
    trial = training.Trainer(precision=PRECISION, gradient_clip_val=1.0, max_steps=len(loader), progress=False)
    return training.estimate_seconds(trial, task, loader, steps=steps) / len(loader)


def classifier_recipe(tiny: bool) -> recipes.SpeedRecipe:
    """The small classifier that all judge by: SpeedNet (32, 128, 128), whole images, no proxy."""
    return replace(recipes.TINY if tiny else recipes.SpeedRecipe(widths=(32, 128, 128)), sides={0: 32})


def train_classifier(
    train_set: data.ImageDataset,
    test_set: data.ImageDataset,
    *,
    steps: int,
    seed: int,
    tiny: bool,
    augment: bool = True,
    fake: data.ImageDataset | None = None,
    share: float = 0.5,
) -> float:
    """Train the small classifier from a seed's weights for so many updates; return the accuracy on the test images.

    Args:
        augment: crops and flips; without it images are only normalised.
        fake: generated images that make up ``share`` of each batch.
    """
    cifarkit.seed_everything(seed)
    recipe = classifier_recipe(tiny)
    normalize = transforms.Normalize(*train_set.mean_std())
    task = recipe.task(train_set)
    loader = recipe.loader(train_set, seed=seed)
    if not augment:
        loader = data.Loader(train_set, recipe.batch_size, shuffle=True, drop_last=True, seed=seed, transform=normalize)
    batches = loader if fake is None else data.MixedLoader(loader, fake, share)
    recipe.trainer(max_epochs=None, max_steps=steps, progress=False).fit(task, batches)
    right = cifarkit.predict(task.model, normalize(test_set.images)).argmax(1) == test_set.labels
    return right.float().mean().item()


def read(path: Path, study: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a study, or all, from the work file; a last line that is not whole is passed over."""
    content = path.read_text() if path.exists() else ""
    whole = content[: content.rfind("\n") + 1]
    return [row for row in map(json.loads, whole.splitlines()) if study is None or row["study"] == study]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a finished row to the work file, in the place of a last line that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def work_file(args: argparse.Namespace, usual: Path) -> Iterator[Path]:
    """Name the work file: a tiny run gets one that is gone afterwards, unless it was named."""
    if args.work or not args.tiny:
        yield args.work or usual
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, usual.name)
