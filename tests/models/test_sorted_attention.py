"""Attention by sorting: equal to the dense way in both precisions, differentiable as often, without the pairs."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarkit.models import GraphAttention, graph_attention, running_sums, sorted_attention
from cifarkit.models.sorted_attention import fewest_nodes, is_faster_sorted

Tensors = tuple[Tensor, ...]
Attend = Callable[..., Tensor]


def inputs(
    nodes: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64, dim: int = 4, heads: int = 2
) -> Tensors:
    generator = torch.Generator().manual_seed(nodes)
    query, key = (torch.randn(2, heads, nodes, generator=generator, dtype=torch.float64) * scale for _ in "qk")
    value = torch.randn(2, heads, nodes, dim, generator=generator, dtype=torch.float64)
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (query, key, value))


def leaves(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return tuple(tensor.detach().to(dtype).requires_grad_() for tensor in tensors)


def outputs_and_gradients(tensors: Tensors, *, create_graph: bool = False, **options: object) -> Tensors:
    outputs = graph_attention(*tensors, **options)  # type: ignore[arg-type]
    upstream = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return outputs, *torch.autograd.grad(outputs, tensors, upstream.to(outputs.dtype), create_graph=create_graph)


def assert_close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    for name, one, other in zip(("outputs", "query", "key", "value"), found, expected, strict=True):
        error = (one.double() - other.double()).abs().max() / other.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("nodes", [1, 2, 3, 63, 64, 65, 200, 1000])
def test_sorted_equals_dense(nodes: int, scale: float, slope: float) -> None:
    exact = inputs(nodes, scale=scale)
    dense = outputs_and_gradients(exact, negative_slope=slope, method="dense")
    assert_close(outputs_and_gradients(exact, negative_slope=slope, method="sorted"), dense, 1e-12)
    single = leaves(exact, torch.float32)
    dense = outputs_and_gradients(leaves(single, torch.float64), negative_slope=slope, method="dense")
    assert_close(outputs_and_gradients(single, negative_slope=slope, method="sorted"), dense, 1e-6)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_sorted_equals_dense_at_5000_nodes(scale: float) -> None:
    exact = tuple(tensor[:1, :1] for tensor in inputs(5000, scale=scale))
    dense = outputs_and_gradients(exact, method="dense")
    assert_close(outputs_and_gradients(exact, method="sorted"), dense, 1e-12)
    single = leaves(exact, torch.float32)
    dense = outputs_and_gradients(leaves(single, torch.float64), method="dense")
    assert_close(outputs_and_gradients(single, method="sorted"), dense, 1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("shift", [0.0, -50.0, 50.0], ids=["mixed", "all negative", "all positive"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("hidden", [0.0, 0.6])
def test_float32_with_masks_ties_and_one_sign(hidden: float, ties: bool, shift: float, slope: float) -> None:
    query, key, value = (tensor.detach() for tensor in inputs(300, scale=3))
    query, key = ((query + shift).round(), key.round()) if ties else (query + shift, key)
    mask = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) >= hidden
    single = leaves((query, key, value), torch.float32)
    options = {"negative_slope": slope, "mask": mask}
    dense = outputs_and_gradients(leaves(single, torch.float64), method="dense", **options)
    assert_close(outputs_and_gradients(single, method="sorted", **options), dense, 1e-6)


@settings(max_examples=50, deadline=None)
@given(nodes=st.integers(1, 150), scale=st.floats(0.01, 500), slope=st.floats(0, 1), hidden=st.floats(0, 1))
def test_sorted_equals_dense_anywhere(nodes: int, scale: float, slope: float, hidden: float) -> None:
    tensors = inputs(nodes, scale=scale)
    mask = torch.rand(2, nodes, generator=torch.Generator().manual_seed(nodes)) >= hidden
    found, expected = (
        outputs_and_gradients(tensors, negative_slope=slope, method=method, mask=mask) for method in ("sorted", "dense")
    )
    assert_close(found, expected, 1e-11)


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda numbers: numbers,
    "ties": torch.round,
    "positive": torch.abs,
    "negative": lambda numbers: -numbers.abs(),
}


def vectors_of_some_length(nodes: int, scale: float, sign: str, dim: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    query, key = (SIGNS[sign](torch.randn(1, 1, nodes, generator=generator) * scale) for _ in "qk")
    return leaves((query, key, torch.randn(1, 1, nodes, dim, generator=generator)), torch.float32)


# In each of these cases one or two keys had all the weight, and by chance their gradient was a thousandth of the sums
# whose difference it is: summed in fp32, it was off by up to 4e-6.
HARD = [
    (2000, 10.0, "mixed", 16, 2000),
    (2000, 10.0, "ties", 16, 2000),
    (1000, 100.0, "ties", 16, 150),
    (700, 30.0, "positive", 16, 171),
    (2000, 30.0, "positive", 16, 315),
]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("nodes", "scale", "sign", "dim", "seed"), HARD)
def test_a_key_gradient_far_below_its_parts(
    nodes: int, scale: float, sign: str, dim: int, seed: int, graph: bool
) -> None:
    single = vectors_of_some_length(nodes, scale, sign, dim, seed)
    dense = outputs_and_gradients(leaves(single, torch.float64), method="dense")
    assert_close(outputs_and_gradients(single, method="sorted", create_graph=graph), dense, 3e-7)


@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("sign", ["mixed", "positive", "negative"])
def test_float32_with_long_vectors(sign: str, scale: float, dim: int) -> None:
    single = vectors_of_some_length(2000, scale, sign, dim, seed=int(scale))
    dense = outputs_and_gradients(leaves(single, torch.float64), method="dense")
    assert_close(outputs_and_gradients(single, method="sorted"), dense, 3e-7)


# Derivatives.


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_gradients_of_both_orders(slope: float) -> None:
    query, key, value = (tensor[:, 0, :7].detach() for tensor in inputs(8))
    key[1, 4] = 1000.0  # masked, and more than exp can take
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, True, True]])

    def attend(*tensors: Tensor) -> Tensor:
        return sorted_attention.sorted_attention(*tensors, mask, slope)

    tensors = leaves((query, key, value), torch.float64)
    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gradients_of_some_tensors_alone(places: tuple[int, ...]) -> None:
    tensors = [tensor[:, :1, :6].detach() for tensor in inputs(8)]
    for place in places:
        tensors[place].requires_grad_()
    outputs = graph_attention(*tensors, method="sorted")
    wanted = [tensors[place] for place in places]
    plain, graphed = (
        torch.autograd.grad(outputs.square().sum(), wanted, retain_graph=True, create_graph=graph)
        for graph in (False, True)
    )
    torch.testing.assert_close(graphed, plain)
    assert torch.autograd.gradgradcheck(lambda *_: graph_attention(*tensors, method="sorted"), wanted)


def test_gradients_with_a_graph_are_as_precise_in_float32() -> None:
    query, key, value = inputs(1000)
    single = leaves((query, key, value + 10), torch.float32)
    dense = outputs_and_gradients(leaves(single, torch.float64), method="dense")
    assert_close(outputs_and_gradients(single, method="sorted", create_graph=True), dense, 3e-7)


def test_half_precision_is_summed_in_float32() -> None:
    exact = inputs(300, dtype=torch.bfloat16)
    rounded = leaves(exact, torch.float64)
    upstream = torch.randn(2, 2, 300, 4, generator=torch.Generator().manual_seed(9)).bfloat16()
    outputs = graph_attention(*exact, method="sorted")
    expected = graph_attention(*rounded, method="dense")
    pairs = [(outputs, expected)]
    pairs += zip(
        torch.autograd.grad(outputs, exact, upstream),
        torch.autograd.grad(expected, rounded, upstream.double()),
        strict=True,
    )
    for found, precise in pairs:
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), precise, rtol=2**-8, atol=1e-5)


# Rows, layouts, sizes.


@pytest.mark.parametrize(("numbers", "rows"), [(40 * 20 * 3, [3, 1]), (40 * 8 * 2, [2, 2]), (1, [1, 1, 1, 1])])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int, rows: list[int]) -> None:
    tensors, found = inputs(40, dim=20), []
    expected = outputs_and_gradients(tensors, method="sorted")
    for name in ("_cut", "_differentiate"):
        original = getattr(sorted_attention, name)

        def spy(*args: Any, original: Callable[..., Any] = original, **options: Any) -> Any:
            found.append(len(args[0]))
            return original(*args, **options)

        monkeypatch.setattr(sorted_attention, name, spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(running_sums, "_CHUNK_NUMBERS", numbers)
    monkeypatch.setattr(running_sums, "_MOST_COLUMNS", 8 if numbers < 40 * 20 else 20)
    assert_close(outputs_and_gradients(tensors, method="sorted"), expected, 1e-14)
    assert found == 2 * rows


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
        outputs_and_gradients(tensors, method="sorted")
    assert largest <= 2 * 2049 * 4 * 8  # bytes of all nodes' vectors in fp64, and of the 0 that a running sum starts at


@pytest.mark.parametrize("batch", [1, 2])
def test_no_layout_is_warned_of(batch: int) -> None:
    module, nodes = GraphAttention(8, 2, method="sorted"), torch.randn(batch, 50, 8, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = torch.autograd.grad(module(nodes).square().sum(), nodes, create_graph=True)
        gradient.square().sum().backward()


@pytest.mark.parametrize("method", ["dense", "sorted"])
@pytest.mark.parametrize(("batch", "heads", "queries", "dim"), [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4), (2, 2, 5, 0)])
def test_empty_tensors_give_empty_outputs(method: str, batch: int, heads: int, queries: int, dim: int) -> None:
    shapes = [(batch, heads, queries), (batch, heads, 7), (batch, heads, 7, dim)]
    tensors = tuple(torch.ones(shape, requires_grad=True) for shape in shapes)
    outputs, *gradients = outputs_and_gradients(tensors, method=method, mask=torch.ones(batch, 7, dtype=torch.bool))
    assert outputs.shape == (batch, heads, queries, dim)
    assert [gradient.shape for gradient in gradients] == shapes
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("method", ["auto", "dense", "sorted"])
def test_a_layer_takes_no_images(method: str) -> None:
    assert GraphAttention(8, 2, method=method)(torch.ones(0, 50, 8)).shape == (0, 50, 8)


# Transforms of torch.func, and torch.export.


def attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, method: str) -> Tensor:
    seen = None if mask is None else mask[None]
    return graph_attention(query[None], key[None], value[None], method=method, mask=seen)[0]


@pytest.mark.parametrize("hidden", [False, True])
def test_torch_func_goes_through_sorting(hidden: bool) -> None:
    query, key, value = (tensor.detach() for tensor in inputs(30))
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) < 0.6 if hidden else None

    def results(method: str) -> list[Tensor]:
        def attend(*tensors: Tensor) -> Tensor:
            return graph_attention(*tensors, method=method, mask=mask)

        def loss(one_key: Tensor) -> Tensor:
            return attend(query, one_key, value).square().sum()

        over = (0, 0, 0, None if mask is None else 0, None)
        return [
            torch.func.grad(loss)(key),
            torch.func.jvp(attend, (query, key, value), (key, value[..., 0], value.cos()))[1],
            torch.func.hessian(loss)(key),
            torch.func.vmap(attend_one, over)(query, key, value, mask, method),
        ]

    for found, expected in zip(results("sorted"), results("dense"), strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_of_single_images_where_auto_sorts() -> None:
    torch.manual_seed(0)
    layer, nodes = GraphAttention(8, 2), torch.randn(2, 1100, 8)
    assert is_faster_sorted(torch.empty(1, 2, 1100), torch.empty(1, 2, 1100, 4))
    weights = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(layer, parameters, (image[None],))
        return outputs.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, nodes)
    for index, image in enumerate(nodes):
        expected = torch.autograd.grad(loss(weights, image), [*weights.values()])
        for name, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 exports no attention by sorting")
@pytest.mark.parametrize(("method", "strict"), [("sorted", True), ("auto", False)])
def test_the_batch_of_an_exported_layer_is_free(method: str, strict: bool) -> None:
    layer: nn.Module = GraphAttention(8, 2, method=method)
    nodes = torch.randn(3, 700, 8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(layer, (nodes,), dynamic_shapes=shapes, strict=strict)
    assert "searchsorted" in str(program.graph)  # few pairs in one image, many in a batch: sorted for any
    for count in (1, 3, 5):
        torch.testing.assert_close(
            program.module()(nodes[:1].expand(count, -1, -1)), layer(nodes[:1]).expand(count, -1, -1)
        )


# What "auto" goes by.


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "nodes", "dim", "faster"),
    [
        (2, 8, 416, 416, 64, True),
        (2, 8, 415, 416, 64, False),
        (2, 8, 416, 415, 64, False),
        (1, 8, 1, 4096, 64, False),  # one query reads each key once
        (2, 1, 1024, 1024, 64, True),
        (1, 1, 1024, 1024, 64, False),  # too few pairs
        (1, 1, 420, 4096, 64, False),
        (8, 1, 1024, 1024, 512, False),
        (8, 1, 1088, 1088, 512, True),
    ],
)
def test_long_vectors_and_few_queries_are_left_dense(
    batch: int, heads: int, queries: int, nodes: int, dim: int, faster: bool
) -> None:
    query, value = torch.zeros(batch, heads, queries), torch.zeros(1).expand(batch, heads, nodes, dim)
    assert is_faster_sorted(query, value) is faster


def test_the_fewest_nodes_grow_with_the_vectors() -> None:
    assert [fewest_nodes(dim) for dim in (1, 64, 512)] == [321, 416, 1088]
