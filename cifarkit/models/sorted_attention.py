"""Graph attention over all pairs of nodes without the pairs: exact, in O(n log n) time and O(n d) memory.

A score phi(q_i + k_j) with phi = LeakyReLU, slope a on the left, is linear on either side of its kink. Once the keys
are sorted, the keys on the right of query i's kink (q_i + k_j > 0) are a suffix, and those on the left a prefix. With
K the largest key, and after dividing by the row's largest weight,

    weight_ij is proportional to  exp(k_j - K)          on the right,
                                  f_i exp(a (k_j - K))  on the left, f_i = exp(-(1 - a) max(q_i + K, 0)),

so that one running sum from either end, read where the query's kink falls, gives numerator and denominator:

    O_i = (AV(p_i) + f_i BV(p_i)) / (A(p_i) + f_i B(p_i)),  p_i = #{j: k_j <= -q_i}.

No factor exceeds 1, and the denominator is at least 1, for the largest key always adds 1: nothing overflows, and no sum
is a difference of sums. The derivation of the backward pass is in docs/attention.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_NUMBERS = 2**22  # of a (rows, N, D) temporary: 16 MiB in fp32, so that memory does not grow with heads
# From where sorting was faster by half as much again, both forward alone and with backward; benchmarks/attention.py
# looks at the corners. Its fixed cost asks for many pairs. Its passes over vectors of D numbers wait for memory, where
# the matrix product of the dense way does not, and so ask for the more nodes the longer the vectors.
_FEWEST_PAIRS, _FEWEST_NODES, _NODES_PER_NUMBER = 2**21, 320, 1.5


class _Keys(NamedTuple):
    """What the keys (R, N) alone determine; masked ones weigh nothing."""

    largest: Tensor  # (R, 1)
    high: Tensor  # (R, N), exp(k - K)
    low: Tensor  # (R, N), exp(a (k - K))


def fewest_nodes(dim: int) -> int:
    """Return how many queries, and as many nodes with vectors of dim numbers, it takes for sorting to be faster."""
    return _FEWEST_NODES + int(_NODES_PER_NUMBER * dim)


def is_faster_sorted(query: Tensor, value: Tensor) -> bool:
    """Tell whether sorting is the faster way for query (B, H, M) and value (B, H, N, D)."""
    batch, heads, nodes, dim = value.shape
    queries = query.shape[2]
    return min(queries, nodes) >= fewest_nodes(dim) and batch * heads * queries * nodes >= _FEWEST_PAIRS


def attend_sorted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slope: float) -> Tensor:
    """Attend in at least fp32, batch and heads flattened into rows, which are independent of each other.

    Shapes:
        query (B, H, M), key (B, H, N), value (B, H, N, D), mask (B, N) -> (B, H, M, D), in the dtype of value.
    """
    (batch, heads, nodes, dim), queries = value.shape, query.shape[2]
    if not batch * heads * queries * dim:  # there is nothing to compute; made so that it has gradients, all of them 0
        return ((query[..., None] + key[:, :, :1, None]) * value[:, :, :1]).to(value.dtype)
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    rows_query, rows_key = query.to(dtype).reshape(-1, queries), key.to(dtype).reshape(-1, nodes)
    rows_mask = None if mask is None else mask.repeat_interleave(heads, 0)  # (B, N) -> (B * H, N)
    values = value.to(dtype).reshape(-1, nodes, dim)
    outputs = sorted_attention(rows_query, rows_key, values, rows_mask, slope)
    return outputs.view(batch, heads, queries, dim).to(value.dtype)


def sorted_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slope: float) -> Tensor:
    """Attend by scores LeakyReLU(q_i + k_j), softmax over j.

    Args:
        query, key, value: (R, M), (R, N) and (R, N, D), none of them empty, in one floating dtype, fp32 or fp64.
        mask: (R, N) bool, true where a key takes part; None for all. A row without any gives zeros.
        slope: of the LeakyReLU left of 0, in [0, 1].
    Returns:
        (R, M, D). Differentiable any number of times; the graph of a second derivative, O(R (M + N) D), is made for
        all rows at once.
    """
    outputs: Tensor = _SortedAttention.apply(query, key, value, mask, slope)
    return outputs


class _SortedAttention(torch.autograd.Function):
    """The formulas by hand, which keep five times less than autograd would, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slope: float) -> Tensor:
        centre = _centre(key, value, mask)
        parts = [_attend(*rows, slope=slope) for rows in _chunks(query, key, value, centre, mask)]
        outputs, *results = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.slope = slope
        ctx.save_for_backward(query, key, value, mask, centre, outputs, *results)
        return outputs + centre if mask is None else outputs + centre * mask.any(1)[:, None, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, centre, *results = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: let autograd differentiate the formulas themselves
            outputs, *_ = _attend(query, key, value, centre, mask, slope=ctx.slope)
            needed = ctx.needs_input_grad[:3]
            wanted = [tensor for tensor, asks in zip((query, key, value), needed, strict=True) if asks]
            found = iter(torch.autograd.grad(outputs, wanted, gradient, create_graph=True))
            return *(next(found) if asks else None for asks in needed), None, None
        chunks = _chunks(query, key, value, centre, mask, gradient, *results)
        parts = [_differentiate(*rows, slope=ctx.slope) for rows in chunks]
        grad_query, grad_key, grad_value = (torch.cat(part) for part in zip(*parts, strict=True))
        return grad_query, grad_key, grad_value, None, None


def _centre(key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean value (R, 1, D) by the weights exp(k_j), the origin that values are measured from.

    A softmax's gradient is a difference of sums, which lose digits where one key has nearly all the weight; measured
    from where the weight is, both sums are small.
    """
    weights = (key if mask is None else key.masked_fill(~mask, torch.finfo(key.dtype).min)).softmax(1)
    with no_autocast(value):
        return weights[:, None] @ value


def _attend(
    query: Tensor, key: Tensor, value: Tensor, centre: Tensor, mask: Tensor | None, *, slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, measured from the centre, outputs (R, M, D) and their part from the right; A / Z and Z (R, M)."""
    keys, values = _weigh_keys(key, mask, slope), value - centre
    order = key.argsort(dim=1)
    cuts = _count_up_to(key.gather(1, order), -query)  # (R, M), keys left of each query's kink
    high_sums, high_values = _weighted_sums(keys.high, values, order.flip(1), key.shape[1] - cuts)
    low_sums, low_values = _weighted_sums(keys.low, values, order, cuts)
    left = _left_factor(query, keys.largest, slope)
    sums = high_sums + left * low_sums
    sums = torch.where(sums > 0, sums, 1.0)  # 0 only where every key is masked
    right_part = high_values / sums[:, :, None]
    return right_part + low_values * (left / sums)[:, :, None], right_part, high_sums / sums, sums


def _differentiate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    gradient: Tensor,
    outputs: Tensor,
    high_outputs: Tensor,
    high_shares: Tensor,
    sums: Tensor,
    *,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value: sums over the queries, sorted in their turn."""
    keys = _weigh_keys(key, mask, slope)
    products = (gradient * outputs).sum(2)  # (R, M), what every row of the softmax's gradient subtracts
    grad_query = (1 - slope) * ((gradient * high_outputs).sum(2) - products * high_shares)
    order = query.argsort(dim=1)
    cuts = _count_up_to(query.gather(1, order), -key)  # (R, N), queries left of each key's kink
    left = _left_factor(query, keys.largest, slope).gather(1, order)[:, :, None]
    scaled = torch.cat([gradient, products[:, :, None]], dim=2) / sums[:, :, None]  # (R, M, D + 1)
    from_right = _sums_before(gather_rows(scaled, order.flip(1)), query.shape[1] - cuts) * keys.high[:, :, None]
    from_left = _sums_before(gather_rows(scaled, order) * left, cuts) * keys.low[:, :, None]  # (R, N, D + 1)
    inner = ((value - centre) * (from_right[:, :, :-1] + slope * from_left[:, :, :-1])).sum(2)
    grad_key = inner - from_right[:, :, -1] - slope * from_left[:, :, -1]
    return grad_query, grad_key, (from_right + from_left)[:, :, :-1]


def autocast_is_on(tensor: Tensor) -> bool:
    """Tell whether autocast rules where the tensor lies; on the meta device there is none."""
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off where the tensor lies."""
    return nullcontext() if tensor.device.type == "meta" else torch.autocast(tensor.device.type, enabled=False)


def _count_up_to(ordered: Tensor, numbers: Tensor) -> Tensor:
    """Count the entries of each ascending row (R, N) that are at most each of the numbers (R, M): (R, M)."""
    return torch.searchsorted(ordered, numbers.contiguous(), right=True)  # it warns of any other layout


def _weighted_sums(weights: Tensor, values: Tensor, order: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Sum weights (R, N) and weighted values (R, N, D) in an order (R, N) up to each of the places (R, M)."""
    ordered = weights.gather(1, order)[:, :, None]
    weighted = ordered * gather_rows(values, order)
    return _sums_before(ordered, places)[:, :, 0], _sums_before(weighted, places)


def _weigh_keys(key: Tensor, mask: Tensor | None, slope: float) -> _Keys:
    """Weigh each key by its distance below the largest, which only shifts the scores and so has no gradient."""
    if mask is None:
        largest = key.detach().amax(1, keepdim=True)
        return _Keys(largest, (key - largest).exp(), (slope * (key - largest)).exp())
    largest = key.detach().masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    largest = torch.where(mask.any(1, keepdim=True), largest, 0.0)
    below = (key - largest).masked_fill(~mask, 0.0)  # a masked key above the largest would overflow
    return _Keys(largest, below.exp().masked_fill(~mask, 0.0), (slope * below).exp().masked_fill(~mask, 0.0))


def _left_factor(query: Tensor, largest: Tensor, slope: float) -> Tensor:
    """Return f_i (R, M)."""
    return (-(1 - slope) * F.relu(query + largest)).exp()


def _sums_before(terms: Tensor, places: Tensor) -> Tensor:
    """Return, for each place (R, M) from 0 to N, the sum of the terms (R, N, D) before it: (R, M, D)."""
    sums = terms.cumsum(1)
    found = gather_rows(sums, (places - 1).clamp(min=0))
    return found.masked_fill((places == 0)[:, :, None], 0.0)


def gather_rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Take the vectors of matrix (R, N, D) at index (R, M): (R, M, D), copied whole, which gather would not."""
    rows, count, dim = matrix.shape
    flat = index + torch.arange(rows, device=index.device)[:, None] * count
    return matrix.reshape(rows * count, dim).index_select(0, flat.flatten()).view(rows, index.shape[1], dim)


def _chunks(query: Tensor, key: Tensor, value: Tensor, *others: Tensor | None) -> list[tuple[Any, ...]]:
    """Split every tensor by rows, so that a temporary is about _CHUNK_NUMBERS large, or one row if that is larger."""
    size = max(1, _CHUNK_NUMBERS // (value.shape[2] * max(query.shape[1], key.shape[1])))
    tensors = (query, key, value, *others)
    pieces = [None if tensor is None else torch.split(tensor, size) for tensor in tensors]
    count = -(-len(value) // size)
    return [tuple(None if piece is None else piece[index] for piece in pieces) for index in range(count)]
