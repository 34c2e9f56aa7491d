"""Attention over the nodes of a complete graph: the additive kind, its dynamic variant, and the classical."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.checks import check_number
from cifarkit.models.attention_checks import (
    Activation,
    check_float,
    check_heads,
    check_method,
    check_nodes,
    check_shapes,
)
from cifarkit.models.sorted_attention import attend_sorted, is_faster_sorted, no_autocast

_FEW_NODES = 128  # up to which plain products are faster than the fused kernel in bf16 on a CPU, with its backward pass


def graph_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    negative_slope: float = 0.2,
    method: str = "auto",
    activation: Activation | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attend over a complete graph: O_i = sum_j softmax_j(phi(q_i + k_j)) v_j, phi a LeakyReLU.

    Args:
        query, key, value: floating point; fp16 and bf16 are summed up in fp32 or more precisely.
        negative_slope: of phi below 0, in [0, 1]: 0 is ReLU, 1 the identity.
        method: "dense" makes the M x N weights; "sorted" gives the same without them, see ``sorted_attention.py``;
            "auto" sorts where that is faster: from 2**21 pairs (B H M N) on, if M and N are at least 320 + 1.5 D.
        activation: another elementwise phi, such as torch.tanh; always dense.
        mask: (B, N) bool, true where a node can be attended to; None for all. Where none can, outputs are 0.
    Shapes:
        query (B, H, M), key (B, H, N), value (B, H, N, D) -> (B, H, M, D), in the dtype of value.
    Raises:
        TypeError: if an argument is of another type.
        ValueError: if shapes do not fit, or negative_slope or method is out of range.
    Source: Velickovic et al. 2018, "Graph attention networks", eq. 3, on all pairs, in a student survey's additive form
        A = softmax(sigma(W_K h_j + W_Q h_i)).
    """
    slope = check_number("negative_slope", negative_slope, 0, 1)
    check_method(method, activation)
    check_shapes(mask, query, key, value)
    if mask is not None:
        key = key.masked_fill(~mask[:, None], 0.0)  # padding may hold NaN, which can neither be sorted nor weighed by 0
        value = value.masked_fill(~mask[:, None, :, None], 0.0)
    if method == "sorted" or (method == "auto" and activation is None and is_faster_sorted(query, value)):
        return attend_sorted(query, key, value, mask, slope)
    return _mix_values(_form_weights(query, key, slope, activation, mask), value)


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    negative_slope: float = 0.2,
    activation: Activation | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return softmax_j(phi(q_i + k_j)) (B, H, M, N), at least fp32; arguments as for :func:`graph_attention`.

    With a LeakyReLU, exponents are formed from the distance to the largest key instead of from the scores, because
    q_i + k_j of some hundreds rounded to fp32 is off by 1e-5, and so would the weights be.
    """
    slope = check_number("negative_slope", negative_slope, 0, 1)
    check_method("dense", activation)
    check_shapes(mask, query, key)
    return _form_weights(query, key, slope, activation, mask)


def _form_weights(
    query: Tensor, key: Tensor, slope: float, activation: Activation | None, mask: Tensor | None
) -> Tensor:
    """Return what :func:`attention_weights` does, without its checks."""
    query, key = (_at_least_float32(tensor) for tensor in (query, key))
    if activation is not None:
        return _masked_softmax(activation(query[..., None] + key[:, :, None]), mask)
    largest = (key if mask is None else key.masked_fill(~mask[:, None], torch.finfo(key.dtype).min)).detach()
    largest = largest.amax(2, keepdim=True)  # (B, H, 1)
    below = (key - largest)[:, :, None]
    left = slope * below - (1 - slope) * F.relu(query + largest)[..., None]
    return _masked_softmax(torch.where(query[..., None] + key[:, :, None] > 0, below, left), mask)


def query_dependence(weights: Tensor) -> Tensor:
    """Measure how much attention depends on who asks: 0 if all queries attend alike, towards 1 if to different nodes.

    It is the total variation distance, half the sum of absolute differences, of each query's weights from their mean
    over the queries, averaged over the queries. Under an additive score every query ranks the keys alike (Brody et al.
    2022, "How attentive are graph attention networks?"), which keeps it low. All M queries count: leave out those
    of masked nodes first, as in ``weights[image][:, mask[image]]``.

    Raises:
        TypeError, ValueError: if weights is no tensor of floating point, or not of two dimensions or more.
    Shapes:
        weights (..., M, N), rows summing to 1 -> (...).
    """
    check_float("weights", weights)
    if weights.dim() < 2:
        raise ValueError(f"weights must be (..., M, N); got shape {tuple(weights.shape)}")
    return 0.5 * (weights - weights.mean(-2, keepdim=True)).abs().sum(-1).mean(-1)


class GraphAttention(nn.Module):
    """Multi-head graph attention, A = softmax(phi(W_K h_j + W_Q h_i)), on all pairs of nodes.

    Each head scores nodes by two numbers, so all queries rank the keys alike, and the weights need not be formed: see
    ``method`` of :func:`graph_attention`. There is neither a residual nor a normalisation inside.

    Args:
        dim: length D of a node's vector, a multiple of heads.
        heads: H, each mixing D / H of the values.
        negative_slope, method, activation: as for :func:`graph_attention`; activation takes the place of the slope.
        dynamic: score by a . phi(W_K h_j + W_Q h_i) with D / H numbers a node and head (GATv2), so that each query may
            rank the keys in its own way; dense, and it forms H N^2 D / H numbers.
    Raises:
        TypeError: if an argument is of another type.
        ValueError: if heads do not divide dim, an argument is out of range, or dynamic is to be sorted.
    Shapes:
        (B, N, D), optionally mask (B, N) bool, true for nodes that take part -> (B, N, D), to be ignored at others.
    Source: a student survey's additive form A = softmax(sigma(W_K h_j + W_Q h_i)), which on all pairs is Velickovic et
        al. 2018, eq. 3 to 5; dynamic: Brody et al. 2022, eq. 7.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        negative_slope: float = 0.2,
        method: str = "auto",
        activation: Activation | None = None,
        dynamic: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.heads = check_heads(dim, heads)
        self.negative_slope = check_number("negative_slope", negative_slope, 0, 1)
        self.method, self.activation, self.dynamic = method, activation, dynamic
        if dynamic and method == "sorted":
            raise ValueError("method='sorted' needs one score a node; with dynamic=True give 'dense' or 'auto'")
        check_method(method, activation)
        scores = self.dim if dynamic else self.heads
        self.query = nn.Linear(self.dim, scores)
        self.key = nn.Linear(self.dim, scores, bias=False)  # a bias of its own would add to the query's
        self.value = nn.Linear(self.dim, self.dim)
        self.project = nn.Linear(self.dim, self.dim)
        if dynamic:
            self.score = nn.Parameter(torch.empty(self.heads, self.dim // self.heads))
            nn.init.normal_(self.score, std=(self.heads / self.dim) ** 0.5)

    def extra_repr(self) -> str:
        kind = "dynamic=True" if self.dynamic else f"method={self.method!r}"
        name = getattr(self.activation, "__name__", self.activation)
        phi = f"negative_slope={self.negative_slope}" if self.activation is None else f"activation={name}"
        return f"dim={self.dim}, heads={self.heads}, {phi}, {kind}"

    def forward(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        check_nodes(nodes, mask, self.dim, self.project)
        values = _split_heads(self.value(nodes), self.heads)  # (B, H, N, D / H)
        if self.dynamic:
            mixed = _mix_values(self.weights(nodes, mask), values)
        else:
            query, key = (layer(nodes).transpose(1, 2) for layer in (self.query, self.key))  # (B, N, H) -> (B, H, N)
            phi = {"negative_slope": self.negative_slope, "activation": self.activation}
            mixed = graph_attention(query, key, values, method=self.method, mask=mask, **phi)  # type: ignore[arg-type]
        projected: Tensor = self.project(_join_heads(mixed))
        return projected

    def weights(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what each node (dimension 2) attends to (dimension 3): (B, H, N, N), rows summing to 1."""
        check_nodes(nodes, mask, self.dim, self.project)
        if not self.dynamic:
            query, key = (layer(nodes).transpose(1, 2) for layer in (self.query, self.key))
            return _form_weights(query, key, self.negative_slope, self.activation, mask)
        query, key = (_split_heads(layer(nodes), self.heads) for layer in (self.query, self.key))  # (B, H, N, D / H)
        pairs = query[:, :, :, None] + key[:, :, None]  # (B, H, N, N, D / H)
        raised = F.leaky_relu(pairs, self.negative_slope) if self.activation is None else self.activation(pairs)
        return _masked_softmax((raised @ self.score[:, None, :, None]).squeeze(-1), mask)


class SelfAttention(nn.Module):
    """Classical multi-head attention, A = softmax(Q K^T / sqrt(D / H)), by PyTorch's fused kernel where it is faster.

    Args:
        dim: length D of a node's vector, a multiple of heads.
        heads: H.
    Raises:
        TypeError: if a number is no integer.
        ValueError: if heads do not divide dim.
    Shapes:
        (B, N, D), optionally mask (B, N) bool, true for nodes that take part -> (B, N, D).
    Source: Vaswani et al. 2017, "Attention is all you need", section 3.2.
    """

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.heads = check_heads(dim, heads)
        self.query, self.key, self.value = (nn.Linear(self.dim, self.dim) for _ in range(3))
        self.project = nn.Linear(self.dim, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}"

    def forward(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        check_nodes(nodes, mask, self.dim, self.project)
        query, key, value = (_split_heads(layer(nodes), self.heads) for layer in (self.query, self.key, self.value))
        projected: Tensor = self.project(_join_heads(_attend(query, key, value, mask)))
        return projected

    def weights(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what each node (dimension 2) attends to (dimension 3): (B, H, N, N), rows summing to 1."""
        check_nodes(nodes, mask, self.dim, self.project)
        query, key = (_split_heads(layer(nodes), self.heads) for layer in (self.query, self.key))
        with no_autocast(query):
            return _classical_weights(_at_least_float32(query), _at_least_float32(key), mask)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the classical attention's mix of value, each (B, H, N, D); zeros where no node takes part."""
    few = query.shape[2] <= _FEW_NODES
    if few and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # PyTorch's kernel is made for many nodes: its backward pass takes four times as long as these products.
        return _classical_weights(query, key, mask).to(value.dtype) @ value
    seen = None if mask is None else mask[:, None, None]  # (B, 1, 1, N)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return mixed if mask is None else torch.where(mask.any(1)[:, None, None, None], mixed, 0.0)


def _classical_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(Q K^T / sqrt(D)): (B, H, N, N), the softmax in fp32 at least."""
    scaled = query * query.shape[3] ** -0.5  # before the product, which in half precision may overflow
    return _masked_softmax(scaled @ key.transpose(2, 3), mask)


def _mix_values(weights: Tensor, value: Tensor) -> Tensor:
    """Return weights (B, H, M, N) @ value (B, H, N, D), summed in the precision of the weights."""
    with no_autocast(value):
        return (weights @ value.to(weights.dtype)).to(value.dtype)


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax of scores (B, H, M, N) over the nodes of mask (B, N); zeros where there is none."""
    scores = _at_least_float32(scores)
    if mask is None:
        return scores.softmax(-1)
    seen = mask[:, None, None]  # (B, 1, 1, N)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~seen, 0.0)  # only zeros remain where every node is hidden


def _split_heads(nodes: Tensor, heads: int) -> Tensor:
    batch, count, dim = nodes.shape
    return nodes.view(batch, count, heads, dim // heads).transpose(1, 2)  # (B, N, D) -> (B, H, N, D / H)


def _join_heads(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)  # (B, H, N, D / H) -> (B, N, D)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
