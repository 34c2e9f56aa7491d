"""Train a classifier in a given time, or a diffusion model, on small images.

    python -m cifarkit train --data cifar10 --root data --download --recipe 4-minutes
    python -m cifarkit train --data cifar10 --recipe ddpm --epochs 60
    python -m cifarkit train --resume runs/<its folder>

The run gets a folder of its own below runs/, with settings, metrics, checkpoints, pictures and report.html.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from cifarkit import plots, predict, recipes, reporting, training, transforms
from cifarkit.commands import diffusion
from cifarkit.commands.shared import (
    add_data_flags,
    flags_of,
    load_images,
    read_settings,
    recorded_flags,
    write_settings,
)
from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import seed_everything


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_data_flags(parser)
    flag = parser.add_argument
    names = [*recipes.SPEEDRUN, "ddpm"]
    flag("--recipe", default="4-minutes", choices=names, help=f"{', '.join(names)}; default 4-minutes")
    flag("--val", type=float, default=0.1, help="share of the training images to hold out (default 0.1)")
    flag("--epochs", type=int, default=20, help="of ddpm; a recipe has its own")
    flag("--base-channels", type=int, default=64, help="of ddpm's network")
    flag("--name", help="of the run folder")
    flag("--resume", metavar="FOLDER", help="go on with a stopped run, with the flags it had")


def run(args: argparse.Namespace) -> int:
    """Train, draw the pictures and write the report."""
    folder = None
    if args.resume:
        folder = Path(args.resume)
        args = recorded_flags(read_settings(folder))
    seed_everything(args.seed)
    whole = load_images(args, train=True)
    train_set, val_set = whole.split(1 - args.val, args.val)
    resume = folder
    folder = folder or training.run_folder(args.name or f"{Path(args.data).stem}-{args.recipe}")
    fit = diffusion.fit if args.recipe == "ddpm" else fit_classifier
    result = fit(args, train_set, val_set, folder, resume)
    page = reporting.report(folder)
    shown = {name: value for name, value in result.metrics.items() if name.startswith("val_")}
    words = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
    print(f"{words} after {result.step} updates and {result.seconds:.0f} s; see {page}")
    return 0


def fit_classifier(
    args: argparse.Namespace, train_set: ImageDataset, val_set: ImageDataset, folder: Path, resume: Path | None
) -> training.Run:
    """Train by a recipe, and draw confusions and mistakes among the images held out."""
    recipe = recipes.TINY if args.tiny else recipes.SPEEDRUN[args.recipe]
    mean, std = train_set.mean_std()
    settings = {
        "kind": "classifier",
        "network": {"num_classes": train_set.num_classes, "widths": list(recipe.widths), "depth": recipe.depth},
        "classes": list(train_set.classes),
        "image_size": train_set.image_shape[1],
        "mean": list(mean),
        "std": list(std),
        "recipe": dataclasses.asdict(recipe),
        "flags": flags_of(args),
    }
    write_settings(folder, settings)
    normalize = transforms.Normalize(mean, std)
    task = recipe.task(train_set)
    callbacks = [training.ModelCheckpoint(folder, "val_acc", every_n_steps=200)]
    trainer = recipe.trainer(callbacks=callbacks, loggers=[training.CSVLogger(folder)])
    loader = recipe.loader(train_set, seed=args.seed, device=trainer.device)
    result = trainer.fit(task, loader, Loader(val_set, 500, transform=normalize), resume=resume)
    logits = predict(task.model, normalize(val_set.images))
    classes = val_set.classes
    plots.confusion_matrix(logits.argmax(1), val_set.labels, classes, folder / "confusion.png")
    plots.confident_mistakes(val_set.images, logits, val_set.labels, classes, path=folder / "mistakes.png")
    return result
