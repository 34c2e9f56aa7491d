"""Curves as inline SVG: readable without JavaScript, which only adds the cursor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cifarkit.reporting.markup import clean, tag
from cifarkit.reporting.reading import Row, RunFiles

Points: TypeAlias = list[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 260  # of the view box; the page shows a chart at about that size on every screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34  # margins
_ALL_POINTS = 24_000  # in a page, shared by its lines
_COLORS = 12
_LARGEST = 1e100  # of a number that is drawn; beyond it the axes would overflow
_DASHES = {"_ema": "dotted", "_swa": "mixed"}  # of averaged weights, where colours tell runs apart
_NOT_DRAWN = {"epoch", "step", "seconds", "stopped_because"}
_ORDER = ("loss", "acc", "lr", "grad_norm")
_TITLES = {"loss": "Loss", "acc": "Accuracy", "lr": "Learning rate", "grad_norm": "Gradient norm"}


@dataclass
class Line:
    """One curve: its legend, its points, its colour (an index) and its pattern: "", "dashed", "dotted" or "mixed"."""

    name: str
    points: Points
    color: int = 0
    dash: str = ""

    @property
    def look(self) -> str:
        """Its classes in page.css."""
        return f"color-{self.color} {self.dash}".strip()


@dataclass
class Chart:
    """Curves that share their axes.

    Attributes:
        percent: multiply by 100.
        logarithmic: the horizontal axis.
        mark: where the horizontal axis has a suggestion, or None.
        top: what lies above it is cut off; None shows all.
    """

    title: str
    x_label: str
    lines: list[Line] = field(default_factory=list)
    percent: bool = False
    logarithmic: bool = False
    mark: float | None = None
    top: float | None = None


def metric_charts(runs: Sequence[RunFiles], x: str) -> list[Chart]:
    """Make a chart for each family of metrics: train_loss, val_loss and val_loss_ema are all losses.

    Args:
        x: "epoch" for the rows of metrics.csv, "step" for those of steps.csv.
    """
    families: dict[str, Chart] = {}
    for index, run in enumerate(runs):
        rows = run.epochs if x == "epoch" else run.steps
        for column in dict.fromkeys(name for row in rows for name in row):
            points = _points(rows, x, column)
            if column in _NOT_DRAWN or not points:
                continue
            family = family_of(column)
            chart = families.setdefault(family, Chart(_TITLES.get(family, family), x, percent=is_accuracy(column)))
            name = column if len(runs) == 1 else f"{run.name}: {column}"
            several = len(runs) > 1
            color = index if several else len(chart.lines)
            chart.lines.append(Line(name, points, color % _COLORS, _dash(column) if several else ""))
    known = [families.pop(name) for name in _ORDER if name in families]
    return thinned([*known, *families.values()])


def sweep_chart(run: RunFiles) -> Chart | None:
    """Make the chart of a learning-rate sweep, loss against rate, or None if there is none.

    As in :func:`cifarkit.plots.lr_sweep`, the view ends a little above the loss the sweep began with.
    """
    points = [point for point in _points(run.sweep, "learning_rate", "loss") if point[0] > 0]
    if len(points) < 2:
        return None
    chart = Chart(f"{run.name}: loss", "learning rate", [Line("loss", points)], logarithmic=True)
    rates = [rate for rate, _ in points]
    suggestions = (row.get("suggestion") for row in run.sweep)
    chart.mark = next((rate for rate in suggestions if rate is not None and min(rates) <= rate <= max(rates)), None)
    smooth = [point for point in _points(run.sweep, "learning_rate", "smooth") if point[0] > 0]
    if smooth:
        chart.lines.append(Line("smoothed", smooth, 1))
        losses = [loss for _, loss in smooth]
        low = min(losses)
        high = max(losses[: losses.index(low) + 1])
        chart.top = high + 0.35 * max(high - low, 0.05 * abs(low), 1e-6)
    return thinned([chart])[0]


def family_of(column: str) -> str:
    """Name what a metric measures, without the data and the average it was measured with."""
    return re.sub(r"_(ema|swa)(_\d+)?$", "", re.sub(r"^(train|val|test)_", "", column))


def is_accuracy(column: str) -> bool:
    """Tell whether a metric is a share of right answers: shown in per cent, the more the better."""
    words = re.split(r"[^a-z]+", family_of(column).lower())  # acc_top5 -> acc, top
    return any(word.endswith(("acc", "accuracy")) for word in words)


def thinned(charts: list[Chart]) -> list[Chart]:
    """Leave out points evenly where there are more than a page should hold; each line keeps its ends."""
    lines = [line for chart in charts for line in chart.lines]
    most = max(20, min(600, _ALL_POINTS // max(1, len(lines))))
    for line in lines:
        last = len(line.points) - 1
        if last >= most:
            line.points = [line.points[round(i * last / (most - 1))] for i in range(most)]
    return charts


def draw_chart(chart: Chart, number: int) -> str:
    """Return the chart as a figure with an SVG that the cursor of page.js finds by its id."""
    frame = _Frame(chart)
    parts = [*frame.axes(), *_mark(frame)]
    cut: dict[str, Any] = {}
    if chart.top is not None:
        box = {"x": _LEFT, "y": _TOP, "width": _WIDTH - _LEFT - _RIGHT, "height": _HEIGHT - _TOP - _BOTTOM}
        parts.append(tag("clipPath", tag("rect", **box), id=f"inside-{number}"))
        cut["clip_path"] = f"url(#inside-{number})"
    for index, line in enumerate(chart.lines):
        places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        parts.append(tag("polyline", points=places, class_=f"line {line.look}", data_line=index, **cut))
        if len(line.points) == 1:
            x, y = line.points[0]
            place = {"cx": f"{frame.x(x):.1f}", "cy": f"{frame.y(y):.1f}", "r": 4}
            parts.append(tag("circle", **place, class_=f"dot color-{line.color}", data_line=index))
    last = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in chart.lines[:8])
    last += "" if chart.mark is None else f"; suggestion {chart.mark:.2g}"
    label = f"{chart.title} against {chart.x_label}: {last}. Arrow keys move a cursor."
    view = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "tabindex": 0, "aria_label": label}
    svg = tag("svg", "".join(parts), **view)
    legend = "".join(_legend(index, line) for index, line in enumerate(chart.lines))
    return tag(
        "figure",
        tag("figcaption", clean(chart.title + (" (%)" if chart.percent else "")))
        + svg
        + tag("div", legend, class_="legend")
        + tag("output", "", class_="readout", aria_live="polite"),
        class_="chart",
        id=f"chart-{number}",
    )


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return what the cursor needs: where the points lie in the view box, and their values."""
    frame = _Frame(chart)
    return {
        "x": chart.x_label,
        "percent": chart.percent,
        "box": [_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM],
        "lines": [
            {
                "name": line.name,
                "points": [[_short(x), _short(y)] for x, y in line.points],
                "places": _places(frame, line),
            }
            for line in chart.lines
        ],
    }


def _mark(frame: _Frame) -> Iterable[str]:
    """Draw the suggestion as an upright line with its number, on the side where there is room."""
    if frame.chart.mark is None:
        return
    place, bottom = frame.x(frame.chart.mark), _HEIGHT - _BOTTOM
    at_right = place < (_LEFT + _WIDTH - _RIGHT) / 2
    yield tag("line", x1=f"{place:.1f}", x2=f"{place:.1f}", y1=_TOP, y2=bottom, class_="mark")
    text = {"x": f"{place + (6 if at_right else -6):.1f}", "y": bottom - 8, "class_": "right" if at_right else "left"}
    yield tag("text", f"suggestion {frame.chart.mark:.2g}", **text)


def _places(frame: _Frame, line: Line) -> list[list[float]]:
    return [[round(frame.x(x), 1), round(frame.y(y), 1)] for x, y in line.points]


class _Frame:
    """The axes of a chart: from values to places in the view box."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        self.logarithmic = chart.logarithmic
        xs = [self._along(x) for line in chart.lines for x, _ in line.points]
        top = math.inf if chart.top is None else chart.top
        ys = [min(y, top) for line in chart.lines for _, y in line.points]
        self.low_x, self.high_x = _widen(min(xs), max(xs), 0.0)
        self.low_y, self.high_y = _widen(min(ys), max(ys), 0.06)

    def _along(self, x: float) -> float:
        return math.log10(x) if self.logarithmic else x

    def x(self, value: float) -> float:
        share = (self._along(value) - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> Iterable[str]:
        """Draw the grid, the numbers at it and the name of the horizontal axis."""
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        scale = 100 if self.chart.percent else 1
        levels = ticks(self.low_y * scale, self.high_y * scale, 5)
        texts = _numbers(levels)
        look = "tick left long" if max(map(len, texts)) > 6 else "tick left"  # at the usual size there is room for six
        for value, text in zip(levels, texts, strict=True):
            height = f"{self.y(value / scale):.1f}"
            yield tag("line", x1=_LEFT, x2=right, y1=height, y2=height, class_="grid")
            yield tag("text", text, x=_LEFT - 6, y=height, dy="0.35em", class_=look)
        marks = rates(self.low_x, self.high_x) if self.logarithmic else self._whole_numbers()
        for value, text in marks.items():
            place = f"{self.x(value):.1f}"
            yield tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="grid")
            yield tag("text", text, x=place, y=bottom + 16, class_="tick")
        yield tag("text", clean(self.chart.x_label), x=(_LEFT + right) / 2, y=_HEIGHT - 3, class_="tick")

    def _whole_numbers(self) -> dict[float, str]:
        return {value: f"{value:,.0f}" for value in ticks(self.low_x, self.high_x, 5, whole=True)}


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return round numbers in [low, high], about count of them; whole keeps to integers."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / count))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= count)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, min(last, first + 2 * count) + 1)]


def rates(low: float, high: float) -> dict[float, str]:
    """Return marks for an axis from 10**low to 10**high, with their texts: powers of ten, or finer, or its ends."""
    powers = [10**mark for mark in ticks(low, high, 5, whole=True)]
    if len(powers) < 2:
        decades = range(math.floor(low), math.floor(high) + 1)
        finer = [float(f"{factor}e{decade}") for decade in decades for factor in (1, 2, 5)]
        powers = [rate for rate in finer if low <= math.log10(rate) <= high]
    if len(powers) < 2:
        return {10**end: f"{10**end:.1e}" for end in (low, high)}
    return {power: f"{power:.0e}" for power in powers}


def _numbers(levels: list[float]) -> list[str]:
    """Write levels with four digits, or with as many as they need to differ."""
    digits = next(count for count in range(4, 18) if len({f"{level:.{count}g}" for level in levels}) == len(levels))
    return [f"{level:.{digits}g}" for level in levels]


def _widen(low: float, high: float, margin: float) -> tuple[float, float]:
    """Leave room around the values; values that are all the same get an axis around them."""
    span = high - low
    if not span > 1e-9 * max(abs(low), abs(high), 1e-300):
        span = abs(low) or 1.0
        return low - 0.5 * span, high + 0.5 * span
    return low - margin * span, high + margin * span


def _points(rows: Iterable[Row], x: str, column: str) -> Points:
    pairs = ((row.get(x), row.get(column)) for row in rows)
    return [
        (one, other)
        for one, other in pairs
        if one is not None and other is not None and max(abs(one), abs(other)) < _LARGEST
    ]


def _dash(column: str) -> str:
    own = (dash for ending, dash in _DASHES.items() if re.search(rf"{ending}(_\d+)?$", column))
    return next(own, "dashed" if column.startswith("train_") else "")


def _legend(index: int, line: Line) -> str:
    swatch = tag("span", "", class_=f"swatch {line.look}")
    return tag("button", swatch + clean(line.name), type="button", aria_pressed="true", data_line=index)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
