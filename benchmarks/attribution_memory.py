"""At which memory are attributions of a ResNet-18, and does max_batch bound it?

    python benchmarks/attribution_memory.py
    python benchmarks/attribution_memory.py --tiny     # a minute, to see that it runs

Drawn images and random weights, which memory does not depend on. Each peak is that of a process of its own, above what
it had after one saliency map. "Bounded" means that twice as many images, where the fewer fill a pass already, need
no more but their own maps and what an allocator does not return. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from report import Report, Table, arguments, destination

from cifarkit import data, models
from cifarkit.attribution import METHODS, attribute

ROOM = 64  # MB: an allocator does not return what it held to the same byte
MANY_PASSES = ("integrated_gradients", "smooth_grad_squared", "gradient_shap", "occlusion")


def peak(method: str, max_batch: int, count: int) -> float:
    """Return by how many MB explaining some images raises the peak of a process that has explained one."""
    command = [sys.executable, __file__, "--child", method, str(max_batch), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def child(method: str, max_batch: int, count: int) -> None:
    """Explain so many images and print the growth of the peak."""
    torch.manual_seed(0)
    model, chosen = models.resnet18().eval(), data.shapes(count)
    images, labels = chosen.images / 255, chosen.labels
    attribute(model, images[:1], labels[:1], "saliency")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; getrusage would keep the parent's, too
    before = resident("VmRSS")
    attribute(model, images, labels, method, max_batch=max_batch)
    grown = resident("VmHWM") - before
    if grown <= 0 and method in MANY_PASSES:
        raise RuntimeError(f"{method} has many passes but raised no peak: {grown} MB; the measurement is wrong")
    print(grown)


def resident(name: str) -> float:
    """Read the resident MB of this process, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = arguments(__doc__, "attribution_memory")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]), int(args.child[2]))
        return
    sizes, methods = ((2,), METHODS[:2]) if args.tiny else ((16, 32, 64), METHODS)
    count = sizes[0]  # images that fill the smallest pass
    peaks = {method: [peak(method, size, count) for size in sizes] for method in methods}
    more = {method: peak(method, sizes[0], 2 * count) for method in methods}
    report = Report("attribution_memory", {"max_batch": sizes, "images": count}, packages=("captum",))
    report.figures = {"megabytes": peaks, "twice the images": more}
    headings = ["method", *(f"max_batch {size}" for size in sizes), f"{2 * count} images, max_batch {sizes[0]}"]
    cells = [[method, *(f"{value:,.0f}" for value in (*peaks[method], more[method]))] for method in methods]
    title = f"peak memory of explaining {count} images, MB above that of one saliency map"
    report.tables.append(Table(title, headings, cells))
    for method in methods:
        growth = more[method] - peaks[method][0]
        claim = f"{method}: {2 * count} images need at most {ROOM} MB more than {count} at max_batch {sizes[0]}"
        report.aim(claim, f"{growth:,.0f} MB", growth <= ROOM)
    report.publish(destination(args, "attribution_memory"))


if __name__ == "__main__":
    main()
