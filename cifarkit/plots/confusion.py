"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cifarkit.plots.figure import FilePath, Numbers, class_indices, finish, new_figure, require_same_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def confusion_matrix(predictions: Numbers, labels: Numbers, classes: Sequence[str], path: FilePath = None) -> Figure:
    """Draw which class is taken for which, in % of the true class: each row adds up to 100.

    Colour follows the square root, so that a confusion of 1 % is seen. Up to 20 classes the cells from 0.05 % up carry
    their number; a class without a sample has a white row.

    Args:
        predictions: (N,) predicted class indices.
        labels: (N,) true class indices.
        classes: K names.
    Raises:
        ValueError: if the lengths differ, nothing is given, or an index is outside 0 to K - 1.
    """
    count = len(classes)
    predicted, true = class_indices(predictions, "predictions", count), class_indices(labels, "labels", count)
    require_same_length(predictions=predicted, labels=true)
    table = np.bincount(true * count + predicted, minlength=count * count).reshape(count, count)  # (K * K,) -> (K, K)
    totals = table.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * table, totals, out=np.full(table.shape, np.nan), where=totals > 0)
    side = max(3.6, 0.43 * count) if count <= 20 else 0.11 * count
    figure = new_figure(side + 1.9, side + 1.2)
    axes = figure.subplots()
    _draw_matrix(axes, share, classes)
    axes.set_title(f"Accuracy {100 * np.mean(predicted == true):.1f} % of {len(true)} images", fontsize=10, loc="left")
    return finish(figure, path)


def _draw_matrix(axes: Axes, share: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Colour the cells of (K, K) percentages, name rows and columns, and write the numbers if there is room."""
    from matplotlib.colors import PowerNorm

    count, few = len(classes), len(classes) <= 20
    picture = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=100), interpolation="nearest")
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    plain: dict[str, Any] = {"fontsize": 8.5 if few else 6.5, "parse_math": False}  # a class may be called $5
    axes.set_xticks(range(count), classes, **plain, **slant)
    axes.set_yticks(range(count), classes, **plain)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    for row, column in np.argwhere(share >= 0.05) if few else ():
        color = "black" if share[row, column] > 20 else "white"  # 20 % is the middle grey of cividis
        axes.text(column, row, _written(share[row, column]), color=color, fontsize=8.5, ha="center", va="center")
    bar = axes.figure.colorbar(picture, ax=axes, ticks=[0, 5, 20, 50, 100], shrink=0.6, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=8.5, length=0)
    bar.outline.set_visible(False)
    bar.set_label("% of the true class", fontsize=9)


def _written(percent: float) -> str:
    """Round to a whole number, or near 0 and 100, which stand for all or none, to one digit."""
    if 99 < percent < 100:
        return f"{min(percent, 99.9):.1f}"
    return f"{percent:.1f}" if percent < 1 else f"{percent:.0f}"
