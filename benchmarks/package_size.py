"""What importing and installing cifarkit costs, against Lightning.

    python benchmarks/package_size.py            # 3 minutes on 2 quiet cores
    python benchmarks/package_size.py --tiny     # seconds, to see that it runs

Every import is timed in a process of its own, around the one statement; the contenders take turns, and a first round,
which may read files from the disk, is not counted. Sizes are those of the files of a distribution and of all that it
requires without extras, less what torch and torchvision require anyway; bytecode does not count. cifarkit's own files
are those of the folder it is imported from, so that an editable install gives the size of a wheel's. cifarkit requires
Captum, matplotlib and TensorBoard, which a user of Lightning who explains, draws or logs adds: that sum is a row, too.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from report import Report, Spread, Table, arguments, destination, ratios, take_turns

import cifarkit

MODULES = {"torch": "torch", "torch and torchvision": "torch, torchvision", "cifarkit": "cifarkit"}
BASE = ("torch", "torchvision")


def installed(name: str) -> bool:
    """Tell whether a distribution is there."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def seconds_to_import(modules: str) -> float:
    """Import modules in a fresh process and return what its clock says."""
    program = f"import time; start = time.perf_counter(); import {modules}; print('took', time.perf_counter() - start)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(ended.stdout.split("took ")[-1])


def requirements_of(name: str) -> set[str]:
    """Collect a distribution and all that it requires here, without extras of its own, by their names."""
    found: set[str] = set()
    waiting = [Requirement(name)]
    while waiting:
        asked = waiting.pop()
        plain = re.sub(r"[-_.]+", "-", asked.name).lower()
        key = f"{plain}[{','.join(sorted(asked.extras))}]"
        if key in found or not installed(plain):  # what is not installed is not needed here: another system's, say
            continue
        found.add(key)
        for line in importlib.metadata.requires(plain) or []:
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)):
                waiting.append(needed)
    return {key.partition("[")[0] for key in found}


def bytes_of(name: str) -> int:
    """Add up the files of a distribution, without bytecode."""
    if name == "cifarkit":
        files = [path for path in Path(cifarkit.__file__).parent.rglob("*") if path.is_file()]
    else:
        files = [Path(str(path.locate())) for path in importlib.metadata.files(name) or []]
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc" and path.is_file())


def sizes(asked: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Map each choice of distributions to the bytes of each one that it needs beyond torch and torchvision."""
    base = closure(BASE)
    return {title: {need: bytes_of(need) for need in sorted(closure(names) - base)} for title, names in asked.items()}


def closure(names: Sequence[str]) -> set[str]:
    """Unite what several distributions need."""
    return set().union(*(requirements_of(name) for name in names))


def tabulate_imports(seconds: Mapping[str, list[float]]) -> Table:
    rows = []
    for name, values in seconds.items():
        beyond = [value - base for value, base in zip(values, seconds["torch and torchvision"], strict=True)]
        cells = [Spread.of(values).text(), Spread.of(beyond).text(), ratios(values, seconds["torch"]).text()]
        rows.append([name, *cells])
    return Table("Importing", ["import", "seconds", "seconds beyond torchvision", "× import torch"], rows)


def tabulate_sizes(needs: Mapping[str, Mapping[str, int]]) -> Table:
    rows = []
    for title, found in needs.items():
        own = f"{found[title] / 1e6:.1f}" if title in found else "-"
        rows.append([title, own, str(len(found)), f"{sum(found.values()) / 1e6:.1f}"])
    columns = ["to install", "its own MB", "distributions beyond torch and torchvision", "MB of all of them"]
    return Table("Installing", columns, rows)


def main() -> None:
    parser = arguments(__doc__, "package_size")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    rounds = 1 if options.tiny else options.rounds
    modules, asked = dict(MODULES), {"cifarkit": ["cifarkit"]}
    if installed("lightning"):
        modules["lightning"] = "lightning"
        asked["lightning"] = ["lightning"]
        asked["lightning, captum, matplotlib and tensorboard"] = ["lightning", "captum", "matplotlib", "tensorboard"]
    else:
        print("lightning is not installed and is left out: pip install -r benchmarks/requirements.txt")
    turns = {name: partial(seconds_to_import, imported) for name, imported in modules.items()}
    if not options.tiny:
        take_turns(turns, 1)
    seconds, needs = take_turns(turns, rounds), sizes(asked)
    report = Report("package_size", {"rounds": rounds}, [name for name in ("cifarkit", "lightning") if name in asked])
    report.tables = [tabulate_imports(seconds), tabulate_sizes(needs)]
    report.figures = {"import_seconds": seconds, "bytes": needs}
    if "lightning" in asked:
        ratio = ratios(seconds["lightning"], seconds["cifarkit"])
        claim = "Lightning's import takes at least as long as cifarkit's"
        report.aim(claim, f"{ratio.text()} times", ratio.median >= 1)
        ours, theirs = (sum(needs[name].values()) for name in ("cifarkit", "lightning"))
        report.aim("cifarkit brings no more bytes than Lightning", f"{ours:,} and {theirs:,}", ours <= theirs)
    report.publish(destination(options, "package_size"))


if __name__ == "__main__":
    main()
