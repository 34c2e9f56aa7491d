"""What each training trick is worth: one change at a time against crop + flip and a one-cycle schedule.

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/tricks.py

Every arm makes the same number of updates on the same images of the CIFAR-10 training set and is scored on the same
5,000 other training images, with the same seeds; the test set is not touched. An arm is reported as its difference to
the reference with the same seed. Runs are added to docs/data/tricks.json as they end, so a stopped study goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cifarkit import (
    ClassificationTask,
    ExponentialMovingAverage,
    Loader,
    StochasticWeightAveraging,
    Trainer,
    data,
    models,
    schedules,
    seed_everything,
    transforms,
)
from cifarkit.training.averaging import WeightAveraging

CROP_FLIP = (transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip())
RESULTS = Path(__file__).parents[1] / "docs" / "data" / "tricks.json"


@dataclass(frozen=True)
class Arm:
    """One recipe: what differs from the reference."""

    augmentation: tuple[Any, ...] = CROP_FLIP
    batch_size: int = 128
    task: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    averaging: Callable[[], WeightAveraging] | None = None


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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    task = ClassificationTask(model, optimizer, **arm.task)
    averages = [arm.averaging()] if arm.averaging else []
    settings = {"schedule": schedules.one_cycle(), "callbacks": averages, "progress": False} | arm.trainer
    trainer, val_loader = Trainer(max_epochs=epochs, **settings), Loader(val_set, 500, transform=normalize)
    run = trainer.fit(task, train_loader)
    raw = accuracy = trainer.evaluate(task, val_loader)["val_acc"]
    for averaging in averages:
        with averaging.swapped(task):
            accuracy = trainer.evaluate(task, val_loader)["val_acc"]
    return {"accuracy": accuracy, "raw": raw, "updates": run.step, "seconds": run.seconds}


def summarize(results: dict[str, Any]) -> str:
    """Return the table in Markdown: mean and sample standard deviation over the seeds."""
    runs, reference = results["runs"], results["runs"]["reference"]
    lines = ["| arm | accuracy | against the reference | seconds a run |", "|---|---|---|---|"]
    for name, by_seed in runs.items():
        seeds = [seed for seed in by_seed if seed in reference]
        values = [100 * by_seed[seed]["accuracy"] for seed in seeds]
        gains = [100 * (by_seed[seed]["accuracy"] - reference[seed]["accuracy"]) for seed in seeds]
        seconds = statistics.mean(by_seed[seed]["seconds"] for seed in seeds)
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
