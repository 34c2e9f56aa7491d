"""Attention by sorting: equal to the dense way in both precisions, differentiable as often, without the pairs."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.models import GraphAttention, graph_attention, sorted_attention
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


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, rows = inputs(40), []
    expected = outputs_and_gradients(tensors, method="sorted")
    for name in ("_attend", "_differentiate"):
        original = getattr(sorted_attention, name)

        def spy(*args: Tensor, original: Attend = original, **options: float) -> Tensors:
            rows.append(len(args[0]))
            return original(*args, **options)

        monkeypatch.setattr(sorted_attention, name, spy)
    monkeypatch.setattr(sorted_attention, "_CHUNK_NUMBERS", 40 * 4 * 3)
    assert_close(outputs_and_gradients(tensors, method="sorted"), expected, 1e-14)
    assert rows == [3, 1, 3, 1]


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
    assert largest <= 2 * 2048 * 4 * 8  # bytes of all nodes' vectors in fp64, as the test draws them


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
