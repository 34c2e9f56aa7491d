"""What reaches the class through all attention layers of a model, as one more view beside the attributions.

Attention says where a network looks, whatever the class; it has no sign and does not add up to a logit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution.scoring import bring_to, check_images, check_max_batch, check_model
from cifarkit.checks import check_integer, check_number
from cifarkit.inference import evaluation_mode

_ROUNDING = 0.02  # by which rows of weights in bf16 may miss a sum of 1


def rollout(weights: Tensor, *, residual: float = 0.5) -> Tensor:
    """Follow attention from the mean of the last layer's nodes back to those of the first.

    The heads of a layer are averaged, the residual connection is mixed in as an identity, the layers are multiplied.
    The class is taken to be read from the mean over the nodes, as VisionTransformer does, and HybridClassifier unless
    its head takes the maximum.

    Args:
        weights: (L, B, heads, N, N), the first layer first, as ``VisionTransformer.attention_maps(images)``; dimension
            -2 asks, dimension -1 is attended to, and each row sums to 1.
        residual: share of a node that comes by the residual connection, in [0, 1]; 0.5 as published.
    Returns:
        (B, N) float32, the share of each node; the shares of an image sum to 1.
    Raises:
        TypeError: if weights are no float tensor.
        ValueError: if a shape, a value or a row does not fit, or residual is out of range.
    Source: Abnar and Zuidema 2020, arXiv 2005.00928, section 3, attention rollout.
    """
    _check_weights(weights)
    residual = check_number("residual", residual, 0, 1)
    layers = weights.detach().double().mean(2)  # (L, B, heads, N, N) -> (L, B, N, N)
    shares = layers.new_full(layers.shape[1:3], 1 / layers.shape[-1])[:, None]  # (B, 1, N), a row: no N x N product
    for layer in layers.flip(0):
        shares = residual * shares + (1 - residual) * shares @ layer
    return shares[:, 0].float()


def attention_rollout(
    model: nn.Module,
    images: Tensor,
    *,
    residual: float = 0.5,
    grid: Sequence[int] | None = None,
    max_batch: int | None = None,
) -> Tensor:
    """Return the attention rollout of a model, spread over the pixels of each node's cell.

    Args:
        model: has ``attention_maps(images)`` -> (L, B, heads, N, N), as VisionTransformer, or (B, heads, N, N) of its
            one layer, as HybridClassifier.
        images: (B, C, H, W) float, as for ``attribute``.
        residual: of :func:`rollout`.
        grid: (rows, columns) of nodes, row by row over the image; None for the one whose cells are nearest to squares.
        max_batch: images at a time; None is 128.
    Returns:
        (B, H, W) float32, the share of the cell that a pixel belongs to, on the device of the images.
    Raises:
        TypeError: if the model is no module or has no attention_maps, or images are no float tensor.
        ValueError: if images, weights or grid do not fit.
    """
    check_model(model)
    images, size = check_images(images), check_max_batch(max_batch)
    attention = getattr(model, "attention_maps", None)
    if not callable(attention):
        raise TypeError(
            f"model is a {type(model).__name__}, which has no attention_maps(images); give a VisionTransformer or a "
            "HybridClassifier, or call rollout(weights) on the weights of its layers"
        )
    if getattr(getattr(model, "head", None), "pool", "mean") == "max":
        warnings.warn("the model's head takes the maximum over the nodes, but rollout follows their mean", stacklevel=2)
    with evaluation_mode(model), torch.no_grad():
        parts = (attention(bring_to(model, part)) for part in torch.split(images, size))
        shares = torch.cat([rollout(_as_layers(part), residual=residual) for part in parts])
    if len(shares) != len(images):
        raise ValueError(f"attention_maps gave weights for {len(shares)} images; it got {len(images)}")
    sides = (images.shape[2], images.shape[3])
    cells = shares.view(len(images), 1, *_choose_grid(shares.shape[1], sides, grid))  # (B, N) -> (B, 1, h, w)
    return F.interpolate(cells, sides, mode="nearest")[:, 0].to(images.device)


def _as_layers(weights: Any) -> Any:
    return weights[None] if isinstance(weights, Tensor) and weights.dim() == 4 else weights


def _check_weights(weights: Any) -> None:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = getattr(weights, "dtype", type(weights).__name__)
        raise TypeError(f"weights must be a float tensor, got {got}; give what attention_maps(images) returns")
    shape = tuple(weights.shape)
    if len(shape) != 5 or shape[-1] != shape[-2] or 0 in shape:
        advice = "; of one layer give weights[None]" if len(shape) == 4 else ""
        raise ValueError(f"weights has shape {shape}; it must be (layers, B, heads, N, N){advice}")
    if not weights.isfinite().all() or weights.min() < 0:
        seen = f"from {weights.min().item():.3g} to {weights.max().item():.3g}"
        raise ValueError(f"weights hold values {seen}; they must be finite and at least 0, as behind a softmax")
    sums = weights.detach().double().sum(-1)
    if ((sums - 1).abs() > _ROUNDING).any():
        seen = f"from {sums.min().item():.3g} to {sums.max().item():.3g}"
        raise ValueError(f"rows of weights sum to values {seen}; each must sum to 1 over dimension -1")


def _choose_grid(nodes: int, sides: tuple[int, int], grid: Sequence[int] | None) -> tuple[int, int]:
    if grid is None:
        rows = max(1, round(math.sqrt(nodes * sides[0] / sides[1])))
        if nodes % rows:
            raise ValueError(f"{nodes} nodes fill no grid of {rows} rows; give grid=(rows, columns)")
        return rows, nodes // rows
    if not hasattr(grid, "__len__") or len(grid) != 2:
        raise ValueError(f"grid={grid!r} must be two numbers, (rows, columns)")
    rows, columns = (check_integer(f"grid[{place}]", count, 1) for place, count in enumerate(grid))
    if rows * columns != nodes:
        raise ValueError(f"grid={(rows, columns)} has {rows * columns} cells but the model has {nodes} nodes")
    return rows, columns
