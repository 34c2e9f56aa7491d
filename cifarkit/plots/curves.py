"""Curves: what a run measured over its epochs, and the sweep of a learning-rate finder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cifarkit.plots.figure import (
    BLUE,
    GREEN,
    PURPLE,
    SKY,
    VERMILION,
    FilePath,
    Numbers,
    finish,
    new_figure,
    strip_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Series: TypeAlias = dict[str, tuple[list[float], list[float]]]  # name -> (epochs, values)

_COLORS = {"train": BLUE, "val": VERMILION, "val ema": GREEN, "val swa": PURPLE}
_PANELS = {"loss": ("Loss", 1.0), "acc": ("Accuracy (%)", 100.0), "lr": ("Learning rate", 1.0)}


def training_curves(history: Sequence[Mapping[str, Any]], path: FilePath = None) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs, each line labelled with its last value.

    Args:
        history: one mapping an epoch, such as ``run.history``; every column whose name holds the word loss, acc (in
            [0, 1]) or lr is drawn. A value that is missing, None or not finite leaves out its point.
    Raises:
        ValueError: if the history is empty or has nothing to draw.
    """
    if not history:
        raise ValueError("history is empty; training_curves needs at least one epoch, as run.history has after fit")
    panels = {word: series for word in _PANELS if (series := _series(history, word))}
    if not panels:
        raise ValueError(f"history has no number in a loss, acc or lr column; its columns are {sorted(history[0])}")
    figure = new_figure(3.7 * len(panels), 2.9)
    for axes, (word, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        title, scale = _PANELS[word]
        _draw_series(axes, series, scale, "{:.1f} %" if word == "acc" else "{:.3g}", from_zero=word == "lr")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
    return finish(figure, path)


def lr_sweep(
    learning_rates: Numbers,
    losses: Numbers,
    suggestion: float | None = None,
    path: FilePath = None,
    *,
    smooth: Numbers | None = None,
) -> Figure:
    """Draw the loss against the learning rate: dots as measured, a line smoothed, the suggested rate marked.

    The view ends a little above the loss the sweep began with: a diverging tail would flatten the descent.

    Args:
        learning_rates: (S,) positive, one for each step of the sweep.
        losses: (S,) loss at each step; steps where it, or smooth, is not finite are left out.
        suggestion: the rate to mark; None marks nothing.
        smooth: (S,) the line; None averages over neighbours.
    Raises:
        ValueError: if the lengths differ, a rate is not positive, or fewer than two losses are finite.
    """
    given = {"losses": losses} if smooth is None else {"losses": losses, "smooth": smooth}
    rates, raw, *line = _checked_sweep(learning_rates, given, suggestion)
    smooth = line[0] if line else _smooth(raw)
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.semilogx(rates, raw, "o", color=SKY, markersize=3.5, alpha=0.7, markeredgewidth=0)
    axes.semilogx(rates, smooth, color=BLUE, linewidth=2)
    low, high = smooth.min(), smooth[: smooth.argmin() + 1].max()
    span = max(high - low, 0.05 * abs(low), 1e-6)
    axes.set_ylim(low - 0.15 * span, high + 0.35 * span)
    if suggestion is not None:
        height = np.interp(math.log(suggestion), np.log(rates), smooth)
        axes.axvline(suggestion, color=VERMILION, linewidth=1, linestyle="--")
        axes.plot([suggestion], [height], "o", color=VERMILION, markersize=7)
        side, align = (-6, "right") if suggestion**2 > rates[0] * rates[-1] else (6, "left")  # where there is room
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": align}
        text = f"suggestion {suggestion:.2g}"
        axes.annotate(text, (suggestion, 0.03), (side, 0), color=VERMILION, fontsize=10, **place)
    strip_axes(axes)
    axes.set_xlabel("learning rate", fontsize=10)
    axes.set_ylabel("training loss", fontsize=10)
    return finish(figure, path)


def _series(history: Sequence[Mapping[str, Any]], word: str) -> _Series:
    """Collect the finite numbers of the columns whose name holds the word."""
    series: _Series = {}
    for index, row in enumerate(history):
        for key, value in row.items():
            words = key.replace("/", "_").split("_")
            if word in words and isinstance(value, int | float) and math.isfinite(value):
                epochs, values = series.setdefault(" ".join(part for part in words if part != word), ([], []))
                epochs.append(row.get("epoch", index + 1))
                values.append(value)
    return series


def _draw_series(axes: Axes, series: _Series, scale: float, form: str, *, from_zero: bool) -> None:
    """Draw the lines and write name and last value to the right of each, moved apart where they would overlap."""
    from matplotlib.ticker import MaxNLocator

    taken = {color for name, color in _COLORS.items() if name in series}
    ends, spare = [], itertools.cycle(color for color in (BLUE, VERMILION, GREEN, PURPLE, SKY) if color not in taken)
    for name, (epochs, values) in series.items():
        color, last = _COLORS.get(name) or next(spare), scale * values[-1]
        marker = "o" if len(epochs) <= 15 else None  # a single epoch has no line to see
        axes.plot(epochs, [scale * value for value in values], color=color, linewidth=1.6, marker=marker, markersize=3)
        ends.append((last, f"{name} {form.format(last)}".strip(), color))
    if len({epoch for epochs, _ in series.values() for epoch in epochs}) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    if from_zero:
        axes.set_ylim(0, axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    low, high = axes.get_ylim()
    free, top = 0.0, 1.0 - 0.085 * (len(ends) - 1)  # the lowest free place and the highest allowed, in panel heights
    for value, text, color in sorted(ends):
        place = min(max((value - low) / (high - low), free), top)
        axes.text(1.03, place, text, color=color, fontsize=9, va="center", transform=axes.transAxes)
        free, top = place + 0.085, top + 0.085
    strip_axes(axes)


def _checked_sweep(
    learning_rates: Numbers, given: Mapping[str, Numbers], suggestion: float | None
) -> list[NDArray[Any]]:
    """Return rates and what was given at each, sorted by rate, without the steps where anything is not finite."""
    rates, *values = (torch.as_tensor(one).detach().cpu().double().numpy() for one in (learning_rates, *given.values()))
    for name, one in zip(given, values, strict=True):
        if rates.ndim != 1 or rates.shape != one.shape:
            raise ValueError(f"learning_rates {rates.shape} and {name} {one.shape} must be two lists of one length")
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"learning_rates must be positive for a logarithmic axis; the lowest is {rates.min()}")
    if suggestion is not None and not 0 < suggestion < math.inf:
        raise ValueError(f"suggestion={suggestion} is no learning rate; give a positive number or None")
    finite = np.isfinite(values).all(0)
    if finite.sum() < 2:
        where = " where smooth is finite" if "smooth" in given else ""
        raise ValueError(f"losses has {finite.sum()} finite values{where}; a sweep needs at least 2")
    order = rates[finite].argsort()
    return [one[finite][order] for one in (rates, *values)]


def _smooth(values: NDArray[Any]) -> NDArray[Any]:
    """Average over a triangular window of a tenth of the sweep; at the ends over what there is of it."""
    half = max(1, len(values) // 20)
    window = half + 1.0 - np.abs(np.arange(-half, half + 1))
    total, weight = np.convolve(values, window), np.convolve(np.ones_like(values), window)
    return (total / weight)[half:-half]
