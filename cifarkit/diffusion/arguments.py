"""Checks of what schedules and samplers are given: steps, images and generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import check_integer


def check_steps(name: str, t: int | Tensor, images: Tensor) -> int | Tensor:
    """Return one step for all images, or int64 (B,), or raise."""
    if not isinstance(t, Tensor):
        if isinstance(t, Sequence):
            raise TypeError(f"{name} is a {type(t).__name__}; give an integer, or an int64 tensor (B,)")
        return check_integer(name, t)
    if t.dtype != torch.int64:
        raise TypeError(f"{name} must be int64; got {t.dtype}")
    if t.dim() and t.shape != (len(images),):
        raise ValueError(f"{name} must be ({len(images)},), a step for each image; got shape {tuple(t.shape)}")
    return t


def can_be_looked_at(t: int | Tensor) -> bool:
    """Tell whether steps are here; looking at those on a GPU would wait for it, so theirs are taken on trust."""
    return not isinstance(t, Tensor) or (t.device.type == "cpu" and t.numel() > 0)


def step_before(previous: int | Tensor | None, t: int | Tensor, images: Tensor) -> int | Tensor:
    """Return a step before t, or raise; None is the one right before."""
    if previous is None:
        return t - 1
    previous = check_steps("previous", previous, images)
    if can_be_looked_at(t) and can_be_looked_at(previous):
        before, after = torch.as_tensor(previous), torch.as_tensor(t)
        if (before < -1).any() or (before >= after).any():
            found = f"previous={before.tolist()}, t={after.tolist()}"
            raise ValueError(f"{found}: previous must be at least -1 and below t, the step that it comes before")
    elif isinstance(previous, int) and previous < -1:
        raise ValueError(f"previous={previous} must be at least -1, the image without noise")
    return previous


def check_same_shape(x: Tensor, other: Tensor, name: str) -> Tensor:
    """Return x if both are float tensors of one shape, or raise; x is called "images"."""
    for value, called in ((x, "images"), (other, name)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{called} is a {type(value).__name__}; give a float tensor (B, C, H, W)")
        if not value.is_floating_point():
            bounds = ", in [-1, 1]" if called == "images" else ""
            raise TypeError(f"{called} must be float{bounds}; got {value.dtype}")
    if other.shape != x.shape:
        raise ValueError(f"{name} must have the shape of the images, {tuple(x.shape)}; got {tuple(other.shape)}")
    return x


def check_generators(generator: Any, count: int) -> None:
    """Refuse what is neither one generator, nor one for each of so many samples, nor None.

    Raises:
        TypeError: if it is of another kind.
        ValueError: if there are not so many.
    """
    several = [*generator] if isinstance(generator, Sequence) else [] if generator is None else [generator]
    if isinstance(generator, str) or not all(isinstance(item, torch.Generator) for item in several):
        raise TypeError(
            f"generator={repr(generator)[:100]} is neither a torch.Generator nor a list of one for each sample"
        )
    if isinstance(generator, Sequence) and (len(several) != count or not several):
        raise ValueError(f"generator holds {len(several)} for {count} samples; give one, or one for each sample")
