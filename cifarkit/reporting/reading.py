"""What a run folder holds, read so that a damaged file is named instead of ending the report."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cifarkit.files import read_file

Row: TypeAlias = dict[str, float | None]

_NAMED = 3  # damaged lines, or columns, that are named one by one
_LARGEST_FILE = 64_000_000  # bytes of a CSV or JSON file that are worth reading for a page


@dataclass
class RunFiles:
    """The readable part of a run folder.

    Attributes:
        folder, name: where it is, and what the page calls it.
        config: of config.json, empty if there is none.
        epochs, steps, sweep: rows of metrics.csv, steps.csv and learning_rate.csv; an empty cell is None, as is one
            that is NaN or infinite.
        stopped_because: the reason in the last row of metrics.csv.
        problems: sentences about what is missing or damaged, each naming its file.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    epochs: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    sweep: list[Row] = field(default_factory=list)
    stopped_because: str = ""
    problems: list[str] = field(default_factory=list)


def read_run(folder: str | Path, name: str | None = None) -> RunFiles:
    """Read what CSVLogger and the command line left in a folder; of several runs in it the newest.

    Raises:
        ValueError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"run_folder={str(folder)!r} is no folder; give one that run_folder() or CSVLogger made")
    run = RunFiles(folder, name or folder.resolve().name)
    if (folder / "learning_rate.csv").is_file():
        run.sweep = read_table(run, "learning_rate.csv", "")
    number = _newest(folder)
    if run.sweep and not any((folder / name).exists() for name in ("metrics.csv", "steps.csv", "config.json")):
        return run  # of `lr-find`, which trains nothing
    if number > 1:
        run.problems.append(f"the folder holds {number} runs; this is the newest, metrics-{number}.csv")
    metrics = _numbered("metrics.csv", number)
    run.epochs = read_table(run, metrics, "no epoch ended, or the run had no CSVLogger")
    run.steps = read_table(run, _numbered("steps.csv", number), "the curves show epochs only")
    run.config = _read_config(run, _numbered("config.json", number))
    return run


def read_table(run: RunFiles, file: str, without: str) -> list[Row]:
    """Read the numbers of a CSV file; its damaged lines are left out and named, as is the file if it is missing."""
    text = _read_text(run, file, without)
    rows: list[Row] = []
    damaged: list[int] = []
    infinite: Counter[str] = Counter()  # by column; NaN, too
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
            elif len(cells) != len(header):
                damaged.append(reader.line_num)
            else:
                values = {name: _number(cell) for name, cell in zip(header, cells, strict=True)}
                wrong = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
                infinite.update(wrong)
                rows.append(values | dict.fromkeys(wrong))
                run.stopped_because = dict(zip(header, cells, strict=True)).get("stopped_because", run.stopped_because)
    except csv.Error as error:
        run.problems.append(f"{file} is damaged after line {reader.line_num}: {error}")
    if damaged:
        run.problems.append(f"{file} is damaged: left out line {_first(damaged)}, which has not {len(header)} cells")
    if infinite:
        count = f"{infinite.total()} in {_first(infinite)}"
        run.problems.append(f"{file} holds NaN or infinite values ({count}), which are left out")
    return rows


def _first(items: Iterable[object]) -> str:
    names = [str(item) for item in items]
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


def _read_config(run: RunFiles, file: str) -> dict[str, Any]:
    text = _read_text(run, file, "the configuration is unknown")
    if not text:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        run.problems.append(f"{file} is damaged: {error}")
        return {}
    if not isinstance(config, dict):
        run.problems.append(f"{file} is damaged: it holds a {type(config).__name__} where an object was expected")
        return {}
    return config


def _read_text(run: RunFiles, file: str, without: str) -> str:
    """Return the text of a file, or nothing and a sentence about it."""
    try:
        return read_file(run.folder / file, _LARGEST_FILE).decode("utf-8-sig")
    except FileNotFoundError:
        run.problems.append(f"{file} is missing: {without}")
    except UnicodeDecodeError as error:
        run.problems.append(f"{file} is damaged: it is no UTF-8 text at byte {error.start}")
    except ValueError as error:  # a pipe, which might never end, or far too much
        run.problems.append(f"{file} is refused: {error}")
    except OSError as error:
        run.problems.append(f"{file} cannot be read: {error.strerror or error}")
    return ""


def flatten(config: Mapping[str, Any], depth: int = 8) -> dict[str, str]:
    """Turn nested settings into rows, ``optimizers.model.groups.0.lr`` -> ``0.1``; what lies deeper is one text."""
    rows: dict[str, str] = {}

    def add(prefix: str, value: Any, left: int) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None or not value or left == 0:
            rows[prefix] = value if isinstance(value, str) else _shown(value)
            return
        for key, item in items:
            add(f"{prefix}.{key}" if prefix else str(key), item, left - 1)

    add("", dict(config), depth)
    rows.pop("", None)  # an empty configuration
    return rows


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "nested too deeply to be shown"


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _newest(folder: Path) -> int:
    """Return the number of the newest run of a CSVLogger, 1 for files without a number."""
    found = (re.fullmatch(r"(?:metrics|steps)-(\d{1,6})\.csv", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=1)


def _numbered(file: str, number: int) -> str:
    return file if number == 1 else file.replace(".", f"-{number}.")
