"""Write measured figures into the pages, out of the JSON and CSV files of docs/data; nobody types them.

    python docs/tables.py            # rewrite every table
    python docs/tables.py --check    # only say which pages are out of date

A page marks the place of a table by two comments, and what stands between them is replaced:

    <!-- table: tricks | cutout of 8 pixels -->
    <!-- end of table -->

- ``tricks | ARM | ...``: arms of benchmarks/tricks.py against its reference;
- ``all tricks | tricks/``: every arm, with a link to its page, here in the folder tricks/;
- ``speedrun | ARM``: an arm of benchmarks/speedrun.py against the whole recipe;
- ``budgets``: what each recipe reaches, in what time;
- ``views``: what further views of the test images gain in that benchmark;
- ``resnet18``: the two ResNet-18 trainings;
- ``report | NAME | TITLE``: a table of docs/data/NAME.json as its benchmark printed it;
- ``whole report | NAME``: all its tables, what was aimed at and found, and the machine;
- ``verdict | NAME``: the sentence in which a benchmark says what it found;
- ``picture | FILE | CAPTION``: a picture of docs/images that a benchmark drew, in a page of docs itself.

What has not been measured gives a sentence that says so, with the command that would measure it.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PLACE = re.compile(r"(<!-- table: (?P<what>.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
PAGES = {  # the page of each arm of benchmarks/tricks.py
    "no augmentation": "augmentation",
    "rotation by up to 15 degrees added": "augmentation",
    "cutout of 8 pixels": "cutout",
    "mixup, alpha 0.2": "mixing",
    "label smoothing 0.1": "label_smoothing",
    "constant rate": "schedules",
    "clipping at norm 0.5": "clipping",
    "accumulation, 4 x 32": "accumulation",
    "EMA 0.99": "averaging",
    "SWA, rate 0.02 in the last quarter": "averaging",
    "SWA over a constant rate": "averaging",
    "alternating flip": "alternating_flip",
    "crops of 24 pixels in the first half": "progressive_crops",
    "the harder half of 256": "selective",
    "bf16-mixed": "mixed_precision",
    "Muon, rate 0.04": "muon",
    "constant rate, early stopping": "early_stopping",
}
RESNETS = {  # file in docs/data: what was trained
    "resnet18-cifar10-10-epochs.csv": "SGD, one cycle to 0.1, batch 128",
    "resnet18-cifar10-muon.csv": "Muon, one cycle to 0.04, batch 256",
}


def read_json(name: str) -> dict[str, Any]:
    """Return what a benchmark wrote."""
    content: dict[str, Any] = json.loads((DOCS / "data" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *rows])


def spread(values: Sequence[float], sign: str = "") -> str:
    """Write mean ± sample standard deviation; one value alone has none."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def trick_row(runs: dict[str, Any], arm: str) -> list[str]:
    """Return an arm's accuracy, its gain taken seed by seed, and its processor time over those of the reference."""
    reference, own = runs["reference"], runs[arm]
    seeds = [seed for seed in own if seed in reference]
    accuracy = spread([100 * own[seed]["accuracy"] for seed in seeds])
    gain = spread([100 * (own[seed]["accuracy"] - reference[seed]["accuracy"]) for seed in seeds], "+")
    seconds = [statistics.median(map(cost, run.values())) for run in (own, reference)]
    return [f"{accuracy} %", "" if arm == "reference" else gain, f"{seconds[0] / seconds[1]:.2f}"]


def cost(run: dict[str, Any]) -> float:
    """Return the processor seconds of a training, or its seconds by the clock where no others were noted."""
    return float(run.get("cpu_seconds", run["seconds"]))


COLUMNS = ["accuracy", "gain, points", "time, reference = 1"]


def tricks(*arms: str) -> str:
    """Make the table of some arms of benchmarks/tricks.py, of the later study that holds the last of them."""
    studies = [read_json(name) for name in ("tricks", "tricks_more")]
    study = next((item for item in reversed(studies) if arms[-1] in item["runs"]), studies[0])
    known = [arm for arm in ("reference", *arms) if arm in study["runs"]]
    if len(known) == 1:
        return not_measured(f"python benchmarks/tricks.py --arms {' '.join(repr(arm) for arm in arms)}")
    table = markdown(["arm", *COLUMNS], [[arm, *trick_row(study["runs"], arm)] for arm in known])
    return f"{table}\n\n{conditions(study)}"


def all_tricks(folder: str = "", name: str = "tricks") -> str:
    """Make the table of every arm of a study by benchmarks/tricks.py, with links to the pages in a folder."""
    study = read_json(name)
    arms = [arm for arm in study["runs"] if arm != "reference"]
    names = [f"[{arm}]({folder}{PAGES[arm]}.md)" if arm in PAGES else arm for arm in arms]
    rows = [[name, *trick_row(study["runs"], arm)] for name, arm in zip(names, arms, strict=True)]
    return f"{markdown(['arm', *COLUMNS], [['reference', *trick_row(study['runs'], 'reference')], *rows])}"


def conditions(study: dict[str, Any]) -> str:
    """Say what the figures of benchmarks/tricks.py hold for."""
    settings, reference = study["settings"], study["runs"]["reference"].values()
    seconds = [cost(run) for run in reference]
    of_what = "processor seconds on one thread" if "cpu_seconds" in next(iter(reference)) else "seconds"
    words = (
        f"A small SpeedNet, {settings['images']:,} training images, {settings['epochs']} epochs, "
        f"{next(iter(reference))['updates']} updates, {len(reference)} seeds; mean ± standard deviation. Time is a "
        f"ratio of medians of {of_what} and means little below a fifth: runs of the reference took "
        f"{min(seconds):.0f} to {max(seconds):.0f} s. The reference is crop + flip, SGD and one cycle. Command and "
        "details: [Results](../results.md#what-each-trick-gains-or-costs)."
    )
    return wrapped(words)


def whole_runs(arm: str) -> list[dict[str, Any]]:
    """Return the trainings of an arm of benchmarks/speedrun.py, those of --tiny left out."""
    trainings = read_json("speedrun")["figures"]["trainings"]
    return [run for run in trainings if run["arm"] == arm and not run["tiny"]]


def speedrun(arm: str) -> str:
    """Compare an arm of benchmarks/speedrun.py, the recipe without something, with the whole recipe."""
    by_arm = {name: whole_runs(name) for name in ("4-minutes", arm)}
    if not all(by_arm.values()):
        return not_measured(f'python benchmarks/speedrun.py --arms 4-minutes "{arm}"')
    rows = []
    for name, runs in by_arm.items():
        accuracies = [spread([100 * run["acc"][views] for run in runs]) for views in ("1", "6")]
        seconds = statistics.median(run["training_seconds"] for run in runs)
        rows.append([name, str(len(runs)), *accuracies, f"{seconds:.0f}"])
    table = markdown(["arm", "seeds", "accuracy, 1 view, %", "6 views, %", "training, s"], rows)
    return f"{table}\n\nThe `4-minutes` recipe, half of CIFAR-10's test set; details in [Results](../results.md)."


def budgets() -> str:
    """Say what each speed recipe has reached, in what time; of one not trained, what a few updates foretell."""
    try:
        projected = {found["recipe"]: found for found in read_json("speed_growth")["figures"]["recipes"]}
    except FileNotFoundError:
        projected = {}
    rows = []
    for name in ("1-minute", "4-minutes", "8-minutes", "15-minutes", "95-percent", "96-percent"):
        runs = whole_runs({"8-minutes": "cifarkit"}.get(name, name.removesuffix("-percent")))
        if runs:
            seconds = f"{statistics.mean(run['seconds'] for run in runs):,.0f}"
            gib = f"{max(run['peak_gib'] for run in runs):.2f}"
            reached = [f"{spread([100 * run['acc'][views] for run in runs])} %" for views in ("1", "6")]
            rows.append([f"`{name}`", str(len(runs)), *reached, seconds, gib])
        elif name in projected:
            seconds, gib = (projected[name][key] for key in ("seconds", "gib"))
            rows.append([f"`{name}`", "0", "not trained", "", f"{seconds:,.0f}, projected", f"{gib:.2f}"])
    table = markdown(["`--recipe`", "seeds", "accuracy, 1 view", "6 views", "seconds", "GiB at most"], rows)
    return f"{table}\n\n{machine(read_json('speedrun'))}"


def views() -> str:
    """Say what further views of a test image gain."""
    runs = [
        run for run in read_json("speedrun")["figures"]["trainings"] if run["arm"] == "cifarkit" and not run["tiny"]
    ]
    if not runs:
        return not_measured("python benchmarks/speedrun.py --arms cifarkit")
    rows = []
    for name in runs[0]["acc"]:
        gains = [100 * (run["acc"][name] - run["acc"]["1"]) for run in runs]
        rows.append([name, f"{spread([100 * run['acc'][name] for run in runs])} %", spread(gains, "+")])
    table = markdown(["views", "accuracy", "gain, points"], rows)
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return f"{table}\n\nThe `8-minutes` recipe, half of CIFAR-10's test set, {seeds}; see [Results](../results.md)."


def resnet18() -> str:
    """Compare the two ResNet-18 trainings by the last epoch of their logs."""
    rows = []
    for name, what in RESNETS.items():
        with (DOCS / "data" / name).open(newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        epochs, seconds = str(int(last["epoch"]) + 1), f"{float(last['seconds']):,.0f}"
        rows.append([what, epochs, f"{int(last['step']):,}", f"{float(last['val_acc']):.4f}", seconds])
    return markdown(["ResNet-18 on CIFAR-10", "epochs", "updates", "validation accuracy", "seconds"], rows)


def report(name: str, title: str) -> str:
    """Repeat a table of a benchmark's report; a title that ends in "…" stands for the one that begins so."""
    start = title.removesuffix("…").rstrip()
    tables = [item for item in read_json(name)["tables"] if item["title"].startswith(start)]
    table = next((item for item in tables if title.endswith("…") or item["title"] == title), None)
    if table is None:
        return not_measured(command_of(name))
    return markdown(table["columns"], table["rows"])


def whole_report(name: str) -> str:
    """Repeat all a benchmark printed: its tables, its targets and the machine."""
    content = read_json(name)
    tables = [f"**{table['title']}**\n\n{markdown(table['columns'], table['rows'])}" for table in content["tables"]]
    targets = [
        f"- {item['claim']}: {item['found']}, {'met' if item['met'] else 'MISSED'}" for item in content["targets"]
    ]
    return "\n\n".join([*tables, "\n".join(targets), machine(content)])


def verdict(name: str) -> str:
    """Repeat the sentence in which a benchmark says what it found."""
    said = read_json(name)["figures"].get("verdict")
    return not_measured(command_of(name)) if said is None else wrapped(f"**{said}**")


def picture(file: str, caption: str) -> str:
    """Show a picture, if it has been drawn."""
    return f"![{caption}](images/{file})" if (DOCS / "images" / file).is_file() else f"Not drawn here yet: {caption}."


def machine(content: dict[str, Any]) -> str:
    """Say when a benchmark ran, on what, and with which versions."""
    on = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    threads = f"{on['threads']} {'thread' if on['threads'] == 1 else 'threads'}"
    return wrapped(
        f"Measured on {content['date']} with {threads} on {on['processor']}, {on['cores']} cores; {versions}."
    )


def wrapped(words: str) -> str:
    """Break lines at 120."""
    return textwrap.fill(words, 120, break_on_hyphens=False, break_long_words=False)


def command_of(name: str) -> str:
    """Name the command that writes docs/data/NAME.json; that of the explanations is an example."""
    commands = {
        "explanations": "examples/explain.py",
        "tricks_more": "benchmarks/tricks.py",
        "did_it_help_all": "benchmarks/did_it_help.py --ddpm runs/ddpm/last.pt",
        "graph_block_resnet18": "benchmarks/graph_block.py --backbone resnet18",
        "graph_block_resnet18_tuned": "benchmarks/graph_block.py --backbone resnet18 --weights <row a>",
    }
    return f"python {commands.get(name, f'benchmarks/{name}.py')}"


def not_measured(command: str) -> str:
    """Say that there is no figure."""
    return f"Not measured here yet; `{command}` would do it."


MAKERS: dict[str, Callable[..., str]] = {
    "tricks": tricks,
    "all tricks": all_tricks,
    "speedrun": speedrun,
    "budgets": budgets,
    "views": views,
    "resnet18": resnet18,
    "report": report,
    "whole report": whole_report,
    "verdict": verdict,
    "picture": picture,
}


def fill(text: str) -> str:
    """Return a page with all its tables made anew.

    Raises:
        ValueError: if a marker names a table that there is not.
    """

    def make(place: re.Match[str]) -> str:
        what, *details = (part.strip() for part in place["what"].split("|"))
        if what not in MAKERS:
            raise ValueError(f"there is no table {what!r}; there are {', '.join(MAKERS)}")
        try:
            table = MAKERS[what](*details)
        except FileNotFoundError as error:  # the benchmark has not run yet
            table = not_measured(command_of(Path(error.filename).stem))
        return f"{place[1]}\n{table}\n\n{place[3]}"

    return PLACE.sub(make, text)


def find_stale() -> dict[Path, str]:
    """Return the pages whose tables are not those of the data, each with what should stand there."""
    pages = {
        path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts
    }
    return {path: filled for path, text in pages.items() if (filled := fill(text)) != text}


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = find_stale()
    for path, text in stale.items():
        print(f"{'out of date' if check else 'rewritten'}: {path.relative_to(DOCS.parent)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
