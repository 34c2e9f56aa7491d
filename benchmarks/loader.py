"""Images a second out of the Loader, against a torchvision DataLoader that transforms one image at a time.

    python benchmarks/loader.py            # about 3 minutes on 2 cores
    python benchmarks/loader.py --tiny     # seconds, to see that it runs

All sides crop at random after padding by 4, flip, perhaps rotate by up to 15 degrees, and normalise: the same
operations with the same settings, in batches of 256, one independent draw an image. A round reads one shuffled epoch
from every side; workers are kept from epoch to epoch, and nothing else runs. CIFARKIT_DATA names a folder with
cifar10-train.npz; without it the images are the built-in shapes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from cifarkit import ImageDataset, Loader
from cifarkit.data import load_npz, shapes
from cifarkit.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomRotation

BATCH_SIZE = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DEGREES = 15
TARGETS = {False: 20, True: 5}  # with rotation or not: times the images/s of the DataLoader with 2 workers


class Pictures(Dataset[tuple[Any, int]]):
    """Images one by one, each made a PIL picture first if asked, as torchvision's CIFAR10 does."""

    def __init__(self, dataset: ImageDataset, transform: Callable[[Any], Any], *, pil: bool) -> None:
        self.images, self.labels, self.transform = dataset.images, dataset.labels.tolist(), transform
        self.pixels = dataset.images.permute(0, 2, 3, 1).contiguous().numpy() if pil else None  # (N, H, W, C)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index] if self.pixels is None else Image.fromarray(self.pixels[index])
        return self.transform(image), self.labels[index]


def our_loader(dataset: ImageDataset, rotate: bool) -> Loader:
    moves = [RandomCrop(32, 4, mode="constant"), RandomHorizontalFlip()]
    rotation = [RandomRotation(DEGREES)] if rotate else []
    return Loader(dataset, BATCH_SIZE, transform=Compose([*moves, *rotation, Normalize(MEAN, STD)]), shuffle=True)


def v1_pictures(dataset: ImageDataset, rotate: bool) -> Pictures:
    moves = [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), *([v1.RandomRotation(DEGREES)] if rotate else [])]
    return Pictures(dataset, v1.Compose([*moves, v1.ToTensor(), v1.Normalize(MEAN, STD)]), pil=True)


def v2_tensors(dataset: ImageDataset, rotate: bool) -> Pictures:
    moves = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *([v2.RandomRotation(DEGREES)] if rotate else [])]
    to_float = v2.ToDtype(torch.float32, scale=True)
    return Pictures(dataset, v2.Compose([*moves, to_float, v2.Normalize(MEAN, STD)]), pil=False)


def torch_loader(pictures: Pictures, workers: int) -> DataLoader[tuple[Any, int]]:
    return DataLoader(pictures, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def images_per_second(loader: Any) -> float:
    """Read one epoch."""
    start, seen = time.perf_counter(), 0
    for images, _ in loader:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def read_images(count: int) -> tuple[str, ImageDataset]:
    folder = os.environ.get("CIFARKIT_DATA")
    if folder is None:
        return "shapes", shapes(count)
    dataset = load_npz(Path(folder) / "cifar10-train.npz")
    return "CIFAR-10", dataset.subset(torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count])


def compare(many: ImageDataset, few: ImageDataset, rotate: bool, rounds: int) -> dict[str, list[float]]:
    """Return images a second of each side, one value a round; the slow sides read fewer images, which is fair."""
    loaders: dict[str, Sized] = {"cifarkit Loader": our_loader(many, rotate)}
    for kind, pictures in (("v1 on PIL", v1_pictures(few, rotate)), ("v2 on tensors", v2_tensors(few, rotate))):
        for workers in (2, 0):
            loaders[f"DataLoader, {kind}, {workers} workers"] = torch_loader(pictures, workers)
    for loader in loaders.values():
        images_per_second(loader)  # starts the workers, and fills caches
    return take_turns({name: partial(images_per_second, loader) for name, loader in loaders.items()}, rounds)


def main() -> None:
    options = arguments(__doc__, "loader").parse_args()
    many_images, few_images, rounds = (2048, 512, 2) if options.tiny else (50_000, 10_240, 9)
    source, many = read_images(many_images)
    few = many.subset(torch.arange(few_images))
    settings = {"data": source, "batch_size": BATCH_SIZE, "images": [many_images, few_images], "rounds": rounds}
    report = Report("loader", settings)
    for rotate, least in TARGETS.items():
        title = f"crop + flip {'+ rotation ' if rotate else ''}+ normalise, {source}"
        speeds = compare(many, few, rotate, rounds)
        ours, peer = speeds["cifarkit Loader"], "DataLoader, v1 on PIL, 2 workers"
        rows = [[name, Spread.of(values).text(0), ratios(ours, values).text(1)] for name, values in speeds.items()]
        report.figures[title] = {"images_per_second": speeds}
        report.tables.append(Table(title, ["reader", "images/s", "cifarkit's × this"], rows))
        ratio = ratios(ours, speeds[peer])
        report.aim(f"{title}: at least {least} × {peer}", ratio.text(1), ratio.median >= least)
    report.publish(destination(options, "loader"))


if __name__ == "__main__":
    main()
