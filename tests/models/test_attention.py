"""Graph attention: sorted equals dense, modules equal the plain formula."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.models import attention
from cifarkit.models.attention import (
    GraphAttention,
    SelfAttention,
    attention_weights,
    graph_attention,
    query_dependence,
)

Tensors = tuple[Tensor, ...]
Attend = Callable[..., Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor, slope: float = 0.2, mask: Tensor | None = None) -> Tensor:
    """The formula as it stands in the paper."""
    scores = F.leaky_relu(query[..., None] + key[:, :, None], slope)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    return scores.softmax(-1) @ value


def inputs(
    nodes: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64, dim: int = 4, heads: int = 2
) -> Tensors:
    generator = torch.Generator().manual_seed(nodes)
    query, key = (torch.randn(2, heads, nodes, generator=generator, dtype=torch.float64) * scale for _ in "qk")
    value = torch.randn(2, heads, nodes, dim, generator=generator, dtype=torch.float64)
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (query, key, value))


def outputs_and_gradients(attend: Attend, tensors: Tensors, **options: object) -> Tensors:
    outputs = attend(*tensors, **options)
    upstream = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return outputs, *torch.autograd.grad(outputs, tensors, upstream.to(outputs.dtype))


def assert_close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    for name, one, other in zip(("outputs", "query", "key", "value"), found, expected, strict=True):
        error = (one.double() - other.double()).abs().max() / other.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("nodes", [1, 2, 3, 63, 64, 65, 200, 1000])
def test_sorted_equals_dense(nodes: int, scale: float, slope: float) -> None:
    exact = inputs(nodes, scale=scale)
    dense = outputs_and_gradients(graph_attention, exact, negative_slope=slope, method="dense")
    assert_close(outputs_and_gradients(graph_attention, exact, negative_slope=slope, method="sorted"), dense, 1e-12)
    single = inputs(nodes, scale=scale, dtype=torch.float32)
    rounded = tuple(tensor.detach().double().requires_grad_() for tensor in single)
    dense = outputs_and_gradients(graph_attention, rounded, negative_slope=slope, method="dense")
    assert_close(outputs_and_gradients(graph_attention, single, negative_slope=slope, method="sorted"), dense, 1e-6)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_sorted_equals_dense_at_5000_nodes(scale: float) -> None:
    exact = tuple(tensor[:1, :1] for tensor in inputs(5000, scale=scale))
    dense = outputs_and_gradients(graph_attention, exact, method="dense")
    assert_close(outputs_and_gradients(graph_attention, exact, method="sorted"), dense, 1e-12)
    single = tuple(tensor.detach().float().requires_grad_() for tensor in exact)
    rounded = tuple(tensor.detach().double().requires_grad_() for tensor in single)
    dense = outputs_and_gradients(graph_attention, rounded, method="dense")
    assert_close(outputs_and_gradients(graph_attention, single, method="sorted"), dense, 1e-6)


@pytest.mark.parametrize("method", ["dense", "sorted"])
@pytest.mark.parametrize("shift", [0.0, -50.0, 50.0], ids=["mixed", "all negative", "all positive"])
def test_methods_equal_the_formula(method: str, shift: float) -> None:
    query, key, value = inputs(70)
    tensors = ((query + shift).detach().requires_grad_(), key, value)
    assert_close(
        outputs_and_gradients(graph_attention, tensors, method=method), outputs_and_gradients(plain, tensors), 1e-12
    )


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_ties_and_kinks(slope: float) -> None:
    query, key, value = inputs(60, scale=2)
    tensors = (query.detach().round().requires_grad_(), key.detach().round().requires_grad_(), value)
    sums = tensors[0][..., None] + tensors[1][:, :, None]
    assert (sums == 0).any()
    expected = outputs_and_gradients(plain, tensors, slope=slope)
    for method in ("dense", "sorted"):
        found = outputs_and_gradients(graph_attention, tensors, negative_slope=slope, method=method)
        assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("method", ["dense", "sorted"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_masked_nodes_do_not_exist(method: str, slope: float) -> None:
    tensors = inputs(70, scale=300)
    mask = torch.rand(2, 70, generator=torch.Generator().manual_seed(0)) < 0.4
    options = {"negative_slope": slope, "method": method, "mask": mask}
    assert_close(
        outputs_and_gradients(graph_attention, tensors, **options),
        outputs_and_gradients(plain, tensors, slope=slope, mask=mask),
        1e-12,
    )


@pytest.mark.parametrize("method", ["dense", "sorted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_attend_to_gives_zeros(method: str, dtype: torch.dtype) -> None:
    tensors = inputs(5, dtype=dtype)
    mask = torch.tensor([[False] * 5, [True] * 5])
    found = outputs_and_gradients(graph_attention, tensors, method=method, mask=mask)
    assert all(tensor[0].eq(0).all() for tensor in found)
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("method", ["dense", "sorted"])
def test_fewer_queries_than_nodes(method: str) -> None:
    query, key, value = inputs(70)
    tensors = (query[:, :, :9].detach().requires_grad_(), key, value)
    assert_close(
        outputs_and_gradients(graph_attention, tensors, method=method), outputs_and_gradients(plain, tensors), 1e-12
    )


@settings(max_examples=50, deadline=None)
@given(nodes=st.integers(1, 150), scale=st.floats(0.01, 500), slope=st.floats(0, 1), hidden=st.floats(0, 1))
def test_sorted_equals_dense_anywhere(nodes: int, scale: float, slope: float, hidden: float) -> None:
    tensors = inputs(nodes, scale=scale)
    mask = torch.rand(2, nodes, generator=torch.Generator().manual_seed(nodes)) >= hidden
    found, expected = (
        outputs_and_gradients(graph_attention, tensors, negative_slope=slope, method=method, mask=mask)
        for method in ("sorted", "dense")
    )
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_gradients_of_both_orders(slope: float) -> None:
    tensors = tuple(tensor[:, :1, :7] for tensor in inputs(8))
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, True, True]])

    def attend(*tensors: Tensor) -> Tensor:
        return graph_attention(*tensors, negative_slope=slope, method="sorted", mask=mask)

    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(40)
    expected = outputs_and_gradients(graph_attention, tensors, method="sorted")
    monkeypatch.setattr("cifarkit.models.sorted_attention._CHUNK_NUMBERS", 40 * 4 * 3)
    assert_close(outputs_and_gradients(graph_attention, tensors, method="sorted"), expected, 1e-14)


def test_half_precision_is_summed_in_float32() -> None:
    exact = inputs(300, dtype=torch.bfloat16)
    rounded = tuple(tensor.detach().double() for tensor in exact)
    outputs, *gradients = outputs_and_gradients(graph_attention, exact, method="sorted")
    assert outputs.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    torch.testing.assert_close(outputs.double(), plain(*rounded), rtol=2**-8, atol=2**-9)


@pytest.mark.parametrize("method", ["dense", "sorted"])
def test_autocast_does_not_round_the_sums(method: str) -> None:
    tensors = inputs(300, dtype=torch.float32)
    expected = outputs_and_gradients(graph_attention, tensors, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = graph_attention(*tensors, method=method)
    gradients = torch.autograd.grad(outputs.square().sum(), tensors)
    torch.testing.assert_close(outputs, expected[0])
    direct = torch.autograd.grad(graph_attention(*tensors, method=method).square().sum(), tensors)
    torch.testing.assert_close(gradients, direct)


def test_no_tensor_of_all_pairs_is_made() -> None:
    tensors, largest = inputs(2048, dtype=torch.float32, heads=1), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, item.untyped_storage().nbytes() if isinstance(item, Tensor) else 0)
            return result

    with Watch():
        outputs_and_gradients(graph_attention, tensors, method="sorted")
    assert largest <= 2 * 2048 * 4 * 8  # bytes of all nodes' vectors in fp64, as the test draws them


def test_auto_sorts_large_graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = attention._attend_sorted
    monkeypatch.setattr(attention, "_attend_sorted", lambda *args: calls.append(args[1].shape[2]) or original(*args))
    monkeypatch.setattr(attention, "_FEWEST_PAIRS", 4 * 330**2)
    for nodes in (8, 319, 329, 330):  # 2 images and 2 heads
        graph_attention(*inputs(nodes))
    assert calls == [330]


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.elu])
def test_other_activations_are_dense(activation: Callable[[Tensor], Tensor]) -> None:
    query, key, value = inputs(300)
    expected = activation(query[..., None] + key[:, :, None]).softmax(-1) @ value
    torch.testing.assert_close(graph_attention(query, key, value, activation=activation), expected)


def test_weights_at_large_scores_are_precise_in_float32() -> None:
    query, key, _ = inputs(200, scale=1000, dtype=torch.float32)
    exact = F.leaky_relu(query.double()[..., None] + key.double()[:, :, None], 0.2).softmax(-1)
    assert (attention_weights(query, key).double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layer", ["graph", "self"])
def test_layers_mix_values_by_their_weights(layer: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    module = GraphAttention(12, 3, dynamic=dynamic) if layer == "graph" else SelfAttention(12, 3)
    nodes, mask = torch.randn(2, 9, 12), torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    weights = module.weights(nodes, mask)
    values = module.value(nodes).unflatten(2, (3, 4)).transpose(1, 2)
    expected = module.project((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(nodes, mask), expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 9))
    assert weights[1, :, :, 4:].eq(0).all()


def test_graph_layer_is_the_survey_formula() -> None:
    torch.manual_seed(1)
    module, nodes = GraphAttention(6), torch.randn(1, 5, 6)
    scores = F.leaky_relu(module.key(nodes)[0, :, 0][None] + module.query(nodes)[0, :, 0][:, None], 0.2)
    torch.testing.assert_close(module.weights(nodes)[0, 0], scores.softmax(1))


def test_self_attention_is_torch_multihead_attention() -> None:
    torch.manual_seed(2)
    ours, theirs, nodes = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 6, 8)
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(ours.project.state_dict())
    torch.testing.assert_close(ours(nodes), theirs(nodes, nodes, nodes)[0])


@pytest.mark.parametrize("layer", [GraphAttention(8, 2), GraphAttention(8, 2, dynamic=True), SelfAttention(8, 2)])
def test_order_of_nodes_does_not_matter(layer: nn.Module) -> None:
    nodes, order = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0)), torch.randperm(7)
    torch.testing.assert_close(layer(nodes)[:, order], layer(nodes[:, order]))


@pytest.mark.parametrize("layer", [GraphAttention(8, 2), GraphAttention(8, 2, dynamic=True), SelfAttention(8, 2)])
def test_hidden_image_gives_finite_gradients(layer: nn.Module) -> None:
    nodes = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    outputs = layer(nodes, mask)
    outputs.sum().backward()
    assert nodes.grad is not None
    assert nodes.grad.isfinite().all()
    torch.testing.assert_close(outputs[1], layer.project.bias.expand(5, 8))


def test_every_query_ranks_keys_alike_unless_dynamic() -> None:
    torch.manual_seed(3)
    nodes = torch.randn(1, 12, 16)
    order = GraphAttention(16).weights(nodes)[0, 0].argsort(1)
    assert (order == order[:1]).all()
    order = GraphAttention(16, dynamic=True).weights(nodes)[0, 0].argsort(1)
    assert (order != order[:1]).any()


def test_query_dependence_from_none_to_all() -> None:
    assert query_dependence(torch.full((2, 4, 4), 0.25)).eq(0).all()
    torch.testing.assert_close(query_dependence(torch.eye(4)), torch.tensor(0.75))


def test_compiles_without_a_break() -> None:
    module, nodes = GraphAttention(8, 2, method="sorted"), torch.randn(2, 70, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    eager, found = (
        torch.autograd.grad(call(nodes).square().sum(), [*module.parameters()]) for call in (module, compiled)
    )
    torch.testing.assert_close(found, eager)


def test_refuses_what_does_not_fit() -> None:
    query, key, value = inputs(5)
    with pytest.raises(
        ValueError, match=r"query, key and value must be .* got \(2, 2, 5\), \(2, 2, 5\), \(2, 2, 4, 4\)"
    ):
        graph_attention(query, key, value[:, :, 1:])
    with pytest.raises(ValueError, match=r"negative_slope=1\.5 must be"):
        graph_attention(query, key, value, negative_slope=1.5)
    with pytest.raises(ValueError, match="method='fast' is unknown; give 'auto'"):
        graph_attention(query, key, value, method="fast")
    with pytest.raises(ValueError, match="needs a LeakyReLU; give negative_slope"):
        graph_attention(query, key, value, method="sorted", activation=torch.tanh)
    with pytest.raises(TypeError, match=r"key must be of floating point; got torch\.int64"):
        graph_attention(query, key.long(), value)
    with pytest.raises(ValueError, match="a softmax needs at least one node"):
        graph_attention(query[:, :, :0], key[:, :, :0], value[:, :, :0])
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 5\).* got torch\.float32"):
        graph_attention(query, key, value, mask=torch.ones(2, 5))


def test_layers_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        GraphAttention(8, 3)
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        SelfAttention(8, 3)
    with pytest.raises(ValueError, match="with dynamic=True give 'dense' or 'auto'"):
        GraphAttention(8, method="sorted", dynamic=True)
    with pytest.raises(TypeError, match="activation"):
        GraphAttention(8, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nodes must be \(B, N, 8\); got shape \(2, 8\)"):
        GraphAttention(8)(torch.ones(2, 8))


def test_layer_is_torch_geometric_gatconv_on_a_complete_graph() -> None:
    geometric = pytest.importorskip("torch_geometric.nn", reason="an optional peer: pip install torch_geometric")
    torch.manual_seed(4)
    theirs, nodes = geometric.GATConv(6, 6, add_self_loops=False), torch.randn(70, 6, requires_grad=True)
    source, target = torch.cartesian_prod(torch.arange(70), torch.arange(70)).T
    expected = theirs(nodes, torch.stack([source, target]))
    values = theirs.lin(nodes)[None, None]  # (1, 1, N, D)
    key, query = ((values * vector).sum(-1) for vector in (theirs.att_src[0, 0], theirs.att_dst[0, 0]))
    for method in ("dense", "sorted"):
        found = graph_attention(query, key, values, method=method)[0, 0] + theirs.bias
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad(item.square().sum(), nodes, retain_graph=True)[0] for item in (found, expected)
        ]
        torch.testing.assert_close(*gradients)
