"""How fast is a good CIFAR-10 classifier on a CPU, against airbench94?

    CIFARKIT_DATA=<folder with cifar10-train.npz and cifar10-test.npz> python benchmarks/speedrun.py
    ... python benchmarks/speedrun.py --arms 4-minutes "no whitening" "no Muon"   # one trick removed
    ... python benchmarks/speedrun.py --arms 95 96                               # the larger recipes

Every training is a process of its own, so that neither shares memory or compiled kernels with the other, and the arms
take turns seed by seed. airbench94 is the installed package: this script gives it the images as arrays and moves it to
the CPU and to bf16, which it was not written for, and changes nothing else. The clock runs from the first look at the
training images, which are in memory, to the last logit of the test images. Finished trainings are lines of the work
file, so a stopped benchmark goes on with the same flags.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from report import Report, Table, arguments, destination
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cifarkit import data, predict, recipes, seed_everything, transforms
from cifarkit.training import ClassificationTask

WORK = Path("runs/speedrun.jsonl")
VIEWS = (1, 2, 6)
BASE = "8-minutes"
ABLATED = "4-minutes"  # the recipe that loses a trick


def without_identity(task: ClassificationTask) -> None:
    """Start the 3x3 kernels, the proxy's as well, at PyTorch's random values."""
    for network in task.children():
        for layer in network.groups.modules():  # type: ignore[operator, union-attr]
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()


WITHOUT = {  # one trick of ABLATED: what it then does
    "no whitening": "the stem is learnt",
    "no identity start": "3x3 kernels start at random",
    "no fast biases": "biases at a rate of 0.1",
    "no small crops": "32 x 32 in every epoch",
    "no selection": "all images in half of the epochs, so as many updates",
    "no alternating flip": "a coin for every image and epoch",
    "no label smoothing": "labels as they are",
    "no Muon": "SGD for the kernels, too",
}
ARMS: dict[str, str] = {  # name -> what it is
    "airbench94": "airbench94 of the airbench package, on the CPU in bf16",
    "cifarkit": "the speed recipe",
    **{name: f"{ABLATED}, {what}" for name, what in WITHOUT.items()},
    "95": "the recipe aimed at 95 %",
    "96": "the recipe aimed at 96 %",
    **{name: "the recipe of that time" for name in recipes.SPEEDRUN if "minute" in name and name != BASE},
}
CHANGES: dict[str, dict[str, Any]] = {  # of the recipe, by arm
    "no whitening": {"whiten": False},
    "no fast biases": {"bias_lr": 0.1},
    "no small crops": {"sides": {0: 32}},
    "no selection": {"keep": 1.0, "epochs": 7, "sides": {0: 24, 3: 32}},
    "no alternating flip": {"alternating_flip": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "no Muon": {"muon": False},
}


def recipe_of(arm: str, tiny: bool) -> recipes.SpeedRecipe | None:
    """Return what an arm trains by; airbench94 has none of ours."""
    if arm == "airbench94":
        return None
    name = {"95": "95-percent", "96": "96-percent", "cifarkit": BASE}.get(arm, arm)
    recipe, changes = recipes.SPEEDRUN.get(name, recipes.SPEEDRUN[ABLATED]), CHANGES.get(arm, {})
    if tiny:
        recipe = replace(recipe, epochs=2, sides={0: 24, 1: 32}, batch_size=50, widths=(16, 16, 16))
        changes = {name: value for name, value in changes.items() if "epochs" not in changes or name == "keep"}
    return replace(recipe, **changes)


def settings_of(recipe: recipes.SpeedRecipe | None) -> dict[str, Any] | None:
    """Write a recipe as JSON gives it back, so that trainings by an older one are not taken for its own."""
    settings: dict[str, Any] | None = None if recipe is None else json.loads(json.dumps(asdict(recipe)))
    return settings


def run_airbench(train: data.ImageDataset, test: data.ImageDataset, seed: int, tiny: bool) -> dict[str, Any]:
    """Train airbench94 as published, on this processor."""
    from airbench import lib_airbench94, utils

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        for name, images in (("train", train), ("test", test)):
            content = {"images": images.images.permute(0, 2, 3, 1).contiguous(), "labels": images.labels}
            torch.save(content | {"classes": list(images.classes)}, Path(folder, f"{name}.pt"))
        move_to_cpu(utils)
        aug = lib_airbench94.hyp["aug"]
        loader = utils.CifarLoader(folder, train=True, batch_size=100 if tiny else 1024, aug=aug, altflip=True)
        test_loader = utils.CifarLoader(folder, train=False, batch_size=2000)
    utils.CifarLoader, construct = (lambda *args, **options: test_loader), utils.CifarLoader  # it loads its test set
    started = time.perf_counter()
    epochs = 2 if tiny else 9.9
    model = lib_airbench94.train94(loader, epochs=epochs, verbose=False)
    trained = time.perf_counter()
    utils.CifarLoader = construct
    logits = utils.infer(model, test_loader, tta_level=2)
    seconds = time.perf_counter() - started
    accuracies = {6: accuracy(logits, test.labels)}
    for level, views in ((0, 1), (1, 2)):
        accuracies[views] = accuracy(utils.infer(model, test_loader, tta_level=level), test.labels)
    model.train()
    images = next(iter(loader))[0]
    operations = len(loader) * epochs * _operations(images, lambda few: [model(few).sum()])
    return {"seconds": seconds, "training_seconds": trained - started, "acc": accuracies, "operations": operations}


def move_to_cpu(utils: Any) -> None:
    """Replace what airbench asks of CUDA: half precision becomes bf16, which a CPU multiplies natively."""
    keep = lambda self, *args, **options: self  # noqa: E731
    torch.Tensor.half, nn.Module.half = torch.Tensor.bfloat16, nn.Module.bfloat16  # type: ignore[method-assign]
    torch.Tensor.cuda = nn.Module.cuda = keep  # type: ignore[method-assign, assignment]
    torch.half = torch.bfloat16  # Lookahead asks for this dtype
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 0.0)
    torch.cuda.Event = lambda **options: event  # type: ignore[misc, assignment]
    torch.cuda.synchronize = lambda *args: None
    load = torch.load
    utils.torch.load = lambda path, map_location=None: load(path, map_location="cpu", weights_only=True)


def run_cifarkit(arm: str, train: data.ImageDataset, test: data.ImageDataset, seed: int, tiny: bool) -> dict[str, Any]:
    """Train one of cifarkit's arms."""
    recipe = recipe_of(arm, tiny)
    assert recipe is not None
    seed_everything(seed)
    normalize = transforms.Normalize(*train.mean_std())
    started = time.perf_counter()
    trainer = recipe.trainer(progress=False)
    task, loader = recipe.task(train), recipe.loader(train, seed=seed)
    if arm == "no identity start":
        without_identity(task)
    trainer.fit(task, loader)
    trained = time.perf_counter()
    images = normalize(test.images)
    predict(task.model, images, views=6)  # as airbench looks at them
    seconds = time.perf_counter() - started
    accuracies: dict[Any, float] = {
        views: accuracy(predict(task.model, images, views=views), test.labels) for views in VIEWS
    }
    accuracies["6 where unsure"] = accuracy(predict(task.model, images, views=6, unsure=recipes.UNSURE), test.labels)
    operations = training_operations(task, loader, recipe.epochs)
    return {"seconds": seconds, "training_seconds": trained - started, "acc": accuracies, "operations": operations}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Tell the share of right answers."""
    return (logits.argmax(1) == labels).float().mean().item()


def training_operations(task: ClassificationTask, loader: data.Loader, epochs: int) -> float:
    """Count the floating-point operations of a training, forward and backward, without the optimizer's."""
    task.train()
    operations = 0.0
    for epoch in range(epochs):
        view = loader.copy()
        view.epoch = epoch
        images, labels = next(iter(view))
        operations += len(loader) * _operations(images, partial(_losses, task, labels))
    return operations


def _losses(task: ClassificationTask, labels: Tensor, images: Tensor) -> Iterator[Tensor]:
    """Yield the losses of one update."""
    return (update.loss for update in task.updates((images, labels[: len(images)])))


def _operations(images: Tensor, losses: Callable[[Tensor], Iterable[Tensor]]) -> float:
    """Count the floating-point operations of one update: multiplications and additions, forward and backward."""
    few = images[:40]
    with FlopCounterMode(display=False) as counter:
        for loss in losses(few):
            loss.backward()
    return counter.get_total_flops() * len(images) / len(few)


def child(arm: str, seed: int, tiny: bool) -> dict[str, Any]:
    """Train one arm in this process."""
    train, test = load_sets(tiny)
    run = run_airbench(train, test, seed, tiny) if arm == "airbench94" else run_cifarkit(arm, train, test, seed, tiny)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    facts = {"threads": torch.get_num_threads(), "images": len(train), "test_images": len(test)}
    found = {"peak_gib": peak, "peak_operations": peak_operations()}
    key = {"arm": arm, "seed": seed, "tiny": tiny, "recipe": settings_of(recipe_of(arm, tiny))}
    return key | facts | run | found


def load_sets(tiny: bool) -> tuple[data.ImageDataset, data.ImageDataset]:
    """Load CIFAR-10, or shapes for a tiny run."""
    if tiny:
        return data.shapes(1_000, seed=0), data.shapes(200, seed=1)
    folder = os.environ.get("CIFARKIT_DATA")
    if folder is None:
        raise SystemExit("set CIFARKIT_DATA to the folder with cifar10-train.npz and cifar10-test.npz")
    train, test = (data.load_npz(Path(folder, f"cifar10-{part}.npz")) for part in ("train", "test"))
    return train, test


def peak_operations() -> float:
    """Measure the operations a second of a bf16 product of square matrices, what these cores can do at best."""
    a = torch.randn(2048, 2048).bfloat16()
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def summarize(records: list[dict[str, Any]]) -> Report:
    """Make the table and the ratio."""
    report = Report("speedrun", {"arms": ARMS}, ["airbench"])
    report.figures["trainings"] = records
    by_arm = {arm: [item for item in records if item["arm"] == arm] for arm in ARMS}
    peak = statistics.median(item["peak_operations"] for item in records)  # one alone may have been disturbed
    rows = [row(arm, found, peak) for arm, found in by_arm.items() if found]
    columns = [
        "arm",
        "what",
        "seeds",
        "1 view",
        "6 views",
        "seconds",
        "of them training",
        "PFLOP",
        "utilisation",
        "GiB",
    ]
    sizes = " and ".join(
        f"{records[0][name]:,} {text}" for name, text in (("images", "training"), ("test_images", "test"))
    )
    report.tables.append(Table(f"{'shapes' if records[0]['tiny'] else 'CIFAR-10'}, {sizes} images", columns, rows))
    if by_arm["airbench94"] and by_arm["cifarkit"]:
        add_aims(report, by_arm["airbench94"], by_arm["cifarkit"])
    return report


def row(arm: str, found: list[dict[str, Any]], peak: float) -> list[str]:
    """Sum up the trainings of one arm."""
    operations = statistics.mean(item["operations"] for item in found)
    training = statistics.mean(item["training_seconds"] for item in found)
    share = statistics.mean(item["operations"] / item["training_seconds"] / peak for item in found)
    return [
        arm,
        ARMS[arm],
        str(len(found)),
        *(_spread([100 * item["acc"][views] for item in found], 2) for views in ("1", "6")),
        _spread([item["seconds"] for item in found], 0),
        f"{training:.0f}",
        f"{operations / 1e15:.3f}",
        f"{share:.0%}",
        f"{max(item['peak_gib'] for item in found):.2f}",
    ]


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def add_aims(report: Report, peers: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """Compare the means, and the seconds seed by seed."""
    by_seed = {item["seed"]: item for item in peers}
    pairs = [(item["seconds"], by_seed[item["seed"]]["seconds"]) for item in ours if item["seed"] in by_seed]
    if not pairs:
        return
    shares = [own / other for own, other in pairs]
    median, low, high = statistics.median(shares), min(shares), max(shares)
    report.aim("at most 0.5 x the seconds of airbench94", f"{median:.3f} x ({low:.3f} to {high:.3f})", median <= 0.5)
    own, other = (100 * statistics.mean(item["acc"]["6"] for item in arm) for arm in (ours, peers))
    claim = "accuracy with 6 views at least airbench94's, within 0.1 point"
    report.aim(claim, f"{own:.2f} % against {other:.2f} %", own >= other - 0.1)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the finished trainings; a line that a kill cut short is not one."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def is_current(record: dict[str, Any], tiny: bool) -> bool:
    """Tell whether a training was made by what its arm is now."""
    same_size: bool = record["tiny"] == tiny
    return same_size and record.get("recipe") == settings_of(recipe_of(record["arm"], tiny))


def run_missing(arms: list[str], seeds: list[int], tiny: bool, work: Path) -> None:
    """Train every arm with every seed that the work file does not hold yet, in turn."""
    done = [(item["arm"], item["seed"]) for item in read(work) if is_current(item, tiny)]
    if "airbench94" in arms and importlib.util.find_spec("airbench") is None:
        print("airbench is not installed and left out: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        arms = [arm for arm in arms if arm != "airbench94"]
    for seed in seeds:
        for arm in arms:
            if (arm, seed) in done:
                continue
            command = [sys.executable, __file__, "--child", arm, "--seeds", str(seed), *(["--tiny"] if tiny else [])]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            work.parent.mkdir(parents=True, exist_ok=True)
            with work.open("a") as file:
                file.write(output.splitlines()[-1] + "\n")
            print(output.splitlines()[-1], flush=True)


def main() -> None:
    parser = arguments(__doc__, "speedrun")
    parser.add_argument("--arms", nargs="*", default=["airbench94", "cifarkit"], choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help=f"finished trainings; {WORK}, with --tiny nowhere")
    parser.add_argument("--report-only", action="store_true", help="train nothing, print the table of the work file")
    parser.add_argument("--child", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.seeds[0], args.tiny)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or (Path(scratch, WORK.name) if args.tiny else WORK)
        if not args.report_only:
            run_missing(args.arms, args.seeds[:1] if args.tiny else args.seeds, args.tiny, work)
        records = [item for item in read(work) if is_current(item, args.tiny)]
        if not records:
            raise SystemExit(f"{work} holds no finished training")
        summarize(records).publish(destination(args, "speedrun"))


if __name__ == "__main__":
    main()
