"""What the nodes of an image attend to, drawn over the image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.plots.figure import DPI, FilePath, Range, finish, new_figure, require_same_length
from cifarkit.plots.images import to_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_PIXELS, _GAP, _BAR, _SCALE_PIXELS = 192, 10, 16, 104  # of a picture, between two, of a colour bar with its text
_TEXT_POINTS, _LINE, _CHARACTER = 7.5, 27, 12  # size of the text; height of a line and width of a letter in pixels
_COVER, _GREY = 0.7, 0.45  # how much colour hides of the image under it; the grey under the colours of the scale


@dataclass(frozen=True)
class _Panels:
    """What is drawn to the right of each image."""

    headings: list[str]
    marked: list[int | None]  # the query a panel shows; None for the mean over all
    heat: NDArray[np.float64]  # (B, P, h, w)
    queries: list[int]


def attention_maps(
    images: Tensor,
    weights: Tensor,
    queries: Sequence[int] | Tensor | None = None,
    columns: Literal["queries", "heads"] = "queries",
    path: FilePath = None,
    *,
    grid: Sequence[int] | None = None,
    value_range: Range = None,
    title: str = "",
) -> Figure:
    """Draw what each cell of an image gets of the attention: first the mean over all queries, then single ones.

    A row is one image, with its queries outlined in white. It has one colour scale, from 0 to the largest share of the
    row, which follows the square root, so that small shares are seen.

    Args:
        images: (B, C, H, W); with value_range, as in :func:`image_grid`.
        weights: (B, N, N) or (B, heads, N, N), as ``HybridClassifier.attention_maps(images)`` or one layer of
            ``VisionTransformer.attention_maps(images)``; dimension -2 asks, dimension -1 is attended to.
        queries: node indices, row by row; None for three on the diagonal, or with columns="heads" for none.
        columns: "queries" averages the heads; "heads" gives each head a panel of its own.
        grid: (rows, columns) of nodes, spread over the image; None for the one of square cells.
        title: a line over the picture.
    Raises:
        TypeError: if images or weights are no such tensors, a query is no integer, or queries or grid a single number.
        ValueError: if a shape, a query, a value, columns or grid does not fit.
    """
    pixels = to_pixels(images, value_range)
    weights = _check_weights(weights, pixels)
    grid = _choose_grid(weights.shape[-1], pixels, grid)
    panels = _choose_panels(weights, queries, columns, grid)
    return finish(_draw(pixels, panels, title, _notes(weights, columns, panels)), path)


def _check_weights(weights: Tensor, pixels: NDArray[np.uint8]) -> Tensor:
    """Return weights as (B, heads, N, N) in fp64."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = getattr(weights, "dtype", type(weights).__name__)
        raise TypeError(f"weights must be a float tensor, got {got}; give what attention_maps(images) returns")
    shape = tuple(weights.shape)
    if len(shape) not in (3, 4) or shape[-1] != shape[-2] or 0 in shape:
        advice = "; give one layer, such as weights[-1]" if len(shape) == 5 else ""
        raise ValueError(f"weights has shape {shape}; it must be (B, N, N) or (B, heads, N, N){advice}")
    require_same_length(weights=weights, images=pixels)
    weights = weights.detach().cpu().double()
    if not weights.isfinite().all() or weights.min() < 0:
        seen = f"from {weights.min().item():.3g} to {weights.max().item():.3g}"
        raise ValueError(f"weights hold values {seen}; they must be finite and at least 0, as behind a softmax")
    return weights if len(shape) == 4 else weights[:, None]


def _choose_grid(nodes: int, pixels: NDArray[np.uint8], grid: Sequence[int] | None) -> tuple[int, int]:
    _, height, width, _ = pixels.shape
    if grid is None:
        rows = max(1, round(math.sqrt(nodes * height / width)))
        if rows * (nodes // rows) != nodes or rows * width != nodes // rows * height:
            where = f"no grid of square cells on an image of {height} x {width} pixels"
            raise ValueError(f"weights has {nodes} nodes, which fill {where}; give grid=(rows, columns)")
        return rows, nodes // rows
    if not hasattr(grid, "__len__"):
        raise TypeError(f"grid={grid!r} is a {type(grid).__name__}; give two numbers, (rows, columns)")
    if len(grid) != 2:
        raise ValueError(f"grid={grid!r} must be two numbers, (rows, columns)")
    rows, columns = (check_integer(f"grid[{place}]", count, 1) for place, count in enumerate(grid))
    if rows * columns != nodes:
        raise ValueError(f"grid={(rows, columns)} has {rows * columns} cells but weights has {nodes} nodes")
    if rows > height or columns > width:
        raise ValueError(f"grid={(rows, columns)} is finer than the {height} x {width} pixels of an image")
    return rows, columns


def _choose_panels(
    weights: Tensor, queries: Sequence[int] | Tensor | None, columns: str, grid: tuple[int, int]
) -> _Panels:
    """Pick what is asked for out of the weights (B, heads, N, N)."""
    if columns not in ("queries", "heads"):
        raise ValueError(f"columns={columns!r} is unknown; give 'queries' or 'heads'")
    (rows, across), nodes = grid, weights.shape[-1]
    if queries is None:  # a quarter, half and three quarters down the diagonal; fewer if these are the same cells
        parts = (1, 2, 3) if columns == "queries" else ()
        queries = [*dict.fromkeys(rows * part // 4 * across + across * part // 4 for part in parts)]
    asked = queries.tolist() if isinstance(queries, Tensor | np.ndarray) else queries
    if not hasattr(asked, "__iter__"):
        raise TypeError(f"queries={queries!r} is a {type(queries).__name__}; give a list of node numbers, as in [5]")
    chosen = [check_integer(f"queries[{place}]", query) for place, query in enumerate(asked)]
    for cell in chosen:
        if not 0 <= cell < nodes:
            raise ValueError(f"queries holds {cell}, but the nodes are numbered from 0 to {nodes - 1}")
    heads = weights.mean(1, keepdim=True) if columns == "queries" else weights
    names = [f"\nhead {head + 1}" if columns == "heads" else "" for head in range(heads.shape[1])]
    headings, heat = [], []
    marked: list[int | None] = []
    for number, query in enumerate((None, *chosen)):
        for head, name in enumerate(names):
            headings.append((f"query {number}" if number else "mean of queries") + name)
            marked.append(query)
            heat.append(heads[:, head].mean(1) if query is None else heads[:, head, query])  # (B, N)
    maps = np.stack([part.numpy() for part in heat], axis=1)
    return _Panels(headings, marked, maps.reshape(len(maps), -1, rows, across), chosen)


def _notes(weights: Tensor, columns: str, panels: _Panels) -> str:
    heads, nodes = weights.shape[1:3]
    averaged = f", mean of {heads} heads" if columns == "queries" and heads > 1 else ""
    outlined = " Outlined: the query." if panels.queries else ""
    return (
        f"Colour: share of the attention that a cell gets{averaged}, one scale a row; "
        f"{_percent(1 / nodes)} if all {nodes} cells got alike.{outlined}"
    )


def _draw(pixels: NDArray[np.uint8], panels: _Panels, title: str, notes: str) -> Figure:
    """Compose one big image, a pixel of which is one of the file, and write on it."""
    zoom = -(-_PANEL_PIXELS // pixels.shape[2])  # a whole number keeps the squares equal
    height, width = pixels.shape[1] * zoom, pixels.shape[2] * zoom
    headings = ["image", *panels.headings]
    lefts = [_GAP + column * (width + _GAP) for column in range(len(headings) + 1)]  # the last is that of the scale
    across = lefts[-1] + _SCALE_PIXELS
    lines = textwrap.wrap(notes, across // _CHARACTER)
    head = _GAP + (_LINE + 6 if title else 0) + _LINE * (1 + max(text.count("\n") for text in headings))
    canvas = np.full((head + len(pixels) * (height + _GAP) + _LINE * len(lines) + 6, across, 3), 255, np.uint8)
    figure = new_figure(across / DPI, len(canvas) / DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    for row, picture in enumerate(pixels):
        top, largest = head + row * (height + _GAP), panels.heat[row].max()
        tiles = _tiles(picture.repeat(zoom, 0).repeat(zoom, 1), panels, row, largest)
        for left, tile in zip(lefts, tiles, strict=False):
            canvas[top : top + height, left : left + width] = tile
        canvas[top : top + height, lefts[-1] : lefts[-1] + _BAR] = _colour_bar(height)[:, None]
        _label_scale(axes, top, lefts[-1] + _BAR + 5, height, largest)
        _number_queries(axes, panels, (top, _GAP), (height, width))
    for left, heading in zip(lefts, headings, strict=False):
        axes.text(left, head - 8, heading, fontsize=_TEXT_POINTS, linespacing=1.15, parse_math=False)
    axes.text(_GAP, _GAP, title, fontsize=_TEXT_POINTS + 1.5, weight="bold", va="top", parse_math=False)
    axes.text(_GAP, len(canvas) - 6, "\n".join(lines), fontsize=_TEXT_POINTS, linespacing=1.15, parse_math=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure


def _tiles(picture: NDArray[np.uint8], panels: _Panels, row: int, largest: float) -> list[NDArray[np.uint8]]:
    """Draw the panels of one image (H, W, 3), which itself is the first."""
    size, grid = picture.shape, panels.heat.shape[2:]
    rows, columns = (np.arange(pixels) * cells // pixels for pixels, cells in zip(size, grid, strict=False))
    grey = picture @ [0.299, 0.587, 0.114] / 255  # (H, W), ITU-R BT.601
    tiles = [_outlined(picture, panels.queries, grid)]
    for heat, query in zip(panels.heat[row], panels.marked, strict=True):
        share = (heat / (largest or 1))[rows[:, None], columns]  # (h, w) -> (H, W)
        tiles.append(_outlined(_tinted(grey, share), [] if query is None else [query], grid))
    return tiles


def _tinted(grey: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay the colours of shares of the largest weight over grey pixels, both (...) in [0, 1]: (..., 3)."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.sqrt(share))[..., :3]
    tinted: NDArray[np.uint8] = np.rint(255 * (_COVER * colours + (1 - _COVER) * grey[..., None])).astype(np.uint8)
    return tinted


def _colour_bar(height: int) -> NDArray[np.uint8]:
    level = np.linspace(1, 0, height)
    return _tinted(np.full(height, _GREY), level**2)


def _box(cell: int, grid: Sequence[int], size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a cell in pixels, a little larger than it is but inside the picture."""
    (rows, columns), (height, width) = grid, size
    row, column = divmod(cell, columns)
    top, bottom = -(-row * height // rows), -(-(row + 1) * height // rows)
    left, right = -(-column * width // columns), -(-(column + 1) * width // columns)
    return max(top - 2, 0), min(bottom + 2, height), max(left - 2, 0), min(right + 2, width)


def _outlined(picture: NDArray[np.uint8], cells: Sequence[int], grid: Sequence[int]) -> NDArray[np.uint8]:
    """Frame cells in white between two black lines, which stands out on any colour."""
    result: NDArray[np.uint8] = picture.copy()
    for cell in cells:
        top, bottom, left, right = _box(cell, grid, picture.shape[:2])
        inside = picture[top + 5 : bottom - 5, left + 5 : right - 5]
        for inset, ink in ((0, 0), (1, 255), (4, 0)):
            result[top + inset : bottom - inset, left + inset : right - inset] = ink
        result[top + 5 : bottom - 5, left + 5 : right - 5] = inside
    return result


def _number_queries(axes: Axes, panels: _Panels, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Write the number of each query beside its cell, where there is room."""
    from matplotlib.patheffects import withStroke

    for number, query in enumerate(panels.queries, 1):
        top, bottom, left, right = _box(query, panels.heat.shape[2:], size)
        fits = right + 24 < size[1]
        across, side = (right + 3, "left") if fits else (left - 3, "right")
        text = axes.text(corner[1] + across, corner[0] + (top + bottom) / 2, str(number), ha=side, va="center")
        text.set(
            fontsize=_TEXT_POINTS,
            color="white",
            weight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _label_scale(axes: Axes, top: int, left: int, height: int, largest: float) -> None:
    """Write the shares at the ends and in the middle of a scale that follows the square root."""
    for level, align in ((0.0, "bottom"), (0.5, "center"), (1.0, "top")):
        share = _percent(largest * level**2)
        axes.text(left, top + height * (1 - level), share, fontsize=_TEXT_POINTS, va=align)


def _percent(share: float) -> str:
    """Write a share with two digits, but from 99.5 % on without the exponent that they would bring."""
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"
