"""Ranks of pixels, ties included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value in its row, from 1, equal ones sharing their mean: (B, N) -> float64 (B, N)."""
    ascending = values.contiguous().sort(dim=1).values
    below = torch.searchsorted(ascending, values.contiguous(), right=False)
    not_above = torch.searchsorted(ascending, values.contiguous(), right=True)
    return (below + not_above + 1).double() / 2


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps, float64 (B,), equal values sharing their mean rank.

    Two constant maps are alike and give 1; a constant and another one have nothing in common and give 0.

    Args:
        a, b: (B, ...) of one shape.
    Raises:
        TypeError: if one is no tensor.
        ValueError: if the shapes differ, there is nothing to rank, or a value is NaN.
    """
    rows = [_rows(name, values) for name, values in (("a", a), ("b", b))]
    if a.shape != b.shape:
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}; give maps of one shape")
    centred = [ranks - ranks.mean(1, keepdim=True) for ranks in map(average_ranks, rows)]
    norms = [ranks.square().sum(1).sqrt() for ranks in centred]
    alike = ((norms[0] == 0) & (norms[1] == 0)).double()
    product, scale = (centred[0] * centred[1]).sum(1), norms[0] * norms[1]
    return torch.where(scale > 0, product / scale.clamp_min(1e-300), alike)


def _rows(name: str, values: Any) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is a {type(values).__name__}; give a tensor of maps (B, ...)")
    if values.dim() < 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; give maps (B, ...), such as (B, H, W)")
    if values.isnan().any():
        raise ValueError(f"{name} holds NaN, which has no rank")
    return values.detach().flatten(1).cpu()
