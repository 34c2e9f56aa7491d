"""What all pictures share: colours, bare figures, checked arguments, files written whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cifarkit.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FilePath: TypeAlias = str | Path | None
Numbers: TypeAlias = ArrayLike | Tensor
Range: TypeAlias = tuple[float, float] | None

DPI = 200
BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"  # Okabe and Ito 2008


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Make a figure of so many inches that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def strip_axes(axes: Axes) -> None:
    """Leave two thin axes and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, length=3)
    axes.tick_params(which="minor", length=0)


def finish(figure: Figure, path: FilePath) -> Figure:
    """Write the PNG, if one is wanted, under a temporary name first, so that no half picture is ever seen."""
    if path is None:
        return figure
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png, the only format written")
    with atomic_file(target) as file:
        figure.savefig(file, format="png", dpi=DPI)
    return figure


def class_indices(values: Numbers, name: str, count: int) -> NDArray[np.int64]:
    """Return class indices (N,) after checking their rank, kind and range."""
    indices = torch.as_tensor(values).detach().cpu()
    if indices.ndim != 1 or len(indices) == 0 or indices.is_floating_point() or indices.dtype == torch.bool:
        got = f"{indices.dtype} of shape {tuple(indices.shape)}"
        raise ValueError(f"{name} is {got}; it must be (N,) integer class indices (take logits.argmax(1) first)")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} runs from {low} to {high}, which is outside 0 to {count - 1} for {count} classes")
    return indices.numpy().astype(np.int64)


def require_same_length(**arguments: Any) -> None:
    """Raise ValueError unless the two arguments have the same length."""
    (first, one), (second, other) = arguments.items()
    if len(one) != len(other):
        raise ValueError(f"{first} has {len(one)} entries but {second} has {len(other)}; give one for each image")
