"""What a sampler and a filter give, checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cifarkit.checks import name_kinds

Keep: TypeAlias = Callable[[Tensor, Tensor], "Tensor | tuple[Tensor, Mapping[str, Tensor]]"]

_OVERSHOOT, _FEW = 1.1, 0.1  # samplers may step over [-1, 1] a little in many pixels or far in a few


def from_pixels(pixels: Tensor) -> Tensor:
    """Map uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Any, count: int) -> Tensor:
    """Return what sample gave as uint8 (B, C, H, W) on the CPU, or raise."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"sample gives {got}; it must return a float tensor of images in [-1, 1]")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] != count or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"sample gives shape {shape} for {count} labels; it must return ({count}, 1 or 3, H, W)")
    images = images.float().cpu()
    if not images.isfinite().all():
        raise ValueError("sample gives values that are not finite; look at the weights, the precision and the steps")
    if (images.abs() > _OVERSHOOT).float().mean() > _FEW:
        low, high = (value.item() for value in images.aminmax())
        raise ValueError(f"sample gives values from {low:.3g} to {high:.3g}; it must return images in [-1, 1]")
    if images.min() >= 0 and images.max() > 0:  # said without figures, so that Python shows it once
        warnings.warn(
            "sample gives a batch without a negative value, as if in [0, 1]; it must return images in [-1, 1], such as "
            "images * 2 - 1",
            stacklevel=2,
        )
    pixels: Tensor = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels


def judge(keep: Keep | None, pixels: Tensor, labels: Tensor) -> tuple[list[bool], dict[str, list[float]]]:
    """Return which images pass, and each one's scores by name, rounded as they are written."""
    if keep is None:
        return [True] * len(labels), {}
    passed, scores = read_verdict(keep(from_pixels(pixels), labels), len(labels))
    return passed.tolist(), {name: [float(f"{x:.6g}") for x in each.tolist()] for name, each in scores.items()}


def read_verdict(verdict: Any, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a filter gives for so many images as bool (B,) and scores (B,) by name, or raise."""
    passed, scores = verdict, dict[str, Any]()
    if isinstance(verdict, tuple) and len(verdict) == 2 and isinstance(verdict[1], Mapping):
        passed, scores = verdict
    kept, table = _as_tensor(passed), dict[str, Tensor]()
    if kept is None or kept.dtype != torch.bool or kept.shape != (count,):
        got = name_kinds(verdict) if kept is None else f"{kept.dtype} of shape {tuple(kept.shape)}"
        raise TypeError(
            f"keep gives {got} for {count} images; it must return bool ({count},), such as scores > 0.5, or that and "
            "{name: scores}"
        )
    for name, values in scores.items():
        each = _as_tensor(values)
        if each is None or each.shape != (count,) or not each.isfinite().all():
            raise ValueError(f"keep gives scores {name!r} that are not ({count},) finite numbers, one an image")
        table[name] = each
    return kept, table


def _as_tensor(values: Any) -> Tensor | None:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):  # text, None or rows of several lengths
        return None


def describe_keep(keep: Keep | None) -> str | None:
    """Name a filter without anything that changes from run to run, such as an address."""
    if keep is None:
        return None
    return str(getattr(keep, "description", None) or getattr(keep, "__qualname__", type(keep).__name__))
