"""Graph attention over all pairs of nodes without the pairs: exact, in O(n log n) time and O(n d) memory.

A score phi(q_i + k_j) with phi = LeakyReLU, slope a on the left, is linear on either side of its kink. Once the keys
are sorted, the keys on the right of query i's kink (q_i + k_j > 0) are a suffix, and those on the left a prefix. With
K the largest key, and after dividing by the row's largest weight,

    weight_ij is proportional to  exp(k_j - K)          on the right,
                                  f_i exp(a (k_j - K))  on the left, f_i = exp(-(1 - a) max(q_i + K, 0)),

so that one running sum from either end, read where the query's kink falls, gives numerator and denominator:

    O_i = (AV(p_i) + f_i BV(p_i)) / (A(p_i) + f_i B(p_i)),  p_i = #{j: k_j <= -q_i}.

No factor exceeds 1, and the denominator is at least 1, for the largest key always adds 1: nothing overflows, and no sum
is a difference of sums. The gradients are such differences, and the key's may be a thousandth of its parts: so fp32 is
summed in fp64. The derivation of the backward pass is in docs/attention.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cifarkit.models.running_sums import RunningSum, chunks, sums_from_both_ends

# From where sorting was the faster, both forward alone and with backward; benchmarks/attention.py looks at the corners.
# Its fixed cost asks for many pairs. Its passes over vectors of D numbers wait for memory, where the matrix product of
# the dense way does not, and so ask for the more nodes the longer the vectors.
_FEWEST_PAIRS, _FEWEST_NODES, _NODES_PER_NUMBER = 2**21, 320, 1.5


class _Keys(NamedTuple):
    """What the keys (R, N) alone determine; masked ones weigh nothing."""

    largest: Tensor  # (R, 1)
    high: Tensor  # (R, N), exp(k - K)
    low: Tensor  # (R, N), exp(a (k - K))


class _Cuts(NamedTuple):
    """All but the values that the outputs are made of."""

    high: RunningSum
    low: RunningSum
    left: Tensor  # (R, M), f
    sums: Tensor  # (R, M), Z
    high_shares: Tensor  # (R, M), A / Z


def fewest_nodes(dim: int) -> int:
    """Return how many queries, and as many nodes with vectors of dim numbers, it takes for sorting to be faster."""
    return _FEWEST_NODES + int(_NODES_PER_NUMBER * dim)


def is_faster_sorted(query: Tensor, value: Tensor) -> bool:
    """Tell whether sorting is the faster way for query (B, H, M) and value (B, H, N, D)."""
    batch, heads, nodes, dim = value.shape
    queries = query.shape[2]
    enough = min(queries, nodes) >= fewest_nodes(dim)
    return enough and (_is_exporting() or batch * heads * queries * nodes >= _FEWEST_PAIRS)


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
        (R, M, D). Differentiable any number of times; the graph of a second derivative, O(R (M + N) D), is made for all
        rows at once, and so is that of any under ``torch.func``.
    """
    if _is_transformed() or _is_exporting():  # these take plain operations only, and as many of them whatever R is
        centre = _centre(key, value, mask).detach()
        return (_mix(_cut(query, key, mask, slope), _centred(value, centre))[0] + centre).to(value.dtype)
    outputs: Tensor = _SortedAttention.apply(query, key, value, mask, slope)
    return outputs


class _SortedAttention(torch.autograd.Function):
    """The formulas by hand, which keep less than half of what autograd would, some rows and columns at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slope: float) -> Tensor:
        (rows, queries), columns, centre = query.shape, value.shape[2], _centre(key, value, mask)
        outputs, high_outputs = (value.new_empty(rows, queries, columns) for _ in range(2))
        precise = centre.new_empty(outputs.shape)  # the outputs measured from the centre
        high_shares, sums = (centre.new_empty(rows, queries) for _ in range(2))
        pieces, parts = chunks(query, value)
        for piece in pieces:
            cuts = _cut(query[piece], key[piece], None if mask is None else mask[piece], slope)
            high_shares[piece], sums[piece] = cuts.high_shares, cuts.sums
            for part in parts:
                at = (piece, slice(None), part)
                mixed, high_outputs[at] = _mix(cuts, _centred(value[at], centre[at]))
                precise[at], outputs[at] = mixed, mixed + centre[at]
        ctx.slope = slope
        ctx.save_for_backward(query, key, value, mask, centre, precise, high_outputs, high_shares, sums)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, centre, *results = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: let autograd differentiate the formulas themselves
            outputs, _ = _mix(_cut(query, key, mask, ctx.slope), _centred(value, centre))
            needed = ctx.needs_input_grad[:3]
            wanted = [tensor for tensor, asks in zip((query, key, value), needed, strict=True) if asks]
            found = iter(torch.autograd.grad(outputs, wanted, gradient.to(outputs.dtype), create_graph=True))
            return *(next(found) if asks else None for asks in needed), None, None
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        tensors: tuple[Any, ...] = (query, key, value, mask, centre, gradient, *results, *gradients)
        pieces, parts = chunks(query, value)
        for piece in pieces:
            rows: list[Any] = [None if item is None else item[piece] for item in tensors]
            _differentiate(*rows, parts=parts, slope=ctx.slope)
        return *gradients, None, None


def _cut(query: Tensor, key: Tensor, mask: Tensor | None, slope: float) -> _Cuts:
    """Sort the keys and find where each query's kink falls, all that is the same for each of the D columns."""
    keys = _weigh_keys(key.to(_summing_dtype(key)), mask, slope)
    high, low = sums_from_both_ends(key, query, keys.high, keys.low)
    left = _left_factor(query, keys.largest, slope)
    high_sums = high.of_weights()
    sums = high_sums + left * low.of_weights()
    sums = torch.where(sums > 0, sums, 1.0)  # 0 only where every key is masked
    return _Cuts(high, low, left, sums, high_sums / sums)


def _mix(cuts: _Cuts, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for values (R, N, D) measured from the centre, outputs (R, M, D) and their part from the right."""
    right_part = cuts.high.of_vectors(values) / cuts.sums[:, :, None]
    return torch.addcmul(right_part, cuts.low.of_vectors(values), (cuts.left / cuts.sums)[:, :, None]), right_part


def _differentiate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    centre: Tensor,
    gradient: Tensor,
    outputs: Tensor,
    high_outputs: Tensor,
    high_shares: Tensor,
    sums: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    *,
    parts: list[slice],
    slope: float,
) -> None:
    """Write the gradients of query, key and value: sums over the queries, sorted in their turn."""
    keys = _weigh_keys(key.to(sums.dtype), mask, slope)
    high, low = sums_from_both_ends(query, key, 1 / sums, _left_factor(query, keys.largest, slope) / sums)
    products = torch.zeros_like(sums)  # (R, M), what every row of the softmax's gradient subtracts
    for part in parts:
        products += (gradient[:, :, part] * outputs[:, :, part]).sum(2)
    grad_query.copy_((1 - slope) * ((gradient * high_outputs).sum(2) - products * high_shares))
    inner_right, inner_left = -high.of_numbers(products), -low.of_numbers(products)  # (R, N)
    for part in parts:
        upstream, values = gradient[:, :, part].to(sums.dtype), _centred(value[:, :, part], centre[:, :, part])
        from_right, from_left = high.of_vectors(upstream), low.of_vectors(upstream)  # (R, N, columns)
        inner_right += (values * from_right).sum(2)
        inner_left += (values * from_left).sum(2)
        grad_value[:, :, part] = torch.addcmul(from_right * keys.high[:, :, None], from_left, keys.low[:, :, None])
    grad_key.copy_(keys.high * inner_right + slope * keys.low * inner_left)


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


def _centre(key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean value (R, 1, D) by the weights exp(k_j), the origin that values are measured from.

    A softmax's gradient is a difference of sums, which lose digits where one key has nearly all the weight; measured
    from where the weight is, both sums are small.
    """
    weights = (key if mask is None else key.masked_fill(~mask, torch.finfo(key.dtype).min)).softmax(1)
    weights = weights if mask is None else weights.masked_fill(~mask, 0.0)  # 0 where every key is masked
    with no_autocast(value):
        return (weights[:, None] @ value).to(_summing_dtype(value))


def _centred(value: Tensor, centre: Tensor) -> Tensor:
    return value.to(centre.dtype) - centre


def _summing_dtype(tensor: Tensor) -> torch.dtype:
    """Return fp64, or what the tensor has where there may be no fp64, as on Apple's GPUs."""
    return torch.float64 if tensor.device.type in ("cpu", "cuda", "meta") else tensor.dtype


def _is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` is at work, as autograd.Function itself asks."""
    return torch._C._are_functorch_transforms_active()


def _is_exporting() -> bool:
    """Tell whether ``torch.export`` traces the code; torch 2.6 cannot say so, nor does it export the formulas."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def autocast_is_on(tensor: Tensor) -> bool:
    """Tell whether autocast rules where the tensor lies; on the meta device there is none."""
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off where the tensor lies."""
    return nullcontext() if tensor.device.type == "meta" else torch.autocast(tensor.device.type, enabled=False)
