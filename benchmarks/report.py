"""What the benchmarks share: turns, ratios with their spread, and a report that names the machine."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

FAILED = "Rows that failed"  # the title of a table of errors
DATA = Path(__file__).resolve().parents[1] / "docs" / "data"


@dataclass(frozen=True)
class Spread:
    """Median and range of one figure over the rounds of a run.

    Attributes:
        median, low, high: in the unit of the values.
        count: values it was made of.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up values, at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """Write "median (low to high)" with so many decimals."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


@dataclass(frozen=True)
class Table:
    """One table of a report, all cells ready to print."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write the table in Markdown under its title in bold."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass
class Report:
    """What one benchmark found; ``publish`` writes it.

    Attributes:
        name: of the script, and of the file in docs/data.
        settings: sizes, seeds and whatever else the figures depend on.
        packages: distributions whose versions matter, beside torch.
        tables: for people.
        figures: the raw measurements behind the tables.
        targets: what was aimed at, each with the figure that decides it and whether it was reached.
    """

    name: str
    settings: Mapping[str, Any]
    packages: Sequence[str] = ()
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def aim(self, claim: str, found: str, met: bool) -> None:
        """Note a target and whether this run reached it."""
        self.targets.append({"claim": claim, "found": found, "met": met})

    def markdown(self) -> str:
        """Write the tables, the targets and the machine in Markdown."""
        targets = [f"- {item['claim']}: {item['found']}, {'met' if item['met'] else 'MISSED'}" for item in self.targets]
        versions = ", ".join(f"{name} {version}" for name, version in machine(self.packages)["versions"].items())
        described = f"Measured on {machine()['processor']}, {torch.get_num_threads()} threads; {versions}."
        tables = [table.markdown() for table in self.tables]
        return "\n".join([*tables, *targets, "", described])

    def publish(self, path: Path | None) -> bool:
        """Print the report, write it as JSON unless path is None, and tell whether it was written.

        A report in docs/data is not replaced by one that lacks some of its rows or aims, as a part of a study does.
        """
        print(self.markdown(), flush=True)
        if path is None:
            return False
        if path.parent == DATA and path.exists():
            lost = sorted(_names(json.loads(path.read_text())) - _names(asdict(self)))
            if lost:
                print(
                    f"NOT written: {path} holds {len(lost)} rows or aims that are not here, such as {lost[0]!r}; "
                    "finish the study, give --out, or delete the file first"
                )
                return False
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        content = {"date": today, "machine": machine(self.packages)} | asdict(self)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)
        print(f"written to {path}")
        return True


def _names(report: Mapping[str, Any]) -> set[str]:
    """Return the names of all rows, which stand in their first cells, and all claims; errors are no figures."""
    tables = [table for table in report["tables"] if table["title"] != FAILED and len(table["columns"]) > 1]
    return {row[0] for table in tables for row in table["rows"]} | {item["claim"] for item in report["targets"]}


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the processor, the cores and threads in use, and the versions of torch and of packages."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "versions": versions,
    }


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round, each round starting with the next one, so that drift and order hit all.

    Args:
        contenders: name -> function that measures once.
        rounds: at least 1.
    Returns:
        name -> one measurement a round; equal positions are of the same round.
    Raises:
        ValueError: if rounds is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide round by round, so that what slows a whole round cancels."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """Make a parser with the flags of every benchmark: --tiny and --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; the figures mean nothing")
    parser.add_argument("--out", type=Path, help=f"where to write the JSON; docs/data/{name}.json, with --tiny nowhere")
    return parser


def destination(options: argparse.Namespace, name: str) -> Path | None:
    """Return where the JSON goes: a tiny run must never replace real figures by accident."""
    chosen: Path | None = options.out
    return chosen or (None if options.tiny else DATA / f"{name}.json")
