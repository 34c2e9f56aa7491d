"""Run transforms in a row; neighbouring crops, flips and rotations are gathered at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import check_transform, has_parameter
from cifarkit.seeding import Draws
from cifarkit.transforms.base import Transform, draws_for, fill_like, to_float
from cifarkit.transforms.geometry import (
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    SeparableTransform,
    affine_nearest,
    pick_pixels,
    pixel_sources,
    rotation_matrices,
)


class Compose(Transform):
    """Apply transforms one after another, the draws of an image continuing from each to the next.

    Any callable will do: one with a parameter named draws is given them, another (a torchvision v2 module, a
    lambda) is called with the images alone, as floats unless it says ``accepts_uint8``. A torchvision v2 module
    draws once for the whole batch.

    A run of flips and at most one crop is one gather of pixels, and so it is with a nearest RandomRotation behind
    it; the result is the same bit for bit. A subclass that changes more of them than what they draw runs by itself.

    Args:
        transforms: a list of them, in order; empty passes images through.
    Raises:
        TypeError: if transforms is no sequence of callables, or holds Mixup or CutMix, which need labels.
        ValueError: if a transform that works in [0, 1] comes after Normalize.
    Attributes:
        keyed: every transform takes draws, or says by an attribute ``keyed`` of its own that it needs no global random
            numbers; only then may the Loader run them in a thread beside the model.
        fixed: every transform says by its attribute ``fixed`` that it draws nothing.
        stateless: every transform says by its attribute ``stateless`` that it keeps nothing from call to call.
    """

    accepts_uint8 = True

    def __init__(self, transforms: Sequence[Callable[..., Tensor]]) -> None:
        if not isinstance(transforms, Sequence):
            raise TypeError(
                f"transforms is a {type(transforms).__name__}; give a list, as in Compose([RandomCrop(32)])"
            )
        self.transforms = list(transforms)
        flat = _flatten(self.transforms)
        _check_order(flat)
        self.needs_unit_range = any(getattr(transform, "needs_unit_range", False) for transform in flat)
        self.leaves_unit_range = any(getattr(transform, "leaves_unit_range", False) for transform in flat)
        self.keyed = all(bool(getattr(step, "keyed", has_parameter(step, "draws"))) for step in flat)
        self.stateless = all(bool(getattr(step, "stateless", False)) for step in flat)
        self.fixed = all(bool(getattr(step, "fixed", False)) for step in flat)
        steps = _fuse(flat)
        self._steps = [(step, has_parameter(step, "draws"), getattr(step, "accepts_uint8", False)) for step in steps]

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws_for(images, draws)
        for step, takes_draws, accepts_uint8 in self._steps:
            images = images if accepts_uint8 else to_float(images)
            images = step(images, draws=draws) if takes_draws else step(images)
        return images

    def __repr__(self) -> str:
        return "Compose([" + ", ".join(repr(transform) for transform in self.transforms) + "])"


class Resampling(Transform):
    """Several moves of pixels as one: the numbers of the pixels are moved, then every pixel is gathered once.

    Moving numbers costs as much as moving one channel, and whole rows and columns of them next to nothing.

    Args:
        moves: crops and flips, at most one crop.
        rotation: a nearest rotation that follows them, or None.
    """

    accepts_uint8 = True

    def __init__(self, moves: Sequence[SeparableTransform], rotation: RandomRotation | None) -> None:
        self.moves, self.rotation = list(moves), rotation

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws_for(images, draws)
        rows, columns, outside = pixel_sources(images)
        fills = None  # (C, 1 or 2), the values of the pixels number outside and outside + 1
        for move in self.moves:
            parameters = move.parameters(draws, rows.shape[1], columns.shape[1]).to(images.device)
            rows, columns = move.move(rows, columns, parameters, outside)
            if isinstance(move, RandomCrop) and move.mode == "constant":
                fills = fill_like(move.fill, images)[:, None]
        if self.rotation is not None:  # int32: half the bytes to gather from
            rows, columns = rows.int(), columns.int()
        numbers = rows[:, :, None] + columns[:, None, :]  # (B, H', W')
        if fills is not None:
            numbers.clamp_(max=outside)
        if self.rotation is not None:
            angles = self.rotation.parameters(draws, *numbers.shape[1:]).to(images.device)
            corner = fill_like(self.rotation.fill, images)[:, None]
            fills = torch.cat([corner if fills is None else fills, corner], dim=1)
            number_of_corner = numbers.new_tensor([outside + 1])
            numbers = affine_nearest(numbers[:, None], rotation_matrices(angles), number_of_corner)[:, 0].long()
        return pick_pixels(images, numbers, fills)


def _flatten(transforms: Sequence[Callable[..., Tensor]]) -> list[Callable[..., Tensor]]:
    """List the transforms with those of nested Composes in their place."""
    flat: list[Callable[..., Tensor]] = []
    for position, transform in enumerate(transforms):
        check_transform(f"transforms[{position}]", transform)
        if isinstance(transform, Compose) and type(transform).__call__ is Compose.__call__:
            flat += _flatten(transform.transforms)
        else:
            flat.append(transform)
    return flat


def _check_order(transforms: Sequence[Callable[..., Tensor]]) -> None:
    """Refuse a transform that needs [0, 1] behind one that leaves it."""
    leaver: Any = None
    for transform in transforms:
        if leaver is not None and getattr(transform, "needs_unit_range", False):
            name, other = type(transform).__name__, type(leaver).__name__
            raise ValueError(
                f"{name} comes after {other}, but it works on values in [0, 1]; put {name} before {other} in Compose"
            )
        leaver = transform if getattr(transform, "leaves_unit_range", False) else leaver


def _fuse(transforms: Sequence[Callable[..., Tensor]]) -> list[Callable[..., Tensor]]:
    """Replace every run of two and more moves by one Resampling."""
    steps: list[Callable[..., Tensor]] = []
    run: list[SeparableTransform] = []

    def close(rotation: RandomRotation | None = None) -> None:
        members: list[Callable[..., Tensor]] = [*run, *([] if rotation is None else [rotation])]
        steps.extend(members if len(members) < 2 else [Resampling(run, rotation)])
        run.clear()

    for transform in transforms:
        if isinstance(transform, SeparableTransform) and _moves_as(transform, RandomCrop, RandomHorizontalFlip):
            if isinstance(transform, RandomCrop) and any(isinstance(move, RandomCrop) for move in run):
                close()  # its fill may differ, and the numbers tell one from another no more
            run.append(transform)
        elif (
            isinstance(transform, RandomRotation)
            and transform.interpolation == "nearest"
            and _moves_as(transform, RandomRotation)
        ):
            close(transform)
        else:
            close()
            steps.append(transform)
    close()
    return steps


def _moves_as(transform: object, *kinds: type) -> bool:
    """Tell whether what a Resampling leaves out is that of one of these classes; parameters may be a subclass's own."""
    return any(
        all(getattr(type(transform), name, None) is getattr(kind, name, None) for name in ("__call__", "apply", "move"))
        for kind in kinds
    )
