"""Distances between two sets of vectors, a block at a time, so that memory does not grow with their product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK_VALUES = 2**24  # values of a block of distances: 128 MB in float64


def check_features(name: str, features: Any, least: int = 1) -> Tensor:
    """Return features (N, D) as float64 on the CPU.

    Raises:
        TypeError: if they are neither a tensor nor an array of floating point.
        ValueError: if they have another shape, are not finite, or there are fewer than ``least``.
    """
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(features)
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = getattr(features, "dtype", type(features).__name__)
        raise TypeError(f"{name} must be a float tensor (N, D), got {got}; see cifarkit.generation.features")
    if features.dim() != 2 or len(features) < least or not features.shape[1]:
        raise ValueError(f"{name} has shape {tuple(features.shape)}; it must be (N, D), N at least {least}")
    if not features.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinite values; look at the network and at the images it was given")
    return features.detach().cpu().double()


def check_pair(
    real: Any, fake: Any, least: int = 1, names: tuple[str, str] = ("real", "fake")
) -> tuple[Tensor, Tensor]:
    """Return both as :func:`check_features` does; names are those of the arguments.

    Raises:
        ValueError: if they differ in D.
    """
    one, other = (check_features(name, part, least) for name, part in zip(names, (real, fake), strict=True))
    if one.shape[1] != other.shape[1]:
        first, second = names
        raise ValueError(f"{first} has D={one.shape[1]} and {second} D={other.shape[1]}; take both from one network")
    return one, other


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut so many rows into blocks of which each has a bounded number of values."""
    step = max(_BLOCK_VALUES // max(columns, 1), 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the squared Euclidean distances (N, M) of vectors (N, D) and (M, D), never below 0."""
    table = torch.addmm(_squares(columns), rows, columns.T, alpha=-2)  # quicker than a difference of each pair
    return table.add_(_squares(rows)[:, None]).clamp_(min=0)


def _squares(points: Tensor) -> Tensor:
    """Return the squared lengths (N,) of vectors (N, D), without a square of each number in memory."""
    return torch.einsum("nd,nd->n", points, points)


def neighbour_radii(points: Tensor, k: int) -> Tensor:
    """Return the squared distance (N,) of each point (N, D) to its k-th nearest other point."""
    # The point itself is nearest. It is not searched for by its distance 0, which rounding may spoil.
    radii = []
    for part in blocks(len(points), len(points)):
        table = squared_distances(points[part], points)
        rows = torch.arange(len(table))
        table[rows, rows + part.start] = torch.inf
        radii.append(table.topk(k, largest=False).values[:, -1])  # nine times as fast as kthvalue for few
    return torch.cat(radii)
