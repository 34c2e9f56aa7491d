"""The report: one HTML page about a run, or about several side by side."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from cifarkit.files import write_atomically
from cifarkit.reporting.charts import chart_data, draw_chart, metric_charts, sweep_chart
from cifarkit.reporting.markup import clean, data_block, number, table, tag
from cifarkit.reporting.pictures import Picture, find_pictures, fit_pictures
from cifarkit.reporting.reading import RunFiles, read_run
from cifarkit.reporting.summary import compare, compare_settings, summarize

LARGEST = 5_000_000  # bytes of a page
_MOST_ROWS = 200
_MOST_CHARTS = 12  # of the epochs, and as many of the updates
_SECTIONS = {
    "sweep": "Learning-rate sweep",
    "predictions": "Predictions",
    "samples": "Samples",
    "explanations": "Explanations",
    "others": "Other pictures",
}


def report(
    run_folder: str | Path, *others: str | Path, path: str | Path | None = None, title: str | None = None
) -> Path:
    """Write one HTML page about a run: settings, curves, pictures; several runs are compared.

    The page needs no network and no other file, and is below 5 MB. Files of a run that are missing or damaged are named
    in it.

    Args:
        run_folder: what :func:`cifarkit.run_folder` made and CSVLogger filled; it need not be complete.
        others: further run folders to compare with.
        path: the page, ending in .html; None is report.html in run_folder, of several runs comparison.html.
        title: heading; None is the name of the folder.
    Returns:
        path of the page.
    Raises:
        ValueError: if a folder does not exist, is given twice, or path does not end in .html.
        OSError: if the page cannot be written.
    """
    folders = [Path(folder) for folder in (run_folder, *others)]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"others={[str(folder) for folder in others]} names a run twice; give each folder once")
    name = "comparison.html" if others else "report.html"  # which leaves the first run's own page as it is
    target = folders[0] / name if path is None else Path(path)
    if target.suffix.lower() != ".html" or target.is_dir():
        raise ValueError(f"path={str(path)!r} must end in .html and be no folder; the report is one page")
    runs = _named([read_run(folder) for folder in folders])
    heading = title if title is not None else " · ".join(run.name for run in runs[:4])
    write_atomically(_page(runs, heading).encode("utf-8", "replace"), target)
    return target


def _named(runs: list[RunFiles]) -> list[RunFiles]:
    """Give runs of one name different ones, by the folder above or a number."""
    shared = {run.name for run in runs if sum(other.name == run.name for other in runs) > 1}
    for run in runs:
        if run.name in shared:
            run.name = f"{run.folder.resolve().parent.name}/{run.name}"
    taken: set[str] = set()
    for index, run in enumerate(runs, 1):
        run.name = f"{run.name} ({index})" if run.name in taken else run.name
        taken.add(run.name)
    return runs


def _page(runs: list[RunFiles], heading: str) -> str:
    pictures = [(run, picture) for run in runs for picture in find_pictures(run)]
    epochs, steps = (metric_charts(runs, x)[:_MOST_CHARTS] for x in ("epoch", "step"))
    sweeps = [chart for run in runs if (chart := sweep_chart(run))]
    charts = [*epochs, *steps, *sweeps]
    drawn = [draw_chart(chart, index) for index, chart in enumerate(charts)]
    data = data_block("chart-data", [chart_data(chart) for chart in charts])
    curves = _curves(runs, drawn[: len(epochs)], drawn[len(epochs) : len(epochs) + len(steps)])
    settings = _settings(runs)
    used = sum(map(len, (*drawn, data, curves, settings))) + 150_000  # what is around them
    kept = fit_pictures(pictures, LARGEST - used)
    parts = [("summary", "Summary", _summary(runs)), ("curves", "Curves", curves)]
    for name, words in _SECTIONS.items():
        own = "".join(drawn[-len(sweeps) :]) if name == "sweep" and sweeps else ""
        own = tag("div", own, class_="charts") if own else ""
        parts.append((name, words, own + _gallery([pair for pair in kept if pair[1].section == name], len(runs) > 1)))
    parts.append(("settings", "Configuration", settings))
    parts = [part for part in parts if part[2]]
    links = "".join(tag("a", clean(words), href=f"#{name}") for name, words, _ in parts)
    body = tag("header", tag("h1", clean(heading)) + tag("nav", links, aria_label="sections"))
    sections = [tag("section", tag("h2", clean(words)) + content, id=name) for name, words, content in parts]
    main = tag("main", _problems(runs) + "".join(sections))
    return _document(heading, body + main + _footer() + data)


def _document(heading: str, body: str) -> str:
    """Wrap the body; its own style and script are the only ones a browser will accept, and nothing is fetched."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    head = [
        tag("meta", charset="utf-8"),
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", clean(heading, 200)),
        f"<style>{style}</style>",
    ]
    whole = f"<head>{''.join(head)}</head>\n<body>{body}<script>{script}</script></body>"
    return f'<!DOCTYPE html>\n<html lang="en">{whole}</html>\n'


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _problems(runs: Sequence[RunFiles]) -> str:
    """List what could not be read; empty if all could."""
    items = [
        tag("li", clean(f"{run.name}: {problem}" if len(runs) > 1 else problem))
        for run in runs
        for problem in run.problems[:30]
    ]
    words = tag("p", "What this page lacks, or should be known with:")
    return tag("aside", words + tag("ul", "".join(items)), class_="problems", role="note") if items else ""


def _summary(runs: Sequence[RunFiles]) -> str:
    if len(runs) > 1:
        header, rows = compare(runs)
        return table(header, rows, sortable=True)
    cards = [
        tag("div", tag("dt", clean(name)) + tag("dd", clean(value, 120))) for name, value in summarize(runs[0]).items()
    ]
    return tag("dl", "".join(cards), class_="cards") if cards else ""


def _curves(runs: Sequence[RunFiles], epochs: Sequence[str], steps: Sequence[str]) -> str:
    """Return the charts, with the numbers behind them as tables."""
    if not epochs and not steps:
        return ""
    parts = [tag("div", "".join(epochs), class_="charts")]
    if steps:
        inside = tag("div", "".join(steps), class_="charts")
        parts.append(_details("By update", inside, open=not epochs))
    for run in runs:
        columns = [*dict.fromkeys(name for row in run.epochs for name in row if name != "stopped_because")]
        stride = -(-len(run.epochs) // _MOST_ROWS) or 1
        chosen = run.epochs[::-stride][::-1]  # the last row is among them
        rows = [[number(row.get(name)) for name in columns] for row in chosen]
        words = "Numbers" if len(runs) == 1 else f"Numbers of {run.name}"
        words += f", every {stride} epochs" if stride > 1 else ""
        if columns and rows:
            parts.append(_details(words, table(columns, rows)))
    return "".join(parts)


def _gallery(pictures: Sequence[tuple[RunFiles, Picture]], several: bool) -> str:
    """Return figures; those of one run's samples folder are one reel that a slider leafs through."""
    loose, reels = [], dict[str, list[str]]()
    for run, picture in pictures:
        name = f"{picture.title} ({run.name})" if several else picture.title
        image = tag("img", src=picture.address, alt=name, width=picture.width, height=picture.height)
        caption = tag("figcaption", f"{clean(name)} {tag('small', clean(picture.file))}")
        figure = tag("figure", caption + tag("div", image, class_="frame"), class_="picture")
        if picture.file.startswith("samples/"):
            reels.setdefault(run.name, []).append(figure)
        else:
            loose.append(figure)
    parts = [tag("div", "".join(figures), class_="reel") for figures in reels.values()]
    return "".join(parts) + (tag("div", "".join(loose), class_="gallery") if loose else "")


def _settings(runs: Sequence[RunFiles]) -> str:
    different, same = compare_settings(runs)
    header = ["setting", *(run.name for run in runs)]
    if len(runs) == 1:
        return table(["setting", "value"], different + same) if different + same else ""
    parts = [table(header, different) if different else tag("p", "No setting differs.")]
    if same:
        parts.append(_details("Settings that are the same", table(["setting", "value"], [row[:2] for row in same])))
    return "".join(parts) if different or same else ""


def _details(words: str, content: str, *, open: bool = False) -> str:
    return f"<details{' open' if open else ''}>{tag('summary', clean(words))}{content}</details>"


def _footer() -> str:
    from cifarkit import __version__

    return tag("footer", clean(f"Written by cifarkit {__version__}."))
