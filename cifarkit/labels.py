"""Labels as class-conditional networks take them."""

from __future__ import annotations

import torch
from torch import Tensor


def check_labels(labels: Tensor | None, count: int, num_classes: int | None, *, null: bool = False) -> None:
    """Refuse labels that a network of so many classes cannot look up.

    Args:
        labels: (B,) int64, or None for no labels.
        count: B, the images or latents they belong to.
        num_classes: K; None for a network that takes no labels.
        null: whether labels may be left out, or be K for "no label".
    Raises:
        TypeError: if labels are not int64, or missing.
        ValueError: if they are given to a network without classes, of another shape or out of range.
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("labels are given, but the network has num_classes=None; build it with num_classes")
        return
    if labels is None:
        if null:
            return
        raise TypeError(f"labels=None, but the network has num_classes={num_classes}; give int64 labels ({count},)")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise TypeError(f"labels must be an int64 tensor ({count},); got {got}")
    if labels.shape != (count,):
        raise ValueError(f"labels must be ({count},), one for each image; got shape {tuple(labels.shape)}")
    # On a GPU a look at the values would wait for it in every step, and the compiler cannot trace one.
    if count and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes + null:
            wanted = f"0 to {num_classes - 1}" + (f", or {num_classes} for none" if null else "")
            raise ValueError(f"labels run from {low} to {high}; for num_classes={num_classes} they must be {wanted}")
