"""How do seconds and memory of a speed recipe grow with images, width and threads, and what do all recipes take?

    python benchmarks/speed_growth.py

Every line is a process of its own, which times updates with ``training.estimate_seconds`` on drawn images and says how
long the whole recipe would take. Memory is the most that the process held, images included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch
from report import Report, Table, arguments, destination

from cifarkit import data, recipes
from cifarkit.training import estimate_seconds

BASE = "8-minutes"
WIDTHS = [(32, 128, 128), (48, 192, 192), (64, 256, 256), (96, 384, 384), (128, 512, 512)]
IMAGES = [10_000, 20_000, 50_000]
BASE_WIDTHS, BASE_IMAGES = (48, 192, 192), 20_000


def child(name: str, images: int, widths: tuple[int, int, int], threads: int, tiny: bool) -> dict[str, float]:
    """Estimate a recipe in this process."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):  # else the Loader's threads would use the other cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    recipe = replace(recipes.SPEEDRUN[name], widths=widths, **({"batch_size": 20} if tiny else {}))
    train_set = data.shapes(images)
    task, loader = recipe.task(train_set), recipe.loader(train_set)
    seconds = estimate_seconds(recipe.trainer(progress=False), task, loader, steps=1 if tiny else 8)
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # KiB on Linux


def settings(tiny: bool) -> list[tuple[int, tuple[int, int, int], int]]:
    """List (images, widths, threads): one of them changes at a time."""
    if tiny:
        return [(100, (8, 8, 8), 1), (200, (8, 8, 8), 1)]
    threads = torch.get_num_threads()
    lines = [(images, BASE_WIDTHS, threads) for images in IMAGES]
    lines += [(BASE_IMAGES, widths, threads) for widths in WIDTHS]
    lines += [(BASE_IMAGES, BASE_WIDTHS, count) for count in range(1, threads)]
    return list(dict.fromkeys(lines))


def estimate(name: str, line: tuple[int, tuple[int, int, int], int], tiny: bool) -> dict[str, Any]:
    """Estimate a recipe in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps([name, *line]), *(["--tiny"] if tiny else [])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    images, widths, threads = line
    about = {"recipe": name, "images": images, "widths": widths, "threads": threads}
    return about | json.loads(output.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__, "speed_growth")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, images, widths, threads = json.loads(args.child)
        print(json.dumps(child(name, images, tuple(widths), threads, args.tiny)))
        return
    report = Report("speed_growth", {"recipe": BASE})
    grown = [estimate(BASE, line, args.tiny) for line in settings(args.tiny)]
    epochs = recipes.SPEEDRUN[BASE].epochs
    columns = ["images", "widths", "threads", "seconds of the recipe", "µs an image and epoch", "GiB"]
    rows = [
        [
            f"{found['images']:,}",
            "/".join(map(str, found["widths"])),
            str(found["threads"]),
            f"{found['seconds']:.0f}",
            f"{1e6 * found['seconds'] / found['images'] / epochs:.0f}",
            f"{found['gib']:.2f}",
        ]
        for found in grown
    ]
    report.tables.append(Table("Growth of the speed recipe", columns, rows))
    threads = torch.get_num_threads()
    images = 100 if args.tiny else IMAGES[-1]
    all_recipes = [
        estimate(name, (images, (8, 8, 8) if args.tiny else recipe.widths, threads), args.tiny)
        for name, recipe in recipes.SPEEDRUN.items()
    ]
    rows = [[found["recipe"], f"{found['seconds']:.0f}", f"{found['gib']:.2f}"] for found in all_recipes]
    title = f"Projected, {images:,} images, {threads} threads"
    report.tables.append(Table(title, ["recipe", "seconds of training", "GiB"], rows))
    report.figures |= {"lines": grown, "recipes": all_recipes}
    report.publish(destination(args, "speed_growth"))


if __name__ == "__main__":
    main()
