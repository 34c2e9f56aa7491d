"""Every picture: training curves, learning-rate sweeps, image grids, confusion matrices, confident mistakes.

Each function returns a ``matplotlib.figure.Figure`` that belongs to no window and no global state, so it works on a
server, in a thread and in the middle of a run; given a path that ends in .png it also writes that file, whole or not
at all, and makes its folder. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FilePath: TypeAlias = str | Path | None
_Numbers: TypeAlias = ArrayLike | Tensor
_Range: TypeAlias = tuple[float, float] | None
_Series: TypeAlias = dict[str, tuple[list[float], list[float]]]  # name -> (epochs, values)

_DPI, _CELL_PIXELS = 200, 192  # a picture of a grid is 2.4 cm wide on the page
_TEXT_POINTS, _TEXT_CHARACTERS = 7.5, 18  # size of a caption, and how much of it fits over a picture
_LONGEST_TEXT = 24  # longer lines are cut; up to here the text is made smaller
_BLUE, _VERMILION, _GREEN, _PURPLE, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"  # Okabe and Ito 2008
_COLORS = {"train": _BLUE, "val": _VERMILION, "val ema": _GREEN, "val swa": _PURPLE}
_PANELS = {"loss": ("Loss", 1.0), "acc": ("Accuracy (%)", 100.0), "lr": ("Learning rate", 1.0)}


def training_curves(history: Sequence[Mapping[str, Any]], path: _FilePath = None) -> Figure:
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
    figure = _figure(3.7 * len(panels), 2.9)
    for axes, (word, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        title, scale = _PANELS[word]
        _draw_series(axes, series, scale, "{:.1f} %" if word == "acc" else "{:.3g}", from_zero=word == "lr")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
    return _finish(figure, path)


def lr_sweep(
    learning_rates: _Numbers, losses: _Numbers, suggestion: float | None = None, path: _FilePath = None
) -> Figure:
    """Draw the loss against the learning rate: dots as measured, a line smoothed, the suggested rate marked.

    The view ends a little above the loss the sweep began with: a diverging tail would flatten the descent.

    Args:
        learning_rates: (S,) positive, one for each step of the sweep.
        losses: (S,) loss at each step; those that are not finite are left out.
        suggestion: the rate to mark; None marks nothing.
    Raises:
        ValueError: if the lengths differ, a rate is not positive, or fewer than two losses are finite.
    """
    rates, raw = _checked_sweep(learning_rates, losses, suggestion)
    smooth = _smooth(raw)
    figure = _figure(5.2, 3.4)
    axes = figure.subplots()
    axes.semilogx(rates, raw, "o", color=_SKY, markersize=3.5, alpha=0.7, markeredgewidth=0)
    axes.semilogx(rates, smooth, color=_BLUE, linewidth=2)
    low, high = smooth.min(), smooth[: smooth.argmin() + 1].max()
    span = max(high - low, 0.05 * abs(low), 1e-6)
    axes.set_ylim(low - 0.15 * span, high + 0.35 * span)
    if suggestion is not None:
        height = np.interp(math.log(suggestion), np.log(rates), smooth)
        axes.axvline(suggestion, color=_VERMILION, linewidth=1, linestyle="--")
        axes.plot([suggestion], [height], "o", color=_VERMILION, markersize=7)
        side, align = (-6, "right") if suggestion**2 > rates[0] * rates[-1] else (6, "left")  # where there is room
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": align}
        text = f"suggestion {suggestion:.2g}"
        axes.annotate(text, (suggestion, 0.03), (side, 0), color=_VERMILION, fontsize=10, **place)
    _strip(axes)
    axes.set_xlabel("learning rate", fontsize=10)
    axes.set_ylabel("training loss", fontsize=10)
    return _finish(figure, path)


def image_grid(
    images: Tensor,
    labels: Sequence[int] | Sequence[str] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    columns: int = 8,
    path: _FilePath = None,
    *,
    value_range: _Range = None,
    title: str = "",
) -> Figure:
    """Lay images out in rows, each pixel a crisp square, with a caption over each.

    Args:
        images: (B, C, H, W), one or three channels, uint8 or float.
        labels: B class indices, or B captions of one or two lines; None writes no caption.
        classes: K names that turn indices into captions; None shows the index.
        columns: images in a row.
        value_range: the float values shown black and white, beyond which they are clipped, such as (-1, 1) for a
            generator; None means [0, 1] and refuses other values. uint8 images ignore it.
        title: a line over the grid.
    Raises:
        TypeError: if images is not a uint8 or float tensor.
        ValueError: if a shape, a length, a label or a value does not fit.
    """
    pixels = to_pixels(images, value_range)
    if columns < 1:
        raise ValueError(f"columns={columns} is no row; give at least 1")
    captions = [] if labels is None else _captions(labels, classes)
    if labels is not None:
        _same_length(labels=captions, images=pixels)
    return _finish(_draw_grid(pixels, captions, columns if title else min(columns, len(pixels)), title), path)


def confusion_matrix(predictions: _Numbers, labels: _Numbers, classes: Sequence[str], path: _FilePath = None) -> Figure:
    """Draw which class is taken for which, in % of the true class: each row adds up to 100.

    Colour follows the square root, so that a confusion of 1 % is seen. Up to 20 classes the cells from 0.5 % up carry
    their number; a class without a sample has a white row.

    Args:
        predictions: (N,) predicted class indices.
        labels: (N,) true class indices.
        classes: K names.
    Raises:
        ValueError: if the lengths differ, nothing is given, or an index is outside 0 to K - 1.
    """
    count = len(classes)
    predicted, true = _indices(predictions, "predictions", count), _indices(labels, "labels", count)
    _same_length(predictions=predicted, labels=true)
    table = np.bincount(true * count + predicted, minlength=count * count).reshape(count, count)  # (K * K,) -> (K, K)
    totals = table.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * table, totals, out=np.full(table.shape, np.nan), where=totals > 0)
    side = max(3.6, 0.43 * count) if count <= 20 else 0.11 * count
    figure = _figure(side + 1.9, side + 1.2)
    axes = figure.subplots()
    _draw_matrix(axes, share, classes)
    axes.set_title(f"Accuracy {100 * np.mean(predicted == true):.1f} % of {len(true)} images", fontsize=10, loc="left")
    return _finish(figure, path)


def most_confident_mistakes(logits: Tensor, labels: Tensor, count: int = 16) -> Tensor:
    """Return the indices (M,) of the wrong predictions with the highest softmax probability, the surest first.

    Args:
        logits: (N, K) float.
        labels: (N,) true class indices.
        count: the highest M.
    Raises:
        ValueError: if logits is not (N, K) and finite, labels is not (N,) within 0 to K - 1, or count is below 1.
    """
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it must be (N, K), one finite row for each image")
    if count < 1:
        raise ValueError(f"count={count} asks for nothing; give at least 1")
    true = torch.from_numpy(_indices(labels, "labels", logits.shape[1]))
    _same_length(labels=true, logits=logits)
    confidence, predicted = logits.detach().cpu().double().softmax(1).max(1)
    wrong = (predicted != true).nonzero()[:, 0]  # (N,) -> (M,)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:count]]


def confident_mistakes(
    images: Tensor,
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    count: int = 16,
    path: _FilePath = None,
    *,
    value_range: _Range = None,
) -> Figure:
    """Show the wrong predictions the model was surest of, captioned "cat 97 % (dog)": predicted, (true).

    Args:
        images: (N, C, H, W); with value_range, as in :func:`image_grid`.
        logits: (N, K) float.
        labels: (N,) true class indices.
        classes: K names.
        count: the most pictures to show; without a mistake the figure says so in words.
    Raises:
        ValueError: if lengths, shapes or the number of classes do not fit together.
    """
    worst = most_confident_mistakes(logits, labels, count)
    _same_length(images=images, logits=logits)
    if len(classes) != logits.shape[1]:
        raise ValueError(
            f"classes has {len(classes)} names but logits has {logits.shape[1]} columns; give one for each"
        )
    if len(worst) == 0:
        figure = _figure(4, 1)
        figure.text(0.5, 0.5, f"No mistake among {len(labels)} images", fontsize=10, ha="center", va="center")
        return _finish(figure, path)
    confidence, predicted = logits.detach().cpu()[worst].double().softmax(1).max(1)
    triples = zip(predicted.tolist(), confidence.tolist(), labels.cpu()[worst].tolist(), strict=True)
    captions = [f"{classes[guess][:18]} {100 * sure:.0f} %\n({classes[true][:22]})" for guess, sure, true in triples]
    columns, title = min(8, max(4, math.isqrt(len(worst)))), "Most confident mistakes: predicted (true)"
    return image_grid(images.cpu()[worst], captions, None, columns, path, value_range=value_range, title=title)


def to_pixels(images: Tensor, value_range: _Range = None) -> NDArray[np.uint8]:
    """Turn a batch (B, C, H, W) into uint8 (B, H, W, 3); arguments and errors are those of :func:`image_grid`."""
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(
            f"images must be a uint8 or float tensor, got {getattr(images, 'dtype', type(images).__name__)}"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; it must be (B, 1 or 3, H, W) with at least one image"
        )
    images = images.detach().cpu()
    if images.is_floating_point():
        (lowest, highest), (low, high) = (x.item() for x in images.double().aminmax()), value_range or (0.0, 1.0)
        seen = f"images hold values from {lowest:.3g} to {highest:.3g}"
        if not (low < high and math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(f"{seen}, value_range={value_range}: values must be finite, the range (low, high)")
        if value_range is None and (lowest < -0.01 or highest > 1.01):  # 1 %: resampling may overshoot
            raise ValueError(f"{seen}, outside [0, 1]; pass value_range=(low, high)")
        images = ((images.double() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()  # (B, C, H, W) -> (B, H, W, 3)


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

    ends, spare = [], iter((_BLUE, _VERMILION, _GREEN, _PURPLE, _SKY) * len(series))
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
    _strip(axes)


def _checked_sweep(learning_rates: _Numbers, losses: _Numbers, suggestion: float | None) -> tuple[NDArray[Any], ...]:
    """Return the part of a sweep with finite losses, sorted by rate."""
    rates, raw = (torch.as_tensor(values).detach().cpu().double().numpy() for values in (learning_rates, losses))
    if rates.ndim != 1 or rates.shape != raw.shape:
        raise ValueError(f"learning_rates {rates.shape} and losses {raw.shape} must be two lists of one length")
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"learning_rates must be positive for a logarithmic axis; the lowest is {rates.min()}")
    if suggestion is not None and not 0 < suggestion < math.inf:
        raise ValueError(f"suggestion={suggestion} is no learning rate; give a positive number or None")
    finite = np.isfinite(raw)
    if finite.sum() < 2:
        raise ValueError(f"losses has {finite.sum()} finite values; a sweep needs at least 2")
    order = rates[finite].argsort()
    return rates[finite][order], raw[finite][order]


def _smooth(values: NDArray[Any]) -> NDArray[Any]:
    """Average over a triangular window of a tenth of the sweep; at the ends over what there is of it."""
    half = max(1, len(values) // 20)
    window = half + 1.0 - np.abs(np.arange(-half, half + 1))
    total, weight = np.convolve(values, window), np.convolve(np.ones_like(values), window)
    return (total / weight)[half:-half]


def _captions(labels: Sequence[int] | Sequence[str] | Tensor, classes: Sequence[str] | None) -> list[str]:
    """Turn labels into the text over each picture, every line cut to the width of a picture."""
    texts = []
    for label in labels.tolist() if isinstance(labels, Tensor) else labels:
        if classes is not None and not isinstance(label, str):
            if not 0 <= label < len(classes):
                raise ValueError(f"labels holds {label} but classes has {len(classes)} names, 0 to {len(classes) - 1}")
            label = classes[label]
        texts.append("\n".join(line[:_LONGEST_TEXT] for line in str(label).split("\n")))
    return texts


def _draw_grid(pixels: NDArray[np.uint8], captions: list[str], columns: int, title: str) -> Figure:
    """Compose one big image, so that 500 pictures are as quick as 5, and write the text over it."""
    count, height, width, _ = pixels.shape
    zoom = max(1, round(_CELL_PIXELS / width))  # a whole number keeps the squares equal
    longest = max((len(part) for text in captions for part in text.split("\n")), default=0)
    points = _TEXT_POINTS * min(1, _TEXT_CHARACTERS / max(longest, 1))
    line = 1.3 * _TEXT_POINTS / 72 * _DPI / zoom  # height of a line of text, in image pixels
    strip = math.ceil(line * max((text.count("\n") + 1 for text in captions), default=0) + 4 / zoom)
    gap, head, rows = math.ceil(10 / zoom), math.ceil(1.4 * line) if title else 0, math.ceil(count / columns)
    canvas = np.full((head + rows * (strip + height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    figure = _figure(canvas.shape[1] * zoom / _DPI, canvas.shape[0] * zoom / _DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    for index, picture in enumerate(pixels):
        top = head + gap + index // columns * (strip + height + gap) + strip
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
        if captions:
            axes.text(left - 0.5, top - 0.5 - 6 / zoom, captions[index], fontsize=points, linespacing=1.15)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.text(gap - 0.5, gap - 0.5, title, fontsize=_TEXT_POINTS + 1.5, weight="bold", va="top")
    axes.set_axis_off()
    return figure


def _draw_matrix(axes: Axes, share: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Colour the cells of (K, K) percentages, name rows and columns, and write the numbers if there is room."""
    from matplotlib.colors import PowerNorm

    count, few = len(classes), len(classes) <= 20
    picture = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=100), interpolation="nearest")
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(count), classes, fontsize=8.5 if few else 6.5, **slant)
    axes.set_yticks(range(count), classes, fontsize=8.5 if few else 6.5)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    for row, column in np.argwhere(share >= 0.5) if few else ():
        color = "black" if share[row, column] > 20 else "white"  # 20 % is the middle grey of cividis
        axes.text(column, row, f"{share[row, column]:.0f}", color=color, fontsize=8.5, ha="center", va="center")
    bar = axes.figure.colorbar(picture, ax=axes, ticks=[0, 5, 20, 50, 100], shrink=0.6, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=8.5, length=0)
    bar.outline.set_visible(False)
    bar.set_label("% of the true class", fontsize=9)


def _indices(values: _Numbers, name: str, count: int) -> NDArray[np.int64]:
    """Return class indices (N,) after checking their rank, kind and range."""
    indices = torch.as_tensor(values).detach().cpu()
    if indices.ndim != 1 or len(indices) == 0 or indices.is_floating_point() or indices.dtype == torch.bool:
        got = f"{indices.dtype} of shape {tuple(indices.shape)}"
        raise ValueError(f"{name} is {got}; it must be (N,) integer class indices (take logits.argmax(1) first)")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} runs from {low} to {high}, which is outside 0 to {count - 1} for {count} classes")
    return indices.numpy().astype(np.int64)


def _same_length(**arguments: Any) -> None:
    (first, one), (second, other) = arguments.items()
    if len(one) != len(other):
        raise ValueError(f"{first} has {len(one)} entries but {second} has {len(other)}; give one for each image")


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def _strip(axes: Axes) -> None:
    """Leave two thin axes and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, length=3)
    axes.tick_params(which="minor", length=0)


def _finish(figure: Figure, path: _FilePath) -> Figure:
    """Write the PNG, if one is wanted, under a temporary name first, so that no half picture is ever seen."""
    if path is None:
        return figure
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png, the only format written")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            figure.savefig(file, format="png", dpi=_DPI)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return figure
