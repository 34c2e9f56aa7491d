"""How do the seconds and the memory of the speed recipe grow with images, width and threads?

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

import torch
from report import Report, Table, arguments, destination

from cifarkit import data, recipes
from cifarkit.training import estimate_seconds

WIDTHS = [(32, 128, 128), (64, 256, 256), (96, 384, 384), (128, 512, 512)]
IMAGES = [10_000, 20_000, 50_000]
BASE_WIDTHS, BASE_IMAGES = (64, 256, 256), 20_000


def child(images: int, widths: tuple[int, int, int], threads: int, tiny: bool) -> dict[str, float]:
    """Estimate the recipe in this process."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):  # else the Loader's threads would use the other cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    recipe = replace(recipes.SPEEDRUN["8-minutes"], widths=widths, **({"batch_size": 20} if tiny else {}))
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


def main() -> None:
    parser = arguments(__doc__, "speed_growth")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        images, widths, threads = json.loads(args.child)
        print(json.dumps(child(images, tuple(widths), threads, args.tiny)))
        return
    report = Report("speed_growth", {"recipe": "8-minutes"})
    rows, found = [], []
    for line in settings(args.tiny):
        command = [sys.executable, __file__, "--child", json.dumps(line), *(["--tiny"] if args.tiny else [])]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        images, widths, threads = line
        per_image = 1e6 * result["seconds"] / images / recipes.SPEEDRUN["8-minutes"].epochs
        rows.append(
            [
                f"{images:,}",
                "/".join(map(str, widths)),
                str(threads),
                f"{result['seconds']:.0f}",
                f"{per_image:.0f}",
                f"{result['gib']:.2f}",
            ]
        )
        found.append({"images": images, "widths": widths, "threads": threads} | result)
        print(rows[-1], flush=True)
    columns = ["images", "widths", "threads", "seconds of the recipe", "µs an image and epoch", "GiB"]
    report.tables.append(Table("Growth of the speed recipe", columns, rows))
    report.figures["lines"] = found
    report.publish(destination(args, "speed_growth"))


if __name__ == "__main__":
    main()
