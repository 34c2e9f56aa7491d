"""How accurate does a vision transformer get from scratch, with graph attention and with the classical one?

    CIFARKIT_DATA=<folder with cifar10-train.npz and cifar10-test.npz> python benchmarks/vision_transformer.py

Runs examples/vision_transformer.py with either attention, for the same epochs, so with the same images and updates; the
seconds of each are reported beside its accuracy. A tenth of the training images is held out to follow the training; the
test images are scored once, with the weights of the last epoch. A stopped run goes on with the same flags.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import Report, Table, arguments, destination

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "vision_transformer.py"
WORK = Path("runs/vision_transformer")
KINDS = {"graph": "graph attention", "self": "classical attention"}


def train(kind: str, epochs: int, flags: list[str], folder: Path) -> dict[str, Any]:
    """Run the example in a folder, go on where it was stopped there, and read what it found."""
    result = folder / "result.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    folder.mkdir(parents=True, exist_ok=True)
    begun = sorted(folder.glob("runs/*/last.pt"))
    resume = ["--resume", str(begun[-1].parent.relative_to(folder))] if begun else []
    command = [sys.executable, str(EXAMPLE), "--attention", kind, "--epochs", str(epochs), *flags, *resume]
    lines = []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"examples/vision_transformer.py --attention {kind} ended with code {process.returncode}")
    accuracy = re.search(r"test_acc ([\d.]+)", "".join(lines))
    if accuracy is None:
        raise SystemExit("the training was stopped before it was scored; run this again to go on")
    metrics = next(folder.glob("runs/*/metrics.csv"))
    with metrics.open() as file:
        history = [{name: float(row[name]) for name in ("epoch", "val_acc", "seconds")} for row in csv.DictReader(file)]
    found = {"kind": kind, "epochs": epochs, "test_acc": float(accuracy[1]), "history": history}
    result.write_text(json.dumps(found))
    return found


def summarize(runs: list[dict[str, Any]], title: str) -> Report:
    """Make the table, and one of how the accuracy grew."""
    report = Report("vision_transformer", {"epochs": runs[0]["epochs"], "data": title})
    report.figures["runs"] = runs
    rows = [
        [
            KINDS[run["kind"]],
            str(run["epochs"]),
            f"{100 * run['test_acc']:.2f}",
            f"{100 * run['history'][-1]['val_acc']:.2f}",
            f"{run['history'][-1]['seconds'] / 60:.0f}",
        ]
        for run in runs
    ]
    columns = ["vision transformer with", "epochs", "test accuracy, %", "validation accuracy, %", "minutes"]
    report.tables.append(Table(title, columns, rows))
    epochs = [int(item["epoch"]) for item in runs[0]["history"]]
    growth = [[KINDS[run["kind"]], *(f"{100 * item['val_acc']:.1f}" for item in run["history"])] for run in runs]
    columns = ["validation accuracy, %, after epoch", *(str(epoch + 1) for epoch in epochs)]
    report.tables.append(Table("How it grew", columns, growth))
    return report


def main() -> None:
    parser = arguments(__doc__, "vision_transformer")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--work", type=Path, help=f"where the runs lie; {WORK}, with --tiny nowhere")
    args = parser.parse_args()
    folder = os.environ.get("CIFARKIT_DATA")
    if args.tiny:
        title, flags = "Shapes", ["--data", "shapes", "--test", "shapes", "--tiny"]
    elif folder:
        title = "CIFAR-10, half test set (5,000)"
        train_file, test_file = (str(Path(folder, f"cifar10-{part}.npz").resolve()) for part in ("train", "test"))
        flags = ["--data", train_file, "--test", test_file, "--batch-size", "128"]
    else:
        raise SystemExit("set CIFARKIT_DATA to the folder with cifar10-train.npz and cifar10-test.npz")
    epochs = 1 if args.tiny else args.epochs
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) if args.tiny else args.work or WORK
        runs = [train(kind, epochs, flags, work / f"{kind}-{epochs}") for kind in args.kinds]
        summarize(runs, title).publish(destination(args, "vision_transformer"))


if __name__ == "__main__":
    main()
