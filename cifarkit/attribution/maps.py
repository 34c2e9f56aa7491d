"""Attributions turned into what can be looked at, by rules that are the same for every map.

- The channels of a pixel are added up, with their signs.
- Values are divided by the scale, in double precision; what lies beyond it is cut off.
- A map that is zero everywhere stays zero everywhere, whatever the scale.
- Images are shown as they are if they lie in [0, 1] or are uint8. With mean and std they are first un-normalised. Other
  images, negative ones for instance, are stretched, each from its own least value (black) to its largest (white).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import check_number, check_numbers

_POSITIVE, _NEGATIVE = (0.835, 0.369, 0.0), (0.0, 0.447, 0.698)  # vermilion and blue, Okabe and Ito 2008
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_OVERSHOOT = 0.01  # resampling may leave [0, 1] by this much


def signed_heatmap(attributions: Tensor, *, scale: float | str = "image", outliers: float = 0.01) -> Tensor:
    """Add up the channels and bring the values into [-1, 1], keeping their signs; see the rules above.

    Args:
        attributions: (B, C, H, W), or (B, H, W) if the channels are added up already.
        scale: what becomes 1: "image" (of each map its largest value without its outliers), "batch" (the largest of
            these, so that maps can be compared), or a number above 0.
        outliers: share of the pixels of a map that may lie beyond its scale, in [0, 1).
    Returns:
        (B, H, W) float32, on the device of the attributions.
    Raises:
        TypeError: if attributions are no float tensor, or scale is neither a word nor a number.
        ValueError: if a shape or a value does not fit.
    """
    summed = _sum_channels(attributions)
    if isinstance(scale, str) and scale not in ("image", "batch"):
        raise ValueError(f"scale={scale!r} is unknown; use 'image', 'batch' or a number above 0")
    if isinstance(scale, str):
        outliers = check_number("outliers", outliers, 0, 1, below=True)
        largest = _largest(summed, outliers)  # (B,)
        largest = largest.amax().expand_as(largest) if scale == "batch" else largest
    else:
        largest = summed.new_full((len(summed),), check_number("scale", scale, 0, above=True))
    divisor = torch.where(largest > 0, largest, torch.ones_like(largest))
    return (summed / divisor[:, None, None]).clamp(-1, 1).float()


def heatmap(
    attributions: Tensor, *, sign: str = "absolute", scale: float | str = "image", outliers: float = 0.01
) -> Tensor:
    """Turn attributions into brightness, (B, H, W) in [0, 1], where 1 matters most.

    Args:
        attributions, scale, outliers: of :func:`signed_heatmap`.
        sign: "absolute" shows what matters in either direction, "positive" what speaks for the class, "negative" what
            speaks against it.
    Raises:
        TypeError, ValueError: as :func:`signed_heatmap`; also if sign is unknown.
    """
    signed = signed_heatmap(attributions, scale=scale, outliers=outliers)
    if sign == "absolute":
        return signed.abs()
    if sign not in ("positive", "negative"):
        raise ValueError(f"sign={sign!r} is unknown; use 'absolute', 'positive' or 'negative'")
    return (signed if sign == "positive" else -signed).clamp(min=0)


def overlay(
    images: Tensor,
    attributions: Tensor,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    opacity: float = 0.8,
    scale: float | str = "image",
    outliers: float = 0.01,
) -> Tensor:
    """Lay attributions over grey images: red speaks for the class, blue against it; (B, 3, H, W) float32 in [0, 1].

    Of maps without sign, as of saliency and smooth_grad_squared, red says how much only.

    Args:
        images: (B, 1 or 3, H, W), uint8 or float, by the rules above.
        attributions, scale, outliers: of :func:`signed_heatmap`.
        mean, std: of the normalisation to undo, as given to ``transforms.Normalize``.
        opacity: how much the strongest colour hides of the image, in [0, 1].
    Raises:
        TypeError, ValueError: if an argument does not fit.
    """
    opacity = check_number("opacity", opacity, 0, 1)
    shown = visible_images(images, mean=mean, std=std)
    signed = signed_heatmap(attributions, scale=scale, outliers=outliers).to(shown.device)
    if signed.shape != shown[:, 0].shape:
        got = f"attributions are {tuple(attributions.shape)} and images {tuple(images.shape)}"
        raise ValueError(f"{got}; give one map (C, H, W) for each image, of its height and width")
    grey = (shown * shown.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)  # (B, 1, H, W)
    red, blue = (shown.new_tensor(colour)[:, None, None] for colour in (_POSITIVE, _NEGATIVE))
    strength = opacity * signed.abs()[:, None]
    return (1 - strength) * grey + strength * torch.where(signed[:, None] > 0, red, blue)


def visible_images(
    images: Tensor, *, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
) -> Tensor:
    """Return images as they are shown, (B, 3, H, W) float32 in [0, 1]; see the rules above.

    Raises:
        TypeError: if images are no uint8 or float tensor.
        ValueError: if the shape is wrong, a value is not finite, std is not above 0, or mean and std do not come
            together or do not fit.
    """
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a uint8 or float tensor; got {got}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images must be (B, 1 or 3, H, W), at least one; got shape {tuple(images.shape)}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std must both be given, or neither")
    values = images.detach().float()
    if images.dtype == torch.uint8:
        if mean is not None:
            raise ValueError("images are uint8, so they are not normalised; leave out mean and std")
        values = values / 255
    elif not values.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
    if mean is not None:
        shift, factor = _per_channel("mean", mean, values), _per_channel("std", std, values, 0)
        values = values * factor + shift
    lowest, highest = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    outside = (lowest < -_OVERSHOOT) | (highest > 1 + _OVERSHOOT)
    if mean is None:
        stretched = (values - lowest) / (highest - lowest).clamp(min=1e-12)
        values = torch.where(outside, stretched, values)
    return values.clamp(0, 1).expand(-1, 3, -1, -1)


def _per_channel(name: str, numbers: Any, images: Tensor, low: float = -math.inf) -> Tensor:
    checked = check_numbers(name, numbers, low, above=True)
    if len(checked) not in (1, images.shape[1]):
        raise ValueError(f"{name} has {len(checked)} values and images has {images.shape[1]} channels; give one each")
    return images.new_tensor(checked)[:, None, None]


def _sum_channels(attributions: Any) -> Tensor:
    """Return float64 (B, H, W)."""
    if not isinstance(attributions, Tensor) or not attributions.is_floating_point():
        got = attributions.dtype if isinstance(attributions, Tensor) else type(attributions).__name__
        raise TypeError(f"attributions must be a float tensor, as attribute(...) returns it; got {got}")
    if attributions.dim() not in (3, 4) or not attributions.numel():
        raise ValueError(f"attributions must be (B, C, H, W) or (B, H, W); got shape {tuple(attributions.shape)}")
    if not attributions.isfinite().all():
        raise ValueError("attributions hold NaN or infinite values; no map can be made of them")
    values = attributions.detach().double()
    return values if values.dim() == 3 else values.sum(1)


def _largest(summed: Tensor, outliers: float) -> Tensor:
    """Return the largest size of each map without its outliers; with them where nothing else is left: (B,)."""
    sizes = summed.abs().flatten(1)
    kept = max(1, round((1 - outliers) * sizes.shape[1]))
    most = sizes.kthvalue(kept, dim=1).values
    return torch.where(most > 0, most, sizes.amax(1))
