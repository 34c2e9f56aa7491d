"""Graph attention: both methods equal the plain formula, and so do the layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
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


def test_half_precision_is_summed_in_float32() -> None:
    exact = inputs(300, dtype=torch.bfloat16)
    rounded = tuple(tensor.detach().double().requires_grad_() for tensor in exact)
    found, expected = graph_attention(*exact, method="dense"), plain(*rounded)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)
    gradients = zip(
        torch.autograd.grad(found, exact, torch.ones_like(found)),
        torch.autograd.grad(expected, rounded, torch.ones_like(expected)),
        strict=True,
    )
    for one, other in gradients:
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)


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


@pytest.fixture
def sorted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let sorting pay whatever the number of pairs, and note the nodes of each call that sorts."""
    calls: list[int] = []
    original = attention.attend_sorted
    monkeypatch.setattr("cifarkit.models.sorted_attention._FEWEST_PAIRS", 1)
    monkeypatch.setattr(attention, "attend_sorted", lambda *args: calls.append(args[1].shape[2]) or original(*args))
    return calls


def test_auto_sorts_large_graphs_only(sorted_calls: list[int]) -> None:
    for nodes in (8, 325, 326, 400):  # 320 + 1.5 D
        graph_attention(*inputs(nodes))
    assert sorted_calls == [326, 400]
    query, key, value = inputs(400)
    graph_attention(query[:, :, :1], key, value)
    assert sorted_calls == [326, 400]


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.elu])
def test_other_activations_are_dense(activation: Callable[[Tensor], Tensor], sorted_calls: list[int]) -> None:
    query, key, value = inputs(400)
    expected = activation(query[..., None] + key[:, :, None]).softmax(-1) @ value
    torch.testing.assert_close(graph_attention(query, key, value, activation=activation), expected)
    assert not sorted_calls


@pytest.mark.parametrize("method", ["dense", "sorted"])
def test_masked_nodes_may_hold_anything(method: str) -> None:
    query, key, value = (tensor.detach() for tensor in inputs(30))
    mask = torch.arange(30).expand(2, 30) < 20
    expected = graph_attention(query, key[:, :, :20], value[:, :, :20], method="dense")
    key[:, :, 20:], value[:, :, 20:] = math.nan, math.nan
    tensors = tuple(tensor.requires_grad_() for tensor in (query, key, value))
    found, *gradients = outputs_and_gradients(graph_attention, tensors, method=method, mask=mask)
    torch.testing.assert_close(found, expected)
    assert all(gradient.isfinite().all() for gradient in gradients)


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


def layer_and_nodes(**options: Any) -> tuple[GraphAttention, Tensor]:
    torch.manual_seed(1)
    module = GraphAttention(6, 2, **options)
    nn.init.normal_(module.query.bias)
    return module, 3 * torch.randn(2, 5, 6)


PHIS: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({}, lambda scores: F.leaky_relu(scores, 0.2)),
    ({"negative_slope": 0.5}, lambda scores: F.leaky_relu(scores, 0.5)),
    ({"negative_slope": 0.5, "method": "sorted"}, lambda scores: F.leaky_relu(scores, 0.5)),
    ({"activation": torch.tanh}, torch.tanh),
]


@pytest.mark.parametrize(("options", "phi"), PHIS)
def test_graph_layer_is_the_survey_formula(options: dict[str, Any], phi: Callable[[Tensor], Tensor]) -> None:
    module, nodes = layer_and_nodes(**options)
    query = nodes @ module.query.weight.T + module.query.bias  # (B, N, H)
    key = nodes @ module.key.weight.T
    weights = phi(query[:, :, None] + key[:, None]).softmax(2).movedim(3, 1)  # (B, H, N, N)
    torch.testing.assert_close(module.weights(nodes), weights)
    mixed = weights @ module.value(nodes).unflatten(2, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(module(nodes), module.project(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(("options", "phi"), [PHIS[0], PHIS[1], PHIS[3]])
def test_dynamic_layer_is_gatv2(options: dict[str, Any], phi: Callable[[Tensor], Tensor]) -> None:
    module, nodes = layer_and_nodes(dynamic=True, **options)
    query = (nodes @ module.query.weight.T + module.query.bias).unflatten(2, (2, 3))  # (B, N, H, D / H)
    key = (nodes @ module.key.weight.T).unflatten(2, (2, 3))
    scores = (phi(query[:, :, None] + key[:, None]) * module.score).sum(4)  # (B, N, N, H)
    torch.testing.assert_close(module.weights(nodes), scores.softmax(2).movedim(3, 1))
    mixed = module.weights(nodes) @ module.value(nodes).unflatten(2, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(module(nodes), module.project(mixed.transpose(1, 2).flatten(2)))


def test_graph_layer_sorts_if_asked_to(sorted_calls: list[int]) -> None:
    for method in ("dense", "auto", "sorted"):
        module, nodes = layer_and_nodes(method=method)
        module(nodes)
    assert sorted_calls == [5]


def test_the_key_has_no_bias_and_the_layer_tells_its_settings() -> None:
    names = {name for name, _ in GraphAttention(6).named_parameters()}
    assert names == {f"{layer}.weight" for layer in ("query", "key", "value", "project")} | {
        f"{layer}.bias" for layer in ("query", "value", "project")
    }
    assert "heads=2, negative_slope=0.5, method='dense'" in repr(
        GraphAttention(6, 2, negative_slope=0.5, method="dense")
    )
    assert "activation=tanh, dynamic=True" in repr(GraphAttention(6, activation=torch.tanh, dynamic=True))


def test_self_attention_is_torch_multihead_attention() -> None:
    torch.manual_seed(2)
    ours, theirs, nodes = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 6, 8)
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(ours.project.state_dict())
    torch.testing.assert_close(ours(nodes), theirs(nodes, nodes, nodes)[0])


@pytest.mark.parametrize("count", [6, 200])  # by plain products, and by PyTorch's kernel
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_in_bf16_is_that_of_fp32(count: int, masked: bool) -> None:
    torch.manual_seed(3)
    layer, nodes, outputs, gradients = SelfAttention(32, 2), torch.randn(3, count, 32), [], []
    mask = torch.arange(count) < torch.tensor([[0], [count // 2], [count]]) if masked else None
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            x = nodes.clone().requires_grad_()
            outputs.append(layer(x, mask).float())
        gradients += torch.autograd.grad(outputs[-1].square().sum(), x)
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(gradients[1], gradients[0], atol=3e-2, rtol=3e-2)


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


def test_compiles_for_any_slope() -> None:
    nodes = torch.randn(2, 70, 8)
    for slope in (0.1, 0.2, 0.3):
        module = GraphAttention(8, 2, negative_slope=slope)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
        torch.testing.assert_close(compiled(nodes), module(nodes))
        torch.testing.assert_close(compiled(nodes[:, :50]), module(nodes[:, :50]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"value": torch.ones(2, 2, 4, 4)},
            ValueError,
            r"query must be .* got \(2, 2, 5\), \(2, 2, 5\), \(2, 2, 4, 4\)",
        ),
        ({"query": torch.ones(2, 1, 5)}, ValueError, r"query must be \(B, H, M\), .* got \(2, 1, 5\)"),
        ({"query": [1.0]}, TypeError, "query is a list; give a tensor of floating point"),
        ({"key": torch.ones(2, 2, 5).long()}, TypeError, r"key must be of floating point; got torch\.int64"),
        ({"key": torch.ones(2, 2, 0), "value": torch.ones(2, 2, 0, 4)}, ValueError, r"key has .* at least one node"),
        ({"mask": torch.ones(2, 5)}, ValueError, r"mask must be bool \(2, 5\).* got torch\.float32"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"mask must be bool \(2, 5\).* of shape \(2, 4\)"),
        ({"mask": [True] * 5}, TypeError, r"mask is a list; give a bool tensor \(2, 5\)"),
        ({"negative_slope": 1.5}, ValueError, r"negative_slope=1\.5 must be"),
        ({"method": "fast"}, ValueError, "method='fast' is unknown; give 'auto'"),
        ({"method": "sorted", "activation": torch.tanh}, ValueError, "needs a LeakyReLU; give negative_slope"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    tensors = dict(zip(("query", "key", "value"), inputs(5), strict=True))
    with pytest.raises(error, match=message):
        graph_attention(**(tensors | change))
    if not change.keys() & {"method", "value"}:
        tensors.pop("value")
        change.pop("value", None)
        with pytest.raises(error, match=message.partition(",")[0]):
            attention_weights(**(tensors | change))


def test_query_dependence_refuses_what_are_no_weights() -> None:
    with pytest.raises(TypeError, match="weights is a list; give a tensor of floating point"):
        query_dependence([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights must be \(..., M, N\); got shape \(3,\)"):
        query_dependence(torch.ones(3))


LAYERS = [GraphAttention(8), GraphAttention(8, dynamic=True), SelfAttention(8)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([1.0], TypeError, r"nodes is a list; give a tensor \(B, N, 8\) of floating point"),
        (torch.ones(2, 5, 8).long(), TypeError, r"nodes must be of floating point; got torch\.int64"),
        (
            torch.ones(2, 5, 8).double(),
            TypeError,
            r"nodes are torch\.float64 and the layer's weights torch\.float32; conv",
        ),
        (torch.ones(2, 8), ValueError, r"nodes must be \(B, N, 8\); got shape \(2, 8\)"),
        (torch.ones(2, 0, 8), ValueError, r"nodes has shape \(2, 0, 8\): a softmax needs at least one node"),
    ],
)
def test_layers_refuse_what_are_no_nodes(layer: Any, nodes: Any, error: type[Exception], message: str) -> None:
    for call in (layer, layer.weights):
        with pytest.raises(error, match=message):
            call(nodes)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_what_is_no_mask(layer: Any) -> None:
    for call in (layer, layer.weights):
        with pytest.raises(TypeError, match=r"mask is a list; give a bool tensor \(2, 5\)"):
            call(torch.ones(2, 5, 8), [True] * 5)


def test_layers_refuse_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        GraphAttention(8, 3)
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        SelfAttention(8, 3)
    with pytest.raises(ValueError, match="with dynamic=True give 'dense' or 'auto'"):
        GraphAttention(8, method="sorted", dynamic=True)
    with pytest.raises(TypeError, match="activation"):
        GraphAttention(8, activation="tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", [1, 3])
def test_layer_is_torch_geometric_gatconv_on_a_complete_graph(heads: int) -> None:
    geometric = pytest.importorskip("torch_geometric.nn", reason="a peer: pip install -r benchmarks/requirements.txt")
    torch.manual_seed(4)
    theirs = geometric.GATConv(6, 5, heads, add_self_loops=False).double()
    nn.init.normal_(theirs.bias)
    nodes = torch.randn(70, 6, dtype=torch.float64, requires_grad=True)
    source, target = torch.cartesian_prod(torch.arange(70), torch.arange(70)).T
    expected = theirs(nodes, torch.stack([source, target]))
    values = theirs.lin(nodes).unflatten(1, (heads, 5)).transpose(0, 1)[None]  # (N, H D) -> (1, H, N, D)
    key, query = ((values * vector.transpose(0, 1)).sum(-1) for vector in (theirs.att_src, theirs.att_dst))
    for method in ("dense", "sorted"):
        found = graph_attention(query, key, values, method=method)[0].transpose(0, 1).flatten(1) + theirs.bias
        torch.testing.assert_close(found, expected)
        tensors = (nodes, *theirs.parameters())
        gradients = [torch.autograd.grad(item.square().sum(), tensors, retain_graph=True) for item in (found, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("method", ["dense", "sorted", "auto"])
def test_shapes_can_be_computed_without_numbers(method: str) -> None:
    with torch.device("meta"):
        layer, nodes = GraphAttention(16, 2, method=method), torch.empty(1, 3000, 16)
    assert layer(nodes).shape == nodes.shape


def test_weights_are_finite_where_products_of_half_precision_are_not() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(16).half()
    nodes = torch.full((1, 3, 16), 300.0, dtype=torch.float16)
    with torch.no_grad():
        for part in (layer.query, layer.key):
            part.weight.copy_(torch.eye(16))
            part.bias.zero_() if part.bias is not None else None
    weights = layer.weights(nodes)
    torch.testing.assert_close(weights.float(), torch.full((1, 1, 3, 3), 1 / 3))
