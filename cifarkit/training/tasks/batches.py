"""What tasks on images expect of a batch."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from cifarkit.checks import name_kinds


def check_image_batch(batch: Any, remedy: str) -> None:
    """Refuse a batch that is no tuple or list whose first item are images and whose others are tensors, too.

    Args:
        batch: (images (B, C, H, W), ...), B at least 1, of floating point and finite.
        remedy: what to do about images that are not float in [-1, 1].
    Raises:
        TypeError: if the batch or an item of it is of another kind.
        ValueError: if images are of another shape, or not finite.
    """
    if not isinstance(batch, (tuple, list)) or not batch or not all(isinstance(item, Tensor) for item in batch):
        raise TypeError(f"a batch must be (images, labels), a tuple of tensors; got {name_kinds(batch)}")
    images = batch[0]
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"images must be (B, C, H, W), B at least 1; got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be float in [-1, 1]; got {images.dtype}: {remedy}")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values in the first batch; look at the data and transforms")


def check_signed(images: Tensor, remedy: str) -> None:
    """Refuse images that are not in [-1, 1], and warn of those that seem to be in [0, 1].

    Raises:
        ValueError: if a value is out of range.
    """
    low, high = images.min().item(), images.max().item()
    found = f"images run from {low:.3g} to {high:.3g} in the first batch"
    if low < -1.01 or high > 1.01:
        raise ValueError(f"{found}, not in [-1, 1]: {remedy}")
    if low >= 0 and high > 0:
        warnings.warn(f"{found}, as if in [0, 1]; diffusion wants [-1, 1]: {remedy}", stacklevel=5)
