"""Whether what a network is given and its weights can be multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from cifarkit.models.sorted_attention import autocast_is_on


def check_dtype(name: str, value: Tensor, weight: object) -> None:
    """Refuse an input that is not of floating point, or of another dtype than a layer's weight, outside autocast.

    Raises:
        TypeError: if it is so.
    """
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of floating point; got {value.dtype}")
    dtype = getattr(weight, "dtype", value.dtype)  # a quantized layer has a function there
    cast = autocast_is_on(value) and torch.float64 not in (value.dtype, dtype)  # which autocast leaves as it is
    if value.dtype != dtype and not cast:
        raise TypeError(f"{name} are {value.dtype} and the layer's weights {dtype}; convert one, or use torch.autocast")
