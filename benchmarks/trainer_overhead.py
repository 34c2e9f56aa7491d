"""What the Trainer costs per step, against plain loops and Lightning.

    python benchmarks/trainer_overhead.py            # about 4 minutes on 2 cores
    python benchmarks/trainer_overhead.py --tiny     # seconds, to see that it runs

Every loop gets the same list of batches in memory, an equal network and an equal optimizer. "bare loop" only trains;
"plain loop" also keeps the running loss and accuracy on the device and reads them every 50 steps, as a careful script
does and as the Trainer does. The clock runs from one request for a batch to a later one, so building a loop and ending
it count for nobody.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit import ClassificationTask, Trainer
from cifarkit.inference import cpu_has_bf16
from cifarkit.models import resnet18

try:
    import lightning
except ImportError:
    print("lightning is not installed and is left out: pip install -r benchmarks/requirements.txt")
    lightning = None  # type: ignore[assignment]

LOG_EVERY_STEPS = 50
Network = Callable[[], nn.Module]


class TimedBatches:
    """The same few batches over and over, noting when the loop asks for each.

    Args:
        batches: of (images, labels).
        steps: length of the epoch.
        warmup: requests that are not timed, at least 1.
    """

    def __init__(self, batches: list[tuple[Tensor, Tensor]], steps: int, warmup: int) -> None:
        self.batches, self.steps, self.warmup = batches, steps, warmup
        self.requests: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.requests = []
        for step in range(self.steps):
            self.requests.append(time.perf_counter())
            yield self.batches[step % len(self.batches)]

    def seconds_per_step(self) -> float:
        """Return the mean over the steps after the warm-up, of the epoch that was iterated last."""
        return (self.requests[-1] - self.requests[self.warmup]) / (self.steps - 1 - self.warmup)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def bare_loop(network: Network, batches: TimedBatches, precision: str) -> float:
    model = network()
    optimizer = sgd(model)
    for images, labels in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return batches.seconds_per_step()


def plain_loop(network: Network, batches: TimedBatches, precision: str) -> float:
    model = network()
    optimizer = sgd(model)
    history, loss_sum, correct, seen = [], torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
    for step, (images, labels) in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        seen += len(labels)
        if step % LOG_EVERY_STEPS == 0:
            history.append((loss_sum.item() / seen, correct.item() / seen))
            loss_sum.zero_()
            correct.zero_()
            seen = 0
    return batches.seconds_per_step()


def our_trainer(network: Network, batches: TimedBatches, precision: str) -> float:
    model = network()
    trainer = Trainer(
        max_epochs=1, precision=precision, device="cpu", progress=False, log_every_n_steps=LOG_EVERY_STEPS
    )
    trainer.fit(ClassificationTask(model, sgd(model)), batches)
    return batches.seconds_per_step()


def lightning_trainer(network: Network, batches: TimedBatches, precision: str, *, metrics: bool) -> float:
    """Run Lightning as lean as it goes: no bar, logger or checkpoint; "barebones" too if it keeps no metrics."""
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings: dict[str, Any] = {"barebones": True} if not metrics else dict.fromkeys(switches, False)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        precision="32-true" if precision == "fp32" else "bf16-mixed",
        **settings,
    )
    trainer.fit(lightning_module(network(), metrics), batches)
    return batches.seconds_per_step()


def lightning_module(model: nn.Module, metrics: bool) -> Any:
    """Wrap a network as Lightning's tutorials do; the class stands in here because Lightning may be absent."""

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            if metrics:
                accuracy = (logits.detach().argmax(1) == labels).float().mean()
                self.log_dict({"train_loss": loss, "train_acc": accuracy}, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.model)

    return Classifier()


def mlp() -> nn.Module:
    """Three layers on 28 x 28 pixels: a step of about a quarter of a millisecond, where overhead shows."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def resnet() -> nn.Module:
    return resnet18().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]


@dataclass(frozen=True)
class Case:
    """One network to compare the loops on; shape is that of an image, most the target in plain loops."""

    name: str
    network: Network
    shape: tuple[int, ...]
    precision: str
    most: float
    peers: bool
    batch_size: int = 64
    steps: int = 1000
    warmup: int = 100
    rounds: int = 15

    @property
    def title(self) -> str:
        return f"{self.name}, batch {self.batch_size}, {self.precision}"


def compare(case: Case) -> dict[str, list[float]]:
    """Return the seconds a step of each loop, one value a round."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(10):
        images = torch.rand(case.batch_size, *case.shape, generator=generator)
        images = images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
        batches.append((images, torch.randint(10, (case.batch_size,), generator=generator)))
    timed = TimedBatches(batches, case.steps + case.warmup + 1, case.warmup)
    loops: dict[str, Callable[..., float]] = {"bare loop": bare_loop, "plain loop": plain_loop, "Trainer": our_trainer}
    if case.peers and lightning is not None:
        loops["Lightning, no metrics"] = partial(lightning_trainer, metrics=False)
        loops["Lightning, loss and accuracy"] = partial(lightning_trainer, metrics=True)
    turns = {name: partial(loop, case.network, timed, case.precision) for name, loop in loops.items()}
    return take_turns(turns, case.rounds)


def tabulate(title: str, seconds: Mapping[str, list[float]]) -> Table:
    rows = [
        [
            name,
            Spread.of([value * 1e6 for value in values]).text(0),
            ratios(values, seconds["plain loop"]).text(3),
            ratios(values, seconds["bare loop"]).text(3),
        ]
        for name, values in seconds.items()
    ]
    return Table(title, ["loop", "µs a step", "× plain loop", "× bare loop"], rows)


def main() -> None:
    options = arguments(__doc__, "trainer_overhead").parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fast = "bf16-mixed" if cpu_has_bf16() else "fp32"  # the faster format, in which an overhead weighs more
    cases = [
        Case("3-layer MLP", mlp, (784,), "fp32", most=1.2, peers=True),
        Case("ResNet-18", resnet, (3, 32, 32), fast, most=1.02, peers=False, steps=5, warmup=2, rounds=11),
    ]
    if options.tiny:
        cases = [replace(case, batch_size=4, steps=5, warmup=1, rounds=1) for case in cases]
    settings = {case.title: {"steps": case.steps, "warmup": case.warmup, "rounds": case.rounds} for case in cases}
    report = Report("trainer_overhead", settings, ["lightning"])
    for case in cases:
        title, seconds = case.title, compare(case)
        report.figures[title] = {"seconds_per_step": seconds}
        report.tables.append(tabulate(title, seconds))
        ratio = ratios(seconds["Trainer"], seconds["plain loop"])
        report.aim(f"{title}: Trainer at most {case.most} × the plain loop", ratio.text(3), ratio.median <= case.most)
    report.publish(destination(options, "trainer_overhead"))


if __name__ == "__main__":
    main()
