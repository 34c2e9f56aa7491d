"""What each training trick is worth: one change at a time against crop + flip and a one-cycle schedule.

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/tricks.py

Every arm makes the same number of updates on the same images of the CIFAR-10 training set and is scored on the same
5,000 other training images, with the same seeds; the test set is not touched. An arm is reported as its difference to
the reference with the same seed. Two arms need a word. The selective one takes twice as many images for its updates,
of which the network sees the harder half, so it passes over the images twice as often. Early stopping makes fewer
updates if it stops, and looks at the loss on the images that it is scored on, which favours it a little.

Trainings run on one thread, and cost is their processor time, which other work on the machine hardly changes. Runs are
added to docs/data/tricks_more.json as they end, so a stopped study goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarkit import (
    ClassificationTask,
    EarlyStopping,
    ExponentialMovingAverage,
    Loader,
    Muon,
    StochasticWeightAveraging,
    Trainer,
    data,
    models,
    muon_groups,
    schedules,
    seed_everything,
    transforms,
)
from cifarkit.training import SelectiveTask
from cifarkit.training.averaging import WeightAveraging

CROP_FLIP = (transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip())
SMALL_FIRST = transforms.ByEpoch(
    {
        0: transforms.Compose([transforms.RandomCrop(24, padding=0), transforms.RandomHorizontalFlip()]),
        5: transforms.Compose(CROP_FLIP),
    }
)
RESULTS = Path(__file__).parents[1] / "docs" / "data" / "tricks_more.json"  # tricks.json is of an older SpeedNet


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def muon(model: nn.Module) -> torch.optim.Optimizer:
    return Muon(muon_groups(model, lr=0.04))


def selective(model: nn.Module, optimizer: torch.optim.Optimizer) -> ClassificationTask:
    proxy = models.SpeedNet(num_classes=10, widths=(8, 16, 16))
    return SelectiveTask(model, optimizer, proxy, sgd(proxy), keep=0.5)


@dataclass(frozen=True)
class Arm:
    """One recipe: what differs from the reference."""

    augmentation: tuple[Any, ...] = CROP_FLIP
    batch_size: int = 128
    passes: int = 1  # over the images, in multiples of the epochs asked for
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    make_task: Callable[..., ClassificationTask] = ClassificationTask
    task: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    averaging: Callable[[], WeightAveraging] | None = None
    patience: int | None = None  # epochs without a lower loss, after which it stops


ARMS = {
    "reference": Arm(),
    "no augmentation": Arm(augmentation=()),
    "rotation by up to 15 degrees added": Arm(augmentation=(*CROP_FLIP, transforms.RandomRotation(15))),
    "cutout of 8 pixels": Arm(augmentation=(*CROP_FLIP, transforms.Cutout(8))),
    "mixup, alpha 0.2": Arm(task={"mix": transforms.Mixup(0.2)}),
    "label smoothing 0.1": Arm(task={"label_smoothing": 0.1}),
    "constant rate": Arm(trainer={"schedule": schedules.constant()}),
    "clipping at norm 0.5": Arm(trainer={"gradient_clip_val": 0.5}),
    "accumulation, 4 x 32": Arm(batch_size=32, trainer={"accumulate_grad_batches": 4}),
    "EMA 0.99": Arm(averaging=lambda: ExponentialMovingAverage(0.99)),
    "SWA, rate 0.02 in the last quarter": Arm(averaging=lambda: StochasticWeightAveraging(swa_lr=0.02)),
    "SWA over a constant rate": Arm(trainer={"schedule": schedules.constant()}, averaging=StochasticWeightAveraging),
    "alternating flip": Arm(augmentation=(CROP_FLIP[0], transforms.AlternatingFlip())),
    "crops of 24 pixels in the first half": Arm(augmentation=(SMALL_FIRST,)),
    "the harder half of 256": Arm(batch_size=256, passes=2, make_task=selective),
    "bf16-mixed": Arm(trainer={"precision": "bf16-mixed"}),
    "Muon, rate 0.04": Arm(optimizer=muon),
    "constant rate, early stopping": Arm(trainer={"schedule": schedules.constant()}, patience=2),
}


def run_arm(
    arm: Arm, train_set: data.ImageDataset, val_set: data.ImageDataset, seed: int, epochs: int
) -> dict[str, Any]:
    """Train one recipe and return its accuracy and seconds."""
    seed_everything(seed)
    normalize = transforms.Normalize(*train_set.mean_std())
    train_loader = Loader(
        train_set, arm.batch_size, shuffle=True, seed=seed, transform=transforms.Compose([*arm.augmentation, normalize])
    )
    model = models.SpeedNet(num_classes=10, widths=(16, 32, 64))
    task = arm.make_task(model, arm.optimizer(model), **arm.task)
    averages = [arm.averaging()] if arm.averaging else []
    stops = [EarlyStopping("val_loss", patience=arm.patience)] if arm.patience else []
    settings = {"schedule": schedules.one_cycle(), "callbacks": [*averages, *stops], "progress": False} | arm.trainer
    trainer, val_loader = Trainer(max_epochs=epochs * arm.passes, **settings), Loader(val_set, 500, transform=normalize)
    start = time.process_time()
    run = trainer.fit(task, train_loader, val_loader if stops else None)
    spent = time.process_time() - start
    raw = accuracy = trainer.evaluate(task, val_loader)["val_acc"]
    for averaging in averages:
        with averaging.swapped(task):
            accuracy = trainer.evaluate(task, val_loader)["val_acc"]
    return {"accuracy": accuracy, "raw": raw, "updates": run.step, "seconds": run.seconds, "cpu_seconds": spent}


def summarize(results: dict[str, Any]) -> str:
    """Return the table in Markdown: mean and sample standard deviation over the seeds."""
    runs, reference = results["runs"], results["runs"]["reference"]
    lines = ["| arm | accuracy | against the reference | processor seconds a run |", "|---|---|---|---|"]
    for name, by_seed in runs.items():
        seeds = [seed for seed in by_seed if seed in reference]
        values = [100 * by_seed[seed]["accuracy"] for seed in seeds]
        gains = [100 * (by_seed[seed]["accuracy"] - reference[seed]["accuracy"]) for seed in seeds]
        seconds = statistics.mean(by_seed[seed]["cpu_seconds"] for seed in seeds)
        gain = "" if name == "reference" else f"{_spread(gains, sign='+')} points"
        lines.append(f"| {name} | {_spread(values)} % | {gain} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.2f} ± {deviation:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="a few seconds on drawn shapes, to see that it works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tiny:
        everything, args.images, args.epochs, args.seeds = data.shapes(700), 500, 1, 1
        args.results = Path(os.devnull)
    else:
        everything = data.cifar10(os.environ.get("CIFARKIT_DATA", "data"))
    val_set, rest = everything.split(5_000 if not args.tiny else 200, args.images)
    settings = {"images": args.images, "epochs": args.epochs, "torch": torch.__version__}
    saved = json.loads(args.results.read_text()) if args.results.is_file() else {"settings": settings, "runs": {}}
    if saved["settings"] != settings:
        raise SystemExit(f"{args.results} holds a study with {saved['settings']}; name another file with --results")
    for seed in range(args.seeds):
        for name in args.arms:
            by_seed = saved["runs"].setdefault(name, {})
            if str(seed) not in by_seed:
                by_seed[str(seed)] = run_arm(ARMS[name], rest, val_set, seed, args.epochs)
                print(f"seed {seed}, {name}: {by_seed[str(seed)]}", flush=True)
                args.results.parent.mkdir(parents=True, exist_ok=True)
                args.results.write_text(json.dumps(saved, indent=1) + "\n")
    print(summarize(saved))


if __name__ == "__main__":
    main()
