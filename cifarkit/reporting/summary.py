"""What came out of a run in a few numbers, and what runs were set differently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cifarkit.reporting.charts import is_accuracy
from cifarkit.reporting.markup import number
from cifarkit.reporting.reading import RunFiles, flatten

_MOST_METRICS = 8
_ABSENT = "–"
_PATH = re.compile(r"(?:Posix|Windows)?Path\('([^']*)'\)")
_PLACE = re.compile(r"(callbacks|loggers)\..*\b(folder|path)")  # settings that only say where a run lies


def summarize(run: RunFiles) -> dict[str, str]:
    """Return the result of a run by name: best and last values, how long it took and how large the network is."""
    facts: dict[str, str] = {}
    columns = [name for name in dict.fromkeys(key for row in run.epochs for key in row) if _is_result(name)]
    columns.sort(key=lambda name: not name.startswith("val_"))
    for name in columns[:_MOST_METRICS]:
        percent = is_accuracy(name)
        pairs = [(value, row.get("epoch")) for row in run.epochs if (value := row.get(name)) is not None]
        if not pairs:
            continue
        if name.startswith("val_"):
            best, epoch = (max if percent else min)(pairs, key=lambda pair: pair[0])
            facts[f"best {name}"] = f"{_value(best, percent)} (epoch {number(epoch)})"
        facts[f"last {name}"] = _value(pairs[-1][0], percent)
    if trained := [row for row in run.epochs if _has_metrics(row)]:
        facts["epochs"] = str(len(trained))
        facts["updates"] = number(trained[-1].get("step"))
        facts["seconds"] = number(trained[-1].get("seconds"))
    settings = flatten(run.config)
    sizes = {
        key: value for key, value in settings.items() if key.startswith("networks.") and key.endswith(".parameters")
    }
    if sizes:
        facts["parameters"] = ", ".join(
            f"{int(size):,}" if re.fullmatch(r"[0-9]{1,18}", size) else size for size in sizes.values()
        )
    for name in ("precision", "schedule"):
        if name in settings:
            facts[name] = settings[name]
    if run.stopped_because:
        facts["stopped because"] = run.stopped_because
    return facts


def compare(runs: Sequence[RunFiles]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table that has a row for each run."""
    facts = [summarize(run) for run in runs]
    names = [*dict.fromkeys(name for one in facts for name in one)]
    rows = [[run.name, *(one.get(name, _ABSENT) for name in names)] for run, one in zip(runs, facts, strict=True)]
    return ["run", *names], rows


def compare_settings(runs: Sequence[RunFiles], most: int = 400) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows (setting, its value in each run) of those that differ, and of those that do not.

    Where a run lies differs always, so that is in neither.
    """
    settings = [flatten(run.config) for run in runs]
    names = [*dict.fromkeys(name for one in settings for name in one)][:most]
    rows = [[name, *(_PATH.sub(r"\1", one.get(name, _ABSENT)) for one in settings)] for name in names]
    different = [row for row in rows if len({*row[1:]}) > 1 and not _PLACE.fullmatch(row[0])]
    return different, [row for row in rows if len({*row[1:]}) == 1]


def _has_metrics(row: Mapping[str, float | None]) -> bool:
    """Tell a row of an epoch from that of a run which was stopped in its first one, and has a reason only."""
    return any(value is not None for name, value in row.items() if name not in ("epoch", "step"))


def _is_result(name: str) -> bool:
    return is_accuracy(name) or "loss" in name or name == "sample_diversity"


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"
