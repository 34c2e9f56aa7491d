"""Look at this machine, and at a network if one is named, and warn of what costs time or goes wrong.

    python -m cifarkit doctor --model resnet18 --stem imagenet

It ends with 1 if training cannot work here; warnings do not change that.
"""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from cifarkit import models
from cifarkit.commands.shared import load_classifier, read_settings


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    flag = parser.add_argument
    flag("run_folder", metavar="RUN", nargs="?", help="look at the network of this run of `train`, too")
    flag("--model", choices=["speednet", "resnet18", "resnet34"], help="without RUN; default speednet")
    flag("--stem", choices=["cifar", "imagenet"], help="of the resnets; default cifar")
    flag("--image-size", type=int, help="pixels; default 32, or those of RUN")
    flag("--folder", default=".", help="where runs are to be written")
    flag("--steps", type=int, default=20, help="updates to time; 0 leaves the estimate out")


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing that was looked at."""
    from cifarkit import doctor

    model, size = _network(args)
    problem = False
    for finding in [*doctor.examine_machine(args.folder), *doctor.examine_model(model, size)]:
        print(finding)
        problem = problem or finding.level == doctor.PROBLEM
    if args.steps:
        print(doctor.measure_speed(args.steps, model=model, image_size=size), flush=True)
    return int(problem)


def _network(args: argparse.Namespace) -> tuple[nn.Module, int]:
    given = [name for name in ("model", "stem", "image_size") if getattr(args, name) is not None]
    if args.run_folder and given:
        raise ValueError(f"--{given[0].replace('_', '-')} is for a network without a run; leave it or RUN out")
    if args.stem and args.model in (None, "speednet"):
        raise ValueError(f"--stem {args.stem} is for --model resnet18 or resnet34")
    if args.run_folder:
        settings = read_settings(args.run_folder, "classifier")
        return load_classifier(args.run_folder, settings), settings["image_size"]
    size = 32 if args.image_size is None else args.image_size
    if args.model in (None, "speednet"):
        return models.SpeedNet(), size
    build: Any = models.resnet18 if args.model == "resnet18" else models.resnet34
    return build(stem=args.stem or "cifar"), size
