"""Attributions of several methods for several images, drawn so that they can be compared."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarkit.checks import check_numbers
from cifarkit.files import write_atomically
from cifarkit.plots.captions import captions_of
from cifarkit.plots.figure import BLUE, DPI, GREEN, VERMILION, FilePath, Range, finish, new_figure
from cifarkit.plots.images import to_pixels
from cifarkit.plots.sheet import Pixels, Row, Sheet, coloured
from cifarkit.plots.sheet_page import page_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_PIXELS, _GAP, _BAR, _BAR_TEXT = 160, 10, 16, 110  # of a picture, between two, of a colour bar, of its numbers
_TEXT_POINTS, _LINE, _CHARACTER = 7.5, 27, 12  # size of the text; height of a line and width of a letter in pixels
_ATTENTION = "attention_rollout"
_OUTLIERS = 0.01  # share of the pixels that may lie beyond the end of a scale
_WITHOUT_SIGN = ("saliency", "smooth_grad_squared")
_NOTE = "Red speaks for the class, blue against it, {} zero; channels added up. "
_SCALES = {
    "row": "One scale for each row, so the images of a method can be compared",
    "all": "One scale for all rows",
    "panel": "Each panel has its own scale: compare shapes, not colours",
}


def explanations(
    images: Tensor,
    attributions: Mapping[str, Tensor],
    path: FilePath = None,
    *,
    classes: Sequence[str] | None = None,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    scale: Literal["row", "all", "panel"] = "row",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    value_range: Range = None,
    over_image: bool = False,
    attention: Tensor | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Draw images in the first row and one method's maps in each row below, into a .png or one .html file.

    A scale ends where 1 % of its pixels lie beyond; a map that is zero everywhere is white, or without colour.

    Args:
        images: as in :func:`image_grid`; with mean and std, as the network gets them.
        attributions: name of a method -> (B, C, H, W) or (B, H, W), as ``attribute`` returns.
        classes, logits, labels, targets: K names, (B, K), (B,), (B,), for the captions: the predicted class and its
            probability, (the true one), and the one asked about where that is another.
        scale: does a "row" have a colour scale, "all" rows together, or each "panel" its own.
        over_image: lay the colours over the grey image instead of over white.
        attention: (B, H, W) or (B, 1, H, W), at least 0, as ``attention_rollout(model, images)`` returns, for a last
            row in green, with a scale that other rows do not share.
        notes: name of a method, or "attention_rollout" -> lines written beside its row.
    Raises:
        TypeError, ValueError: if an argument does not fit.
    """
    shown = _undo_normalisation(images, mean, std)
    pictures = to_pixels(shown, (0, 1) if mean is not None else value_range)
    maps, looks = _check_maps(attributions, pictures), _check_attention(attention, pictures)
    captions = captions_of(len(pictures), classes, logits, labels, targets)
    _check_words(scale, notes or {}, [*maps, *looks])
    rows = _rows(maps, pictures, scale, over_image, notes or {}, (VERMILION, BLUE))
    rows += _rows(looks, pictures, "row" if scale == "all" else scale, over_image, notes or {}, (GREEN, None))
    sheet = Sheet(pictures, captions, rows, title, _note(maps, looks, scale, over_image))
    if path is not None and Path(path).suffix.lower() == ".html":
        write_atomically(page_of(sheet).encode(), path)
        path = None
    elif path is not None and Path(path).suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png or .html")
    return finish(_draw(sheet), path)


def _undo_normalisation(images: Tensor, mean: Any, std: Any) -> Tensor:
    if (mean is None) != (std is None):
        raise ValueError("mean and std must both be given, or neither")
    if mean is None or not isinstance(images, Tensor) or images.dim() != 4:
        return images  # to_pixels says what is wrong
    numbers = {"mean": check_numbers("mean", mean), "std": check_numbers("std", std, 0, above=True)}
    for name, values in numbers.items():
        if len(values) not in (1, images.shape[1]):
            raise ValueError(f"{name} has {len(values)} values but images has {images.shape[1]} channels")
    if images.dtype == torch.uint8:
        raise ValueError("images are uint8, so they are not normalised; leave out mean and std")
    shift, factor = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in numbers.values())
    return images.detach().cpu().double() * factor + shift


def _check_maps(attributions: Mapping[str, Tensor], pictures: Pixels) -> dict[str, NDArray[np.float64]]:
    """Return each method's maps (B, H, W), channels added up."""
    if not isinstance(attributions, Mapping):
        kind = type(attributions).__name__
        raise TypeError(f"attributions is a {kind}; give a dict of names to tensors, as {{'saliency': maps}}")
    if not attributions:
        raise ValueError("attributions is empty; give at least one method")
    maps = {}
    for name, values in attributions.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"attributions[{name!r}] must be a float tensor, as attribute(...) returns it")
        summed = values.detach().cpu().double()
        summed = summed.sum(1) if summed.dim() == 4 else summed
        if tuple(summed.shape) != pictures.shape[:3]:
            got, (count, height, width) = tuple(values.shape), pictures.shape[:3]
            raise ValueError(f"attributions[{name!r}] has shape {got}; give ({count}, C, {height}, {width})")
        if not summed.isfinite().all():
            raise ValueError(f"attributions[{name!r}] holds NaN or infinite values")
        maps[str(name)] = summed.numpy()
    return maps


def _check_attention(attention: Tensor | None, pictures: Pixels) -> dict[str, NDArray[np.float64]]:
    if attention is None:
        return {}
    looks = _check_maps({_ATTENTION: attention}, pictures)
    if looks[_ATTENTION].min() < 0:
        raise ValueError("attention holds negative values; give what attention_rollout(model, images) returns")
    return looks


def _check_words(scale: str, notes: Mapping[str, str], names: list[str]) -> None:
    if scale not in _SCALES:
        raise ValueError(f"scale={scale!r} is unknown; use 'row', 'all' or 'panel'")
    unknown = sorted(set(notes) - set(names))
    if unknown:
        raise ValueError(f"notes names {unknown[0]!r}, which is not among the rows: {', '.join(names)}")


def _note(
    maps: dict[str, NDArray[np.float64]], looks: dict[str, NDArray[np.float64]], scale: str, over_image: bool
) -> str:
    """Say what colours mean; not all methods tell for from against."""
    plain = [name.replace("_", " ") for name in _WITHOUT_SIGN if name in maps and maps[name].min() >= 0]
    verb = "have" if len(plain) > 1 else "has"
    without = f"{' and '.join(plain)} {verb} no sign: red there says how much, not for or against. " if plain else ""
    green = "Green: the share of attention that a cell gets, whatever the class. " if looks else ""
    own = " but the green one." if looks and scale == "all" else "."
    note = _NOTE.format("where there is no colour it is" if over_image else "white is")
    return note + without[:1].upper() + without[1:] + green + _SCALES[scale] + own


def _rows(
    maps: dict[str, NDArray[np.float64]],
    pictures: Pixels,
    scale: str,
    over_image: bool,
    notes: Mapping[str, str],
    colours: tuple[str, str | None],
) -> list[Row]:
    everything = _largest(np.stack(list(maps.values()))) if maps else 0.0
    rows = []
    for name, values in maps.items():
        limits = {"row": _largest(values), "all": everything, "panel": None}
        limit = limits[scale]
        ends = [_largest(one) if limit is None else limit for one in values]
        signed = np.stack([np.clip(one / (end or 1), -1, 1) for one, end in zip(values, ends, strict=True)])
        lines = [name.replace("_", " "), *notes.get(name, "").splitlines()]
        rows.append(Row(lines, coloured(signed, pictures if over_image else None, colours), limit, colours))
    return rows


def _largest(values: NDArray[np.float64]) -> float:
    """Return the largest size but for outliers; with them where all the rest is zero."""
    sizes = np.abs(values)
    return float(np.quantile(sizes, 1 - _OUTLIERS)) or float(sizes.max())


def _draw(sheet: Sheet) -> Figure:
    """Compose one big image, a pixel of which is one of the file, and write on it."""
    zoom = -(-_PANEL_PIXELS // sheet.pictures.shape[2])  # a whole number keeps the squares equal
    height, width = sheet.pictures.shape[1] * zoom, sheet.pictures.shape[2] * zoom
    margin = _GAP + _CHARACTER * max(len(line) for row in sheet.rows for line in row.lines)
    head = _GAP + (_LINE + 6 if sheet.title else 0) + _LINE * max(map(len, sheet.captions))
    lefts = [margin + _GAP + index * (width + _GAP) for index in range(len(sheet.pictures) + 1)]
    across = max(lefts[-1] + _BAR + _BAR_TEXT, 40 * _CHARACTER)
    text = textwrap.wrap(sheet.note, max(across // _CHARACTER, 20))
    step = max([height, *(_LINE * len(row.lines) for row in sheet.rows)]) + _GAP  # room for long notes
    tops = [head + index * step for index in range(len(sheet.rows) + 2)]
    canvas = np.full((tops[-1] + _LINE * len(text) + _GAP, across, 3), 255, np.uint8)
    figure = new_figure(across / DPI, len(canvas) / DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    for top, tiles in zip(tops, [sheet.pictures, *(row.tiles for row in sheet.rows)], strict=False):
        for left, tile in zip(lefts, tiles, strict=False):
            canvas[top : top + height, left : left + width] = tile.repeat(zoom, 0).repeat(zoom, 1)
            canvas[[top, top + height - 1], left : left + width] = 200  # a frame, for maps that are white
            canvas[top : top + height, [left, left + width - 1]] = 200
    for top, row in zip(tops[1:], sheet.rows, strict=False):
        words: dict[str, Any] = {"fontsize": _TEXT_POINTS, "va": "center", "linespacing": 1.15, "parse_math": False}
        axes.text(_GAP, top + height / 2, "\n".join(row.lines), **words)
        if row.limit is not None:
            lowest = -1 if row.colours[1] else 0
            bar = coloured(np.linspace(1, lowest, height), None, row.colours)
            canvas[top : top + height, lefts[-1] : lefts[-1] + _BAR] = bar[:, None]
            _label_bar(axes, lefts[-1] + _BAR + 5, top, height, (lowest * row.limit, row.limit))
    most = max(4, width // _CHARACTER + 3)
    for left, lines in zip(lefts, sheet.captions, strict=False):
        cut = "\n".join(_cut(line, most) for line in lines)
        axes.text(left, head - 6, cut, fontsize=_TEXT_POINTS, linespacing=1.15, parse_math=False)
    axes.text(_GAP, _GAP, sheet.title, fontsize=_TEXT_POINTS + 1.5, weight="bold", va="top", parse_math=False)
    axes.text(_GAP, len(canvas) - 6, "\n".join(text), fontsize=_TEXT_POINTS, linespacing=1.15, parse_math=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure


def _cut(line: str, most: int) -> str:
    """Shorten a caption to so many characters; one in brackets keeps the closing one."""
    return line if len(line) <= most else line[: most - 1] + (")" if line.endswith(")") else "…")


def _label_bar(axes: Axes, left: int, top: int, height: int, ends: tuple[float, float]) -> None:
    low, high = ends
    for share, align, value in ((0.0, "top", high), (0.5, "center", (low + high) / 2), (1.0, "bottom", low)):
        axes.text(left, top + share * height, f"{value:.2g}", fontsize=_TEXT_POINTS, va=align)
