"""Lightning's CIFAR-10 tutorial and the same training in cifarkit, side by side.

    python benchmarks/against_lightning.py                    # about 10 minutes on 2 quiet cores
    python benchmarks/against_lightning.py --images 45000 --size 32 --epochs 30 --target 0.92 --rounds 1    # many hours
    python benchmarks/against_lightning.py --tiny             # seconds, to see that it runs

Both sides are programs of a user in side_by_side/, lightning_way.py and cifarkit_way.py: ResNet-18, 3x3 stem, SGD with
one cycle up to 0.1, crops of zero-padded images and mirror images, batches of 64, learning rate and losses logged, the
last state saved. They get the same images, number of updates and precision; the draws differ, so accuracies differ
too. Each run is a process of its own, and its clock starts with the process: importing and loading count, as they do
for a user. Images are CIFAR-10's if CIFARKIT_DATA is set, made smaller so that a CPU can do it, else drawn shapes.

A line of code is one that holds code: comments, docstrings and blank lines do not count. The steps to a first result
are the commands to type and the classes and functions to write before there is one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch.nn import functional as F

from cifarkit import Callback, ImageDataset, Run, data
from cifarkit.inference import cpu_has_bf16

SIDES = Path(__file__).resolve().parent / "side_by_side"
MARK = "RESULT "
Results = list[dict[str, float]]


def describe_code(path: Path) -> dict[str, int]:
    """Count what a user writes: lines of code, commands of the docstring, and classes and functions."""
    source = path.read_text()
    tree = ast.parse(source)
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            lines -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    words = (ast.get_docstring(tree) or "").splitlines()
    commands = sum(line.startswith(("pip ", "python ")) for line in words)
    definitions = sum(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in ast.walk(tree))
    return {"lines": len(lines), "commands": commands, "definitions": definitions, "steps": commands + definitions}


def prepare(folder: Path, count: int, size: int) -> dict[str, Any]:
    """Write train.npz, and val.npz with a ninth as many images, and return what Lightning's script must be told."""
    known = os.environ.get("CIFARKIT_DATA")
    whole = data.load_npz(Path(known, "cifar10-train.npz")) if known else data.shapes(count + count // 9)
    train_set, val_set = (shrink(part, size) for part in whole.split(count, count // 9))
    train_set.save(folder / "train.npz")
    val_set.save(folder / "val.npz")
    mean, std = train_set.mean_std()
    return {"source": "CIFAR-10" if known else "shapes", "size": size, "mean": list(mean), "std": list(std)}


def shrink(images: ImageDataset, size: int) -> ImageDataset:
    """Bring all images to size x size pixels by means over areas."""
    small = F.interpolate(images.images.float(), (size, size), mode="area").round().to(torch.uint8)
    return ImageDataset(small, images.labels, images.classes)


def tell(started: float, epoch: int, updates: int, accuracy: float) -> None:
    """Print one validation, with the seconds since the process was asked for."""
    found = {"seconds": time.time() - started, "epoch": epoch, "updates": updates, "accuracy": accuracy}
    print(f"\n{MARK}{json.dumps(found)}", flush=True)


class _Teller(Callback):
    def __init__(self, started: float) -> None:
        self.started = started

    def on_epoch_end(self, run: Run) -> None:
        tell(self.started, run.epoch, run.step, float(run.metrics["val_acc"]))


def lightning_teller(started: float) -> Any:
    """Make the same callback for Lightning; the class stands in here because Lightning may be absent."""
    import lightning

    class Teller(lightning.Callback):  # type: ignore[misc, name-defined, unused-ignore]
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                tell(started, trainer.current_epoch, trainer.global_step, float(trainer.callback_metrics["val_acc"]))

    return Teller()


def child(side: str, settings: dict[str, Any]) -> None:
    """Be the user of one side: run the script with the settings."""
    started = settings.pop("started")
    sys.path.insert(0, str(SIDES))
    script = importlib.import_module(f"{side}_way")
    teller = _Teller(started) if side == "cifarkit" else lightning_teller(started)
    script.main(callbacks=[teller], **settings)


def train(side: str, settings: Mapping[str, Any], found: dict[str, list[Results]]) -> float:
    """Run one side in a process and a folder of its own, note its validations in found, and return its seconds."""
    content = json.dumps({**settings, "seed": len(found[side]), "started": time.time()})
    command = [sys.executable, str(Path(__file__).resolve()), "--child", side, content]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    if ended.returncode:
        raise RuntimeError(f"the process of {side} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    lines = [line.removeprefix(MARK) for line in ended.stdout.splitlines() if line.startswith(MARK)]
    found[side].append([json.loads(line) for line in lines])
    return seconds


def reached(results: Results, target: float) -> dict[str, float] | None:
    """Return the first validation with the accuracy that was aimed at, or None."""
    return next((result for result in results if result["accuracy"] >= target), None)


def tabulate_code(sides: Sequence[str]) -> tuple[Table, dict[str, dict[str, int]]]:
    counts = {side: describe_code(SIDES / f"{side}_way.py") for side in sides}
    columns = ["library", "lines of code", "commands to type", "classes and functions to write", "steps, the last two"]
    rows = [
        [side, *(str(counts[side][key]) for key in ("lines", "commands", "definitions", "steps"))] for side in sides
    ]
    return Table("What a user writes and does", columns, rows), counts


def tabulate_runs(found: Mapping[str, list[Results]], whole: Mapping[str, list[float]], target: float) -> Table:
    rows = []
    for side, runs in found.items():
        hits = [hit for hit in (reached(run, target) for run in runs) if hit is not None]
        cells = [Spread.of([hit[key] for hit in hits]).text(0) if hits else "-" for key in ("updates", "seconds")]
        first = Spread.of([run[0]["seconds"] for run in runs]).text(1)
        last = Spread.of([100 * run[-1]["accuracy"] for run in runs]).text(1)
        rows.append([side, first, f"{len(hits)} of {len(runs)}", *cells, Spread.of(whole[side]).text(0), last])
    aim = f"{100 * target:g} %"
    columns = ["library", "seconds to a first accuracy", f"runs that reached {aim}", f"updates to {aim}"]
    return Table("One training", [*columns, f"seconds to {aim}", "seconds in all", "accuracy at the end, %"], rows)


def judge(
    report: Report, found: Mapping[str, list[Results]], counts: Mapping[str, Mapping[str, int]], target: float
) -> None:
    """Note what was aimed at: fewer lines, and no more seconds to the same accuracy, round by round."""
    ours, theirs = counts["cifarkit"]["lines"], counts["lightning"]["lines"]
    report.aim("cifarkit takes fewer lines of code than Lightning", f"{ours} and {theirs}", ours < theirs)
    pairs = [
        (ours["seconds"], theirs["seconds"])
        for run, peer in zip(found["cifarkit"], found["lightning"], strict=True)
        if (ours := reached(run, target)) and (theirs := reached(peer, target))
    ]
    spread = ratios([pair[1] for pair in pairs], [pair[0] for pair in pairs]) if pairs else None
    claim = f"Lightning's seconds to {100 * target:g} % are at least cifarkit's"
    report.aim(
        claim,
        f"{spread.text()} times" if spread else "no round in which both got there",
        bool(spread and spread.median >= 1),
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = arguments(__doc__, "against_lightning")
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--size", type=int, default=16, help="of an image in pixels")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--target", type=float, default=0.4, help="validation accuracy in (0, 1]")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed"], help="of both sides")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.size, options.epochs, options.rounds, options.target = 128, 8, 1, 1, 0.01
    if options.precision == "auto":
        options.precision = "bf16-mixed" if cpu_has_bf16() else "fp32"
    sides = ["cifarkit", "lightning"]
    if importlib.util.find_spec("lightning") is None:
        print("lightning is not installed and is left out: pip install -r benchmarks/requirements.txt")
        sides.remove("lightning")
    table, counts = tabulate_code(sides)
    found: dict[str, list[Results]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        told = prepare(Path(folder), options.images, options.size)
        common = {"folder": folder, "epochs": options.epochs, "precision": options.precision}
        theirs = {key: told[key] for key in ("size", "mean", "std")}
        theirs["precision"] = options.precision.replace("fp32", "32-true")
        extra = {"cifarkit": {}, "lightning": theirs}
        turns = {side: partial(train, side, common | extra[side], found) for side in sides}
        whole = take_turns(turns, options.rounds)
    settings = {name: getattr(options, name) for name in ("images", "size", "epochs", "rounds", "target", "precision")}
    report = Report("against_lightning", settings | {"source": told["source"]}, ["lightning"])
    report.tables = [table, tabulate_runs(found, whole, options.target)]
    report.figures = {"code": counts, "validations": found, "seconds": whole}
    if len(sides) == 2:
        judge(report, found, counts, options.target)
    report.publish(destination(options, "against_lightning"))


if __name__ == "__main__":
    main()
