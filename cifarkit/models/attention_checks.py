"""Checks of what attention is given: scores, nodes, masks and settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cifarkit.checks import check_callable, check_integer
from cifarkit.models.dtypes import check_dtype

Activation = Callable[[Tensor], Tensor]


def check_method(method: str, activation: Activation | None) -> None:
    """Refuse an unknown method, and one that cannot have this activation."""
    if method not in ("auto", "dense", "sorted"):
        raise ValueError(f"method={method!r} is unknown; give 'auto', 'dense' or 'sorted'")
    if activation is not None:
        check_callable("activation", activation, "give an elementwise function, such as torch.tanh")
        if method == "sorted":
            raise ValueError("method='sorted' needs a LeakyReLU; give negative_slope instead of activation, or 'dense'")


def check_heads(dim: int, heads: int) -> tuple[int, int]:
    """Return dim and heads as integers, or raise if the heads do not divide it."""
    dim, heads = check_integer("dim", dim, 1), check_integer("heads", heads, 1)
    if dim % heads:
        raise ValueError(f"heads={heads} must divide dim={dim}")
    return dim, heads


def check_nodes(nodes: Tensor, mask: Tensor | None, dim: int, project: nn.Module) -> None:
    """Refuse nodes that are not (B, N, dim) of the projection's dtype, or a mask that does not fit them."""
    check_float("nodes", nodes, f" (B, N, {dim})")
    if nodes.dim() != 3 or nodes.shape[2] != dim:
        raise ValueError(f"nodes must be (B, N, {dim}); got shape {tuple(nodes.shape)}")
    check_dtype("nodes", nodes, project.weight)
    check_mask(mask, "nodes", nodes, 1)


def check_shapes(mask: Tensor | None, query: Tensor, key: Tensor, *value: Tensor) -> None:
    """Refuse query, key and value whose shapes do not fit each other, or a mask that does not fit the keys."""
    for name, tensor in zip(("query", "key", "value"), (query, key, *value), strict=False):
        check_float(name, tensor)
    fits = query.dim() == key.dim() == 3 and query.shape[:2] == key.shape[:2]
    if not fits or any(item.dim() != 4 or item.shape[:3] != key.shape for item in value):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, *value))
        raise ValueError(f"query must be (B, H, M), key (B, H, N) and value (B, H, N, D); got {shapes}")
    check_mask(mask, "key", key, 2)


def check_float(name: str, value: Tensor, shape: str = "") -> None:
    """Refuse what is no tensor of floating point; shape says in the message what would do."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; give a tensor{shape} of floating point")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of floating point; got {value.dtype}")


def check_mask(mask: Tensor | None, name: str, tensor: Tensor, place: int) -> None:
    """Refuse a mask that is not bool of the batch and of one axis of the tensor, and an axis without a node."""
    wanted = (tensor.shape[0], tensor.shape[place])
    if not wanted[1]:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: a softmax needs at least one node")
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; give a bool tensor {wanted}, true for nodes that take part")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != wanted):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"mask must be bool {wanted}, true for nodes that take part; got {got}")
