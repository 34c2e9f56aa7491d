"""Train a classifier in a given time, or a diffusion model, on small images.

    python -m cifarkit train --data cifar10 --root data --download --recipe 4-minutes
    python -m cifarkit train --data cifar10 --recipe ddpm --minutes 120
    python -m cifarkit train --resume runs/<its folder>
    torchrun --nproc-per-node 2 --max-restarts 3 -m cifarkit train --folder runs/two

The run gets a folder of its own below runs/, with settings, metrics, checkpoints, pictures and report.html. If --folder
names it, the same command given again goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from cifarkit import plots, predict, recipes, reporting, training
from cifarkit.commands import diffusion
from cifarkit.commands.shared import (
    SettingsWriter,
    add_data_flags,
    flags_of,
    load_images,
    normalization,
    on_first_rank,
    read_settings,
    recorded_flags,
    require_same_run,
)
from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import seed_everything


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_data_flags(parser)
    flag = parser.add_argument
    names = [*recipes.SPEEDRUN, "ddpm"]
    flag("--recipe", default="4-minutes", choices=names, help=f"{', '.join(names)}; default 4-minutes")
    flag("--val", type=float, help="share of the training images to hold out (default 0.1)")
    flag("--epochs", type=int, help="of ddpm (default 20); the others have their own")
    flag("--minutes", type=float, help="of ddpm: as many updates as fit into them, instead of --epochs")
    flag("--base-channels", type=int, help="of ddpm's network (default 64)")
    flag("--name", help="of the run folder")
    flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
    flag("--resume", metavar="FOLDER", help="go on with a stopped run, with the flags it had")


def run(args: argparse.Namespace) -> int:
    """Train, draw the pictures and write the report."""
    if args.resume and args.folder:
        raise ValueError("--resume and --folder both name the folder of the run; give one of them")
    resume, folder = args.resume or "auto", args.resume or args.folder
    if args.name and folder:
        raise ValueError(f"--name {args.name} is for a new folder below runs/; {folder} has its name")
    if args.resume:
        for name in ("epochs", "minutes", "base_channels", "val"):
            if (value := getattr(args, name)) is not None:
                raise ValueError(f"--resume goes on with the flags that the run had; leave out {_given(name, value)}")
        args = recorded_flags(on_first_rank(lambda: read_settings(resume)), args)
    else:
        _settle(args)
    seed_everything(args.seed)
    whole = load_images(args, train=True)
    if whole.image_shape[0] not in (1, 3):  # which is said before the training, not at its end
        raise ValueError(f"--data {args.data} has images of {whole.image_shape[0]} channels; 1 or 3 can be drawn")
    train_set, val_set = whole.split(1 - args.val, args.val)
    describe, fit = (
        (diffusion.describe, diffusion.fit) if args.recipe == "ddpm" else (describe_classifier, fit_classifier)
    )
    settings = describe(args, train_set)  # before a folder is made, as it may refuse the images
    kind = "tiny" if args.tiny and args.recipe != "ddpm" else args.recipe  # no recipe takes minutes then
    folder = Path(folder or training.run_folder(args.name or f"{Path(args.data).stem}-{kind}"))
    require_same_run(folder, settings)
    result = fit(settings, train_set, val_set, folder, resume)
    if training.distributed.rank():
        return 0
    page = reporting.report(folder)
    shown = {name: value for name, value in result.metrics.items() if name.startswith("val_")}
    words = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
    print(f"{words} after {result.step} updates and {result.seconds:.0f} s; see {page}")
    return 0


def _settle(args: argparse.Namespace) -> None:
    """Check the numbers, and put in those that were left out; which were given is not to be seen any more."""
    for name, usual in {"epochs": 20, "minutes": None, "base_channels": 64}.items():
        value = getattr(args, name)
        kind = "time" if name == "minutes" else "length" if name == "epochs" else "network"
        if value is not None and args.recipe != "ddpm":
            raise ValueError(f"{_given(name, value)} is for --recipe ddpm; {args.recipe} takes its own {kind}")
        if value is not None and args.tiny and name != "minutes":
            raise ValueError(f"{_given(name, value)} does not go with --tiny, which has its own {kind}; leave one out")
        setattr(args, name, usual if value is None else value)
    args.val = 0.1 if args.val is None else args.val
    if not 0 < args.val < 1:
        raise ValueError(f"{_given('val', args.val)} must be above 0 and below 1")
    for name in ("epochs", "base_channels"):
        if getattr(args, name) < 1:
            raise ValueError(f"{_given(name, getattr(args, name))} must be at least 1")
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        raise ValueError(f"{_given('minutes', args.minutes)} must be a finite number above 0")


def _given(name: str, value: float) -> str:
    return f"--{name.replace('_', '-')} {value:g}"


def describe_classifier(args: argparse.Namespace, train_set: ImageDataset) -> dict[str, Any]:
    """Return the settings of a run that trains by a recipe."""
    recipe, (mean, std) = _recipe(args), train_set.mean_std()
    batch = round(recipe.batch_size / recipe.keep)
    if len(train_set) < batch:
        which = "--tiny" if args.tiny else f"--recipe {args.recipe}"
        raise ValueError(
            f"--data {args.data} has {len(train_set)} images to train on, and {which} takes batches of {batch}; "
            "examples/train_classifier.py trains with smaller ones"
        )
    network = {"num_classes": train_set.num_classes, "widths": list(recipe.widths), "depth": recipe.depth}
    channels, height, _ = train_set.image_shape
    if channels != 3:  # of three, runs of before say nothing either
        network["channels"] = channels
    return {
        "kind": "classifier",
        "network": network,
        "classes": list(train_set.classes),
        "image_size": height,
        "mean": list(mean),
        "std": list(std),
        "recipe": dataclasses.asdict(recipe),
        "flags": flags_of(args),
    }


def _recipe(args: argparse.Namespace) -> recipes.SpeedRecipe:
    return recipes.TINY if args.tiny else recipes.SPEEDRUN[args.recipe]


def fit_classifier(
    settings: dict[str, Any], train_set: ImageDataset, val_set: ImageDataset, folder: Path, resume: Path | str
) -> training.Run:
    """Train by a recipe, and draw confusions and mistakes among the images held out."""
    args, normalize = recorded_flags(settings), normalization(settings)
    recipe = _recipe(args)
    task = recipe.task(train_set)
    callbacks = [training.ModelCheckpoint(folder, "val_acc", every_n_steps=200)]
    loggers = [SettingsWriter(folder, settings), training.CSVLogger(folder)]
    trainer = recipe.trainer(callbacks=callbacks, loggers=loggers)
    loader = recipe.loader(train_set, seed=args.seed, device=trainer.device)
    if resume == "auto" and not on_first_rank((folder / "last.pt").exists):
        seconds = training.estimate_seconds(trainer, task, loader, steps=2 if args.tiny else 20)
        if training.distributed.rank() == 0:
            print(f"about {seconds:.0f} s of training on this machine, without validation", flush=True)
    result = trainer.fit(task, loader, Loader(val_set, 500, transform=normalize, **training.own_part()), resume=resume)
    if training.distributed.rank() == 0:
        _draw(task, val_set, normalize, folder)
    return result


def _draw(task: training.ClassificationTask, val_set: ImageDataset, normalize: Any, folder: Path) -> None:
    logits = predict(task.model, normalize(val_set.images))
    classes = val_set.classes
    plots.confusion_matrix(logits.argmax(1), val_set.labels, classes, folder / "confusion.png")
    plots.confident_mistakes(val_set.images, logits, val_set.labels, classes, path=folder / "mistakes.png")
