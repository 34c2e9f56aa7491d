"""How much faster do two processes train than one, and what would N machines do?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --tiny  # seconds, to see that it runs

A ResNet-18 in bf16 is trained through the Trainer, a batch of 64 in each process, one thread a process: alone, as two
processes that torchrun joins, and as two that know nothing of each other. The last shows what two cores that share
their memory could give at most. Times are those of single updates behind the first ones.

What N machines would do is a projection and not a measurement: the seconds of an update of one process alone, and
either the exchange as it was measured between two processes of this machine, or the copies of its gradients and the
transfer of a ring all-reduce, 2 (N - 1) / N of their bytes, over a network of the stated speed. It assumes that nothing
of the exchange hides behind backward, as is the case here, and that all machines are equally fast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor

from cifarkit import Callback, ClassificationTask, Run, Trainer, seed_everything
from cifarkit.data import Loader, shapes
from cifarkit.models import resnet18
from cifarkit.training import distributed

BATCH = 64
NETWORKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8}  # bytes a second
LATENCY_SECONDS = 1e-4  # of one message; assumed
MACHINES = (2, 4, 8, 16)


class Clock(Callback):
    """Note when each update was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.times.append(time.perf_counter())


def work(steps: int, warmup: int, batch: int, folder: Path) -> None:
    """Train in this process, perhaps one of several, and write down the seconds of its updates and exchanges."""
    torch.set_num_threads(1)
    seed_everything(0)
    exchanges: list[float] = []
    average = distributed.average_gradients

    def timed(*args: Any) -> int:
        start = time.perf_counter()
        images = average(*args)
        exchanges.append(time.perf_counter() - start)
        return images

    distributed.average_gradients = timed
    model, clock = resnet18(), Clock()
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = Loader(shapes(batch * 8 * world_size), batch, shuffle=True, rank=rank, world_size=world_size)
    Trainer(max_steps=warmup + steps, precision="bf16-mixed", callbacks=[clock], progress=False).fit(task, loader)
    updates = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    found = {"updates": updates[warmup - 1 :], "exchanges": exchanges[warmup:], "copies": copy_seconds(model)}
    found["bytes"] = 4 * sum(parameter.numel() for parameter in model.parameters())
    (folder / f"{os.getpid()}.json").write_text(json.dumps(found))


def copy_seconds(model: torch.nn.Module) -> float:
    """Time what an exchange does beside sending: lay the gradients end to end, and copy them back."""
    gradients: list[Tensor] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    took = []
    for _ in range(5):
        start = time.perf_counter()
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        for gradient, part in zip(gradients, flat.split([item.numel() for item in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        took.append(time.perf_counter() - start)
    return sorted(took)[2]


def measure(kind: str, options: argparse.Namespace, raw: dict[str, list[Any]]) -> float:
    """Run one contender and return images a second, of all its processes together."""
    python = [sys.executable]
    if kind == "joined":
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    steps, warmup, batch = (3, 2, 8) if options.tiny else (30, 5, BATCH)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--worker", folder, "--sizes", *map(str, (steps, warmup, batch))]
        command = [*python, str(Path(__file__).resolve()), *flags]
        count = 2 if kind == "unconnected" else 1
        processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(count)]
        for process in processes:
            errors = process.communicate()[1]
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    raw.setdefault(kind, []).append(found)
    return sum(batch * len(item["updates"]) / sum(item["updates"]) for item in found)


def project(update: float, exchange: float, copies: float, size: float) -> list[list[str]]:
    """Return, for each number of machines, the share of N-fold speed that would be left on each network."""
    rows = []
    for machines in MACHINES:
        trips = 2 * (machines - 1) / machines  # of all bytes; 1 between two
        row = [str(machines), f"{update / (update + trips * exchange):.0%}"]
        for speed in NETWORKS.values():
            transfer = trips * size / speed + 2 * (machines - 1) * LATENCY_SECONDS
            row.append(f"{update / (update + copies + transfer):.0%}")
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__, "scaling")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.worker:
        work(*options.sizes, options.worker)
        return
    raw: dict[str, list[Any]] = {}
    kinds = ("alone", "joined", "unconnected")
    rounds = 1 if options.tiny else options.rounds
    speeds = take_turns({kind: lambda kind=kind: measure(kind, options, raw) for kind in kinds}, rounds)
    alone = [item for round_ in raw["alone"] for item in round_]
    joined = [item for round_ in raw["joined"] for item in round_]
    update = Spread.of([seconds for item in alone for seconds in item["updates"]]).median
    exchange = Spread.of([seconds for item in joined for seconds in item["exchanges"]])
    copies = Spread.of([item["copies"] for item in alone]).median
    double = [2 * speed for speed in speeds["alone"]]
    rows = [[kind, Spread.of(speeds[kind]).text(1)] for kind in kinds]
    rows[1].append(ratios(speeds["joined"], double).text())
    rows[2].append(ratios(speeds["unconnected"], double).text())
    rows[0].append("")
    columns = ["processes of one thread", "images a second", "over twice the one alone"]
    batch = 8 if options.tiny else BATCH
    settings = {"rounds": rounds, "batch_a_process": batch, "model": "resnet18", "precision": "bf16-mixed"}
    report = Report("scaling", settings)
    report.tables.append(Table(f"ResNet-18, bf16, a batch of {batch} in each process, one machine", columns, rows))
    size = alone[0]["bytes"]
    words = f"{update:.3f} s an update alone, {1000 * copies:.0f} ms of copies, {size / 1e6:.0f} MB of gradients"
    title = f"PROJECTED share of N-fold speed on N machines, from {words}"
    columns = ["machines", "with the exchange measured between two processes here", *NETWORKS]
    report.tables.append(Table(title, columns, project(update, exchange.median, copies, size)))
    waited = Table("An exchange of two processes, waiting for each other included", ["seconds"], [[exchange.text(3)]])
    report.tables.append(waited)
    report.figures = {"images_per_second": speeds, "update_seconds": update, "copy_seconds": copies, "bytes": size}
    report.figures["exchange_seconds"] = [seconds for item in joined for seconds in item["exchanges"]]
    report.publish(destination(options, "scaling"))


if __name__ == "__main__":
    main()
