"""The recipe "ddpm" of the command ``train``: a class-conditional diffusion model."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from cifarkit import recipes, training, transforms
from cifarkit.commands.shared import (
    SettingsWriter,
    flags_of,
    has_settings,
    on_first_rank,
    read_settings,
    recorded_flags,
)
from cifarkit.data import ImageDataset, Loader
from cifarkit.diffusion import draw_noise, sample_ddim


def read_recipe(folder: Path, settings: dict[str, Any]) -> recipes.DiffusionRecipe:
    """Return the recipe that a run was begun with; runs of before, which noted none, had the plain one."""
    try:
        return recipes.DiffusionRecipe.load(folder)
    except FileNotFoundError:
        network = settings["network"]
        shape = {name: network[name] for name in ("base_channels", "multipliers", "patch") if name in network}
        return recipes.DiffusionRecipe(**shape, ema=0.9 if settings["flags"]["tiny"] else 0.999)


def _kept_recipe(folder: Path) -> recipes.DiffusionRecipe | None:
    """Return the recipe of the run that goes on in a folder, as rank 0 sees it."""

    def read() -> dict[str, Any] | None:
        begun = has_settings(folder) and any(folder.glob("*.pt"))
        return dataclasses.asdict(read_recipe(folder, read_settings(folder))) if begun else None

    kept = on_first_rank(read)
    return None if kept is None else recipes.DiffusionRecipe(**kept)


def _own_recipe(args: argparse.Namespace) -> recipes.DiffusionRecipe:
    recipe = recipes.DDPM["strong"]
    return recipe.tiny() if args.tiny else dataclasses.replace(recipe, base_channels=args.base_channels)


def describe(args: argparse.Namespace, train_set: ImageDataset) -> dict[str, Any]:
    """Return the settings of a run, or raise ValueError if the network cannot take the images."""
    recipe, (channels, *sides) = _own_recipe(args), train_set.image_shape
    network: dict[str, Any] = {"num_classes": train_set.num_classes, "patch": recipe.patch}
    network |= {"base_channels": recipe.base_channels}
    if args.tiny:  # otherwise, too, runs of before say no more
        network["multipliers"] = [*recipe.multipliers]
    if channels != 3:  # of three, runs of before say nothing either
        network["channels"] = channels
    settings: dict[str, Any] = {
        "kind": "diffusion model",
        "network": network,
        "classes": list(train_set.classes),
        "image_shape": list(train_set.image_shape),
        "flags": flags_of(args),
    }
    with torch.device("meta"):  # for a look only
        multiple = recipe.network(train_set.num_classes, train_set.image_shape).multiple
    if any(side % multiple for side in sides):
        raise ValueError(
            f"--recipe ddpm takes images whose sides are multiples of {multiple} pixels; those of --data {args.data} "
            f"have {sides[0]} x {sides[1]}; resize them, the pictures of a folder by --size"
        )
    return settings


def fit(
    settings: dict[str, Any], train_set: ImageDataset, val_set: ImageDataset, folder: Path, resume: Path | str
) -> training.Run:
    """Train with a moving average, whose samples are drawn as the run goes; a run that goes on keeps its recipe."""
    args, kept = recorded_flags(settings), _kept_recipe(folder)
    recipe = kept or _own_recipe(args).of_run(folder)
    task, loader = recipe.task(train_set), recipe.loader(train_set, seed=args.seed)
    epochs = 1 if args.tiny else args.epochs
    end, updates = {"max_epochs": epochs}, epochs * len(loader)
    if args.minutes is not None:
        length = {"epochs": epochs, "minutes": args.minutes, "timed": 2 if args.tiny else 20}
        updates = training.plan_updates(folder / "plan.json", task, loader, recipe.settings(), **length)
        end, epochs = {"max_steps": updates}, math.ceil(updates / len(loader))
    average = recipe.average(updates)
    grid = _sample_grid(recipe, train_set, folder, max(1, epochs // 10), average, 2 if args.tiny else 31)
    callbacks = [average, grid, training.ModelCheckpoint(folder, every_n_steps=500)]
    callbacks += [training.TimeLimit(59 * args.minutes)] if args.minutes else []  # what follows takes time, too
    loggers = [SettingsWriter(folder, settings), training.CSVLogger(folder)]
    trainer = recipe.trainer(**end, callbacks=callbacks, loggers=loggers)
    to_signed = transforms.Normalize(0.5, 0.5)  # to [-1, 1]
    val_loader = Loader(val_set, 500, transform=to_signed, **training.own_part())
    return trainer.fit(task, loader, val_loader, resume=resume)


def _sample_grid(
    recipe: recipes.DiffusionRecipe, train_set: ImageDataset, folder: Path, every: int, average: Any, steps: int
) -> training.SampleGrid:
    """Make the callback that draws a row of samples of each class, from the same noise each time."""
    labels = torch.arange(min(10, train_set.num_classes)).repeat_interleave(8)
    noise = draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))

    def sample(task: Any) -> torch.Tensor:
        return sample_ddim(recipe.denoiser(task.model, labels), noise, recipe.noise_schedule, steps=steps)

    return training.SampleGrid(sample, folder / "samples", every_n_epochs=every, average=average)
