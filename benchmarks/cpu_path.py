"""How much faster than plain PyTorch are a training step and an evaluation of a ResNet-18 on a CPU?

    python benchmarks/cpu_path.py
    ... --weights runs/<of train_classifier.py>/last.pt with CIFARKIT_DATA set: accuracies as well

Every measurement is a process of its own, since the allocator's settings are those of a process, and the contenders
take turns. "plain" loops are what a user writes first: the model in a loop of zero_grad, forward, backward and step.
Fixed random images; the first updates are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor
from torch.nn import functional as F

from cifarkit import Callback, ClassificationTask, Run, Trainer, data, load_weights, predict, transforms
from cifarkit.models import resnet18

STEPS = {
    "fp32, NCHW, plain": "fp32",
    "bf16, channels_last, plain": "bf16",
    "Trainer": "trainer",
    "Trainer, compiled": "compiled",
}
INFERENCE = {
    "fp32, NCHW, plain": "eager",
    "predict, fp32": "predict-fp32",
    "predict, bf16": "predict-bf16",
    "predict, int8": "predict-int8",
}


def plain_steps(batches: list[tuple[Tensor, Tensor]], bf16: bool) -> list[float]:
    """Return when each update of a plain loop was done."""
    model = resnet18()
    if bf16:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    times = []
    for images, labels in batches:
        if bf16:
            images = images.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
    return times


class _Clock(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.times.append(time.perf_counter())


def trainer_steps(batches: list[tuple[Tensor, Tensor]], compiled: bool) -> list[float]:
    """Return when each update of the Trainer was done."""
    model, clock = resnet18(), _Clock()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    trainer = Trainer(max_epochs=1, precision="auto", compile=compiled, callbacks=[clock], progress=False)
    with warnings.catch_warnings():
        if compiled:
            warnings.filterwarnings("error", "compile=True does not work")  # what is timed then is not compiled
        trainer.fit(ClassificationTask(model, optimizer), batches)
    return clock.times


def step_child(kind: str, tiny: bool) -> float:
    """Return images a second of one contender."""
    count, steps, warmup = (16, 4, 2) if tiny else (128, 14, 4)
    torch.manual_seed(0)
    some = [(torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))) for _ in range(2)]
    batches = [some[step % 2] for step in range(steps)]
    times = (
        plain_steps(batches, kind == "bf16") if kind in ("fp32", "bf16") else trainer_steps(batches, kind == "compiled")
    )
    return count * (steps - warmup) / (times[-1] - times[warmup - 1])


def inference_child(kind: str, tiny: bool, weights: str | None) -> dict[str, float]:
    """Return images a second of one contender, and its accuracy if there are weights."""
    model, test = resnet18().eval(), test_images(tiny, weights)
    if weights is not None:
        load_weights(model, weights)
    images = normalized(test, weights is not None)
    started = time.perf_counter()
    if kind == "eager":
        with torch.no_grad():
            logits = torch.cat([model(batch) for batch in images.split(512)])
    else:
        logits = predict(model, images, precision=kind.removeprefix("predict-"))
    seconds = time.perf_counter() - started
    return {
        "images_a_second": len(images) / seconds,
        "accuracy": (logits.argmax(1) == test.labels).float().mean().item(),
    }


def test_images(tiny: bool, weights: str | None) -> data.ImageDataset:
    """Load the test images that the weights are for, or draw some."""
    if weights is not None:
        return data.load_npz(Path(os.environ["CIFARKIT_DATA"], "cifar10-test.npz"))
    return data.shapes(100 if tiny else 5_000)


def normalized(test: data.ImageDataset, real: bool) -> Tensor:
    """Normalise as in training: by the statistics of the training split of train_classifier.py, if real."""
    if not real:
        return transforms.Normalize(*test.mean_std())(test.images)
    train = data.load_npz(Path(os.environ["CIFARKIT_DATA"], "cifar10-train.npz")).split(0.9, 0.1)[0]
    return transforms.Normalize(*train.mean_std())(test.images)


def measure(what: str, kind: str, args: argparse.Namespace, kept: list[Any] | None = None) -> float:
    """Measure one contender in a process of its own."""
    flags = ["--tiny"] if args.tiny else []
    flags += ["--weights", str(args.weights)] if args.weights else []
    command = [sys.executable, __file__, "--child", what, kind, *flags]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    if kept is not None:
        kept.append({"contender": kind} | found)
    return float(found["images_a_second"])


def compare(report: Report, title: str, found: dict[str, list[float]]) -> dict[str, Spread]:
    """Add a table of images a second, and return the ratios to the first contender."""
    base = next(iter(found))
    shares = {name: ratios(values, found[base]) for name, values in found.items()}
    rows = [[name, Spread.of(values).text(0), shares[name].text()] for name, values in found.items()]
    report.tables.append(Table(title, ["contender", "images/s", f"× {base}"], rows))
    report.figures[title] = found
    return shares


def main() -> None:
    parser = arguments(__doc__, "cpu_path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="of a trained ResNet-18, to compare accuracies")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    weights = None if args.weights is None else str(args.weights)
    if args.child:
        what, kind = args.child
        found = (
            inference_child(kind, args.tiny, weights)
            if what == "inference"
            else {"images_a_second": step_child(kind, args.tiny)}
        )
        print(json.dumps(found))
        return
    rounds = 1 if args.tiny else args.rounds
    report = Report("cpu_path", {"batch": 128, "rounds": rounds})
    calls: dict[str, Callable[[], float]] = {name: partial(measure, "step", kind, args) for name, kind in STEPS.items()}
    steps = take_turns(calls, rounds)
    shares = compare(report, "ResNet-18, training step, batch 128", steps)
    kept: list[Any] = []
    calls = {name: partial(measure, "inference", kind, args, kept) for name, kind in INFERENCE.items()}
    fast = compare(report, "ResNet-18, 5,000 images classified", take_turns(calls, rounds))
    report.figures["inference"] = kept
    rate = statistics.median(steps["Trainer"])
    report.aim("Trainer at 340 images a second, the goal", f"{rate:.0f} images a second", rate >= 340)
    plain = ratios(steps["Trainer"], steps["bf16, channels_last, plain"])
    report.aim("Trainer at least 1.5 × the plain bf16 loop", plain.text(), plain.median >= 1.5)
    report.aim("Trainer at least 4.5 × the plain fp32 loop", shares["Trainer"].text(), shares["Trainer"].median >= 4.5)
    accuracies = {item["contender"]: item["accuracy"] for item in kept}  # the same in every round
    for name in ("predict, bf16", "predict, int8"):
        report.aim(f"{name}: at least 5 × plain fp32", fast[name].text(), fast[name].median >= 5)
        if weights is not None:
            found, plain_found = accuracies[INFERENCE[name]], accuracies["eager"]
            text = f"{found:.4f} against {plain_found:.4f}"
            report.aim(f"{name}: accuracy within 0.1 point of it", text, abs(found - plain_found) <= 0.001)
    report.publish(destination(args, "cpu_path"))


if __name__ == "__main__":
    main()
