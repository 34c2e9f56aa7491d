"""Find a learning rate for SGD: raise it from update to update and see where the loss falls fastest.

    python -m cifarkit lr-find --data cifar10 --root data

The curve goes into a folder below runs/, as learning_rate.png and learning_rate.csv, with a report.html.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
from pathlib import Path
from typing import Any

import torch

from cifarkit import models, reporting, training, transforms
from cifarkit.commands.shared import add_data_flags, load_images
from cifarkit.data import Loader
from cifarkit.files import write_atomically
from cifarkit.seeding import seed_everything
from cifarkit.training.lr_finder import smoothed

_MODELS: dict[str, Any] = {
    "speednet": models.SpeedNet,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_data_flags(parser)
    flag = parser.add_argument
    flag("--model", default="speednet", choices=list(_MODELS), help="with --tiny a small speednet whatever is said")
    flag("--batch-size", type=int, default=128)
    flag("--min-lr", type=float, default=1e-4)
    flag("--max-lr", type=float, default=10.0)
    flag("--steps", type=int, default=100)


def run(args: argparse.Namespace) -> int:
    """Sweep and draw."""
    seed_everything(args.seed)
    train_set = load_images(args, train=True)
    normalize = transforms.Normalize(*train_set.mean_std())
    loader = Loader(train_set, args.batch_size, shuffle=True, seed=args.seed, transform=normalize)
    channels = train_set.image_shape[0]
    model = _MODELS[args.model](train_set.num_classes, channels=channels)
    if args.tiny:
        model = models.SpeedNet(train_set.num_classes, widths=(8, 16, 16), channels=channels)
    task = training.ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    steps = min(args.steps, 20) if args.tiny else args.steps
    trainer = training.Trainer(max_steps=steps, precision="auto", progress=False)
    limits = {"min_lr": args.min_lr, "max_lr": args.max_lr, "steps": steps}
    sweep = training.lr_find(task, loader, trainer=trainer, **limits)
    folder = training.run_folder(f"{Path(args.data).stem}-lr-find")
    text = io.StringIO(newline="")
    columns = (sweep.learning_rates, sweep.losses, smoothed(sweep.losses).tolist(), itertools.repeat(sweep.suggestion))
    csv.writer(text).writerows([("learning_rate", "loss", "smooth", "suggestion"), *zip(*columns, strict=False)])
    write_atomically(text.getvalue().encode(), folder / "learning_rate.csv")
    sweep.plot(folder / "learning_rate.png")
    print(f"{sweep.verdict}; see {reporting.report(folder)}")
    return 0
