"""What is it worth to begin with a trained network? Five classes of CIFAR-10, few images, and a network of the others.

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/transfer.py

A small SpeedNet first learns five classes with all their images. Another task, the five other classes with few images
each, is then learnt from scratch; by a new head on the frozen network; and by that head followed by all weights at a
smaller rate. All three make the same number of updates, and are scored on other training images of the five classes;
the test set is not touched. Every seed draws another five classes. Cost is processor time on one thread, without that
of the first network, which is given beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
from report import Report, Table, arguments, destination
from torch import nn

from cifarkit import ClassificationTask, Loader, Trainer, data, freeze, models, schedules, seed_everything, transforms
from cifarkit import unfreeze as thaw

HEAD_RATE, BODY_RATE = 0.1, 0.01
WAYS = ("from scratch", "new head on a frozen network", "new head, then everything")


def classes_of(everything: data.ImageDataset, chosen: list[int]) -> data.ImageDataset:
    """Return the images of some classes, labelled anew from 0."""
    part = everything.subset(torch.isin(everything.labels, torch.tensor(chosen)).nonzero()[:, 0])
    new = {old: index for index, old in enumerate(chosen)}
    labels = torch.tensor([new[int(label)] for label in part.labels])
    return data.ImageDataset(part.images, labels, tuple(everything.classes[old] for old in chosen))


def train(model: nn.Module, groups: list[dict[str, Any]], images: data.ImageDataset, seed: int, **until: int) -> None:
    normalize = transforms.Normalize(*images.mean_std())
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), normalize]
    loader = Loader(images, min(128, len(images)), shuffle=True, seed=seed, transform=transforms.Compose(steps))
    task = ClassificationTask(model, torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, nesterov=True))
    Trainer(schedule=schedules.one_cycle(), progress=False, **until).fit(task, loader)


def learn(way: str, source: models.SpeedNet, images: data.ImageDataset, seed: int, updates: int) -> models.SpeedNet:
    """Learn the second task in one of the three ways; the source's network is not changed."""
    seed_everything(seed)
    model = models.SpeedNet(num_classes=images.num_classes, widths=(16, 32, 64))
    head = list(model.head.parameters())
    if way == WAYS[0]:
        train(model, [{"params": list(model.parameters()), "lr": HEAD_RATE}], images, seed, max_steps=updates)
        return model
    own = model.head.state_dict()
    model.load_state_dict(source.state_dict())
    model.head.load_state_dict(own)
    freeze(model)
    thaw(model.head)
    first = updates if way == WAYS[1] else updates // 2
    train(model, [{"params": head, "lr": HEAD_RATE}], images, seed, max_steps=first)
    if way == WAYS[2]:
        thaw(model)
        body = [item for item in model.parameters() if all(item is not each for each in head)]
        groups = [{"params": body, "lr": BODY_RATE}, {"params": head, "lr": HEAD_RATE}]
        train(model, groups, images, seed, max_steps=updates - first)
    return model


def run_seed(everything: data.ImageDataset, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train the source and the three ways with one seed, and score them."""
    order = torch.randperm(everything.num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    source_set, target = classes_of(everything, order[:5]), classes_of(everything, order[5:])
    few, scored = target.split(5 * args.images, args.scored, seed=seed)
    seed_everything(seed)
    start, source = time.process_time(), models.SpeedNet(num_classes=5, widths=(16, 32, 64))
    train(source, [{"params": list(source.parameters()), "lr": 0.1}], source_set, seed, max_epochs=args.epochs)
    found: dict[str, Any] = {"source_seconds": time.process_time() - start, "classes": list(target.classes)}
    for way in WAYS:
        start = time.process_time()
        model = learn(way, source, few, seed, args.updates)
        spent = time.process_time() - start
        loader = Loader(scored, 500, transform=transforms.Normalize(*few.mean_std()))
        task = ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.0))
        accuracy = Trainer(max_epochs=1, progress=False).evaluate(task, loader)["val_acc"]
        found[way] = {"accuracy": accuracy, "cpu_seconds": spent}
        print(f"seed {seed}, {way}: {accuracy:.4f} in {spent:.0f} s", flush=True)
    return found


def spread(values: list[float], sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> None:
    parser = arguments(__doc__, "transfer")
    parser.add_argument("--images", type=int, default=100, help="of each of the five classes to learn")
    parser.add_argument("--scored", type=int, default=5_000, help="images that all three are scored on")
    parser.add_argument("--epochs", type=int, default=6, help="of the first network, over the other five classes")
    parser.add_argument("--updates", type=int, default=200, help="of each way to learn the second task")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tiny:
        args.images, args.scored, args.epochs, args.updates, args.seeds = 20, 100, 1, 4, 1
    everything = data.shapes(600) if args.tiny else data.cifar10(os.environ.get("CIFARKIT_DATA", "data"))
    found = [run_seed(everything, args, seed) for seed in range(args.seeds)]
    rows = []
    for way in WAYS:
        accuracies = [100 * item[way]["accuracy"] for item in found]
        gains = [100 * (item[way]["accuracy"] - item[WAYS[0]]["accuracy"]) for item in found]
        times = [item[way]["cpu_seconds"] / item[WAYS[0]]["cpu_seconds"] for item in found]
        gain = "" if way == WAYS[0] else spread(gains, "+")
        rows.append([way, f"{spread(accuracies)} %", gain, f"{statistics.median(times):.2f}"])
    names = ("images", "scored", "epochs", "updates", "seeds")
    report = Report("transfer", {"data": "shapes" if args.tiny else "CIFAR-10"} | {n: getattr(args, n) for n in names})
    title = f"Five classes, {args.images} images each, {args.updates} updates, {args.seeds} seeds"
    report.tables.append(Table(title, ["start", "accuracy", "gain, points", "time, from scratch = 1"], rows))
    report.figures = {"seeds": found}
    report.publish(destination(args, "transfer"))


if __name__ == "__main__":
    main()
