"""Whatever the sizes, it works or says what is wrong: loaders, transforms, schedules, windows, attention."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit import transforms as t
from cifarkit.data import ImageDataset, Loader
from cifarkit.models import GraphAttention, SelfAttention, graph_attention
from cifarkit.seeding import Draws
from cifarkit.training import schedules
from cifarkit.training.accumulation import AccumulationPlan

# Loaders.


def numbered(count: int) -> ImageDataset:
    """A dataset whose labels tell the samples apart."""
    return ImageDataset(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count), [f"{index}" for index in range(count)])


def labels(loader: Loader) -> list[list[int]]:
    return [batch.tolist() for _, batch in loader]


def by_hand(images: Tensor) -> Tensor:
    """A transform that needs no thread, which would cost more than the rest of the test."""
    return images


loaders = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 9), "shuffle": st.booleans(), "seed": st.integers(-(2**40), 2**70)}
)


@settings(max_examples=60, deadline=None)
@given(loaders, st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.data())
def test_ranks_see_each_sample_once_and_a_resumed_loader_goes_on(
    options: dict[str, Any], count: int, world_size: int, epoch: int, data: st.DataObject
) -> None:
    if count < world_size:
        return
    seen = []
    for rank in range(world_size):
        whole, broken, resumed = (
            Loader(numbered(count), transform=by_hand, rank=rank, world_size=world_size, **options) for _ in range(3)
        )
        whole.epoch = broken.epoch = epoch
        expected, iterator = labels(whole), iter(broken)
        used = [next(iterator)[1].tolist() for _ in range(data.draw(st.integers(0, len(expected) - 1)))]
        resumed.load_state_dict(broken.state_dict())
        assert used + labels(resumed) == expected
        assert resumed.epoch == whole.epoch == epoch + 1
        seen += [label for batch in expected for label in batch]
    assert sorted(seen) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_position_moves_to_other_batch_sizes_and_ranks_or_is_refused(
    count: int, before: int, after: int, ranks_before: int, ranks_after: int, data: st.DataObject
) -> None:
    if count < max(ranks_before, ranks_after):
        return
    first = Loader(numbered(count), before, world_size=ranks_before)
    state = first.state_dict() | {"samples": data.draw(st.sampled_from(first._bounds))}
    second = Loader(numbered(count), after, world_size=ranks_after)
    try:
        second.load_state_dict(state)
    except ValueError as error:
        assert "falls inside a batch" in str(error)  # noqa: PT017  (no error is allowed too)
        return
    assert second.state_dict()["samples"] == state["samples"]


# Transforms.


TRANSFORMS = st.sampled_from(
    [
        t.RandomCrop(8, 2),
        t.RandomCrop((5, 9), 40, "symmetric"),
        t.RandomCrop(32, 4, "edge"),
        t.RandomCrop(8, 3, "constant", fill=(0.1, 0.2, 0.3)),
        t.RandomHorizontalFlip(),
        t.AlternatingFlip(),
        t.RandomRotation(180),
        t.RandomRotation(30, interpolation="bilinear", fill=(0.1, 0.2, 0.3)),
        t.Resize(7),
        t.Resize((3, 40)),
        t.ColorJitter(0.5, 0.5, 0.5),
        t.Cutout(1),
        t.Cutout(50, fill=(0.1, 0.2, 0.3)),
        t.TrivialAugment(),
        t.TrivialAugment(wide=False),
        t.Normalize(0.5, 0.25),
        t.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
        t.Compose([t.RandomCrop(8, 4), t.AlternatingFlip(), t.TrivialAugment(), t.Cutout(4), t.Normalize(0.5, 0.25)]),
        t.Compose([t.Resize(6), t.RandomRotation(20), t.ColorJitter(0.2, 0.2, 0.2)]),
    ]
)
DTYPES = st.sampled_from(
    [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
SIDES = st.one_of(st.sampled_from([1, 2, 3, 8]), st.integers(1, 40))


def images_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 256 if dtype == torch.uint8 else 2, shape).to(dtype)


@settings(max_examples=120, deadline=None)
@given(TRANSFORMS, st.integers(0, 2), st.integers(1, 4), SIDES, SIDES, DTYPES)
def test_a_transform_works_or_names_what_is_wrong(
    transform: t.Transform, count: int, channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    images = images_of((count, channels, height, width), dtype)
    try:
        result = transform(images, Draws(0, 0, torch.arange(count)))
    except (ValueError, TypeError) as error:
        named = ("images", "size", "padding", "fill", "mean", "draws")
        assert any(name in str(error) for name in named), error  # noqa: PT017  (no error is allowed too)
        return
    assert result.shape[:2] == images.shape[:2]
    assert dtype in (torch.uint8, *(torch.float16, torch.bfloat16, torch.float32, torch.float64))
    assert not result.is_floating_point() or bool(result.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_resized_as_floats(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 9, 9).to(dtype)
    resized = t.Resize(7)(images)
    assert resized.dtype == dtype
    assert torch.equal(resized, t.Resize(7)(images.float()).to(dtype))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), SIDES, SIDES, st.sampled_from([torch.uint8, torch.float16, torch.float32]))
def test_an_empty_batch_is_resized_to_one(channels: int, height: int, width: int, dtype: torch.dtype) -> None:
    resized = t.Resize((5, 6))(torch.zeros(0, channels, height, width, dtype=dtype))
    assert resized.shape == (0, channels, 5, 6)
    assert resized.dtype == dtype


@pytest.mark.parametrize("size", [7, (1, 1)])
@pytest.mark.parametrize("shape", [(1, 0, 1, 1), (1, 3, 0, 0), (0, 3, 0, 4)])
def test_empty_images_are_named_by_resize(shape: tuple[int, ...], size: Any) -> None:
    with pytest.raises(ValueError, match=r"images has shape .*; give at least one channel and one pixel"):
        t.Resize(size)(torch.zeros(shape))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([t.Mixup(0.2), t.CutMix(1.0)]), st.integers(0, 3), st.integers(1, 4), SIDES, SIDES, DTYPES)
def test_mixing_works_or_names_what_is_wrong(
    mix: Any, count: int, channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    images, classes = images_of((count, channels, height, width), dtype), torch.arange(count) % 3
    try:
        mixed, targets = mix(images, classes, 3, Draws(0, 0, torch.arange(count)))
    except (ValueError, TypeError) as error:
        assert "images" in str(error)  # noqa: PT017  (no error is allowed too)
        return
    assert mixed.shape == images.shape
    assert torch.allclose(targets.float().sum(1), torch.ones(count))


@settings(max_examples=60, deadline=None)
@given(TRANSFORMS, st.lists(st.integers(1, 4), max_size=6))
def test_images_of_any_shape_work_or_are_named(transform: t.Transform, shape: list[int]) -> None:
    try:
        transform(torch.rand(*shape), None)
    except (ValueError, TypeError) as error:
        named = ("images", "size", "padding", "fill", "mean", "draws")
        assert any(name in str(error) for name in named), error  # noqa: PT017  (no error is allowed too)


# Schedules and windows.


fractions = st.floats(0, 0.999)
SCHEDULES = st.one_of(
    st.just(schedules.constant()),
    fractions.map(schedules.cosine),
    fractions.map(schedules.one_cycle),
    st.floats(1e-6, 0.999999).map(schedules.triangle),
    st.lists(st.floats(1e-6, 0.999999), max_size=4).map(schedules.multistep),
)


@given(SCHEDULES, st.floats(0, 1))
def test_a_schedule_is_finite_and_in_bounds(schedule: Callable[[float], float], progress: float) -> None:
    assert math.isfinite(schedule(progress))
    assert -1e-9 <= schedule(progress) <= 1 + 1e-9


@pytest.mark.parametrize("build", [schedules.cosine, schedules.one_cycle, schedules.triangle])
@given(value=st.one_of(st.just(math.nan), st.just(math.inf), st.floats(max_value=-1e-9), st.floats(min_value=1)))
def test_a_fraction_out_of_range_is_named(build: Any, value: float) -> None:
    with pytest.raises(ValueError, match=r"(warmup|peak)=.* must"):
        build(value)


plans = st.one_of(st.integers(1, 9), st.dictionaries(st.integers(0, 8), st.integers(1, 9), max_size=4))


@given(plans, st.integers(1, 50), st.integers(0, 9), st.one_of(st.none(), st.integers(0, 100)))
def test_windows_cover_every_batch_once(plan: Any, batches: int, epochs: int, max_steps: int | None) -> None:
    windows = AccumulationPlan(plan)
    for epoch in range(epochs):
        factor, updates = windows.factor(epoch), windows.updates(batches, epoch)
        assert (updates - 1) * factor < batches <= updates * factor
    total = sum(windows.updates(batches, epoch) for epoch in range(epochs))
    assert windows.total_updates(batches, epochs, max_steps) == min(total, total if max_steps is None else max_steps)


@settings(max_examples=30)
@given(st.one_of(st.integers(max_value=0), st.floats(), st.booleans(), st.text(max_size=3), st.none()))
def test_a_window_that_is_no_number_of_batches_is_named(plan: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="accumulate_grad_batches"):
        AccumulationPlan(plan)


# Attention.


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.integers(0, 2), st.integers(0, 20), st.integers(1, 4), st.integers(1, 6), st.data())
def test_attention_of_any_size_works_or_is_named(
    graph: bool, count: int, nodes: int, heads: int, width: int, data: st.DataObject
) -> None:
    dim = data.draw(st.sampled_from([heads * width, heads * width + 1]))
    try:
        attention = (GraphAttention if graph else SelfAttention)(dim, heads)
        given_nodes = torch.randn(count, nodes, dim)
        result, weights = attention(given_nodes), attention.weights(given_nodes)
    except ValueError as error:
        assert any(name in str(error) for name in ("heads", "nodes")), error  # noqa: PT017  (no error is allowed too)
        return
    assert result.shape == (count, nodes, dim)
    assert result.isfinite().all()
    assert torch.allclose(weights.sum(-1), torch.ones(count, heads, nodes), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.floats(0, 1))
def test_both_ways_of_graph_attention_agree(
    count: int, heads: int, queries: int, keys: int, width: int, slope: float
) -> None:
    query, key = torch.randn(count, heads, queries).double(), torch.randn(count, heads, keys).double()
    value = torch.randn(count, heads, keys, width).double()
    ways = [graph_attention(query, key, value, negative_slope=slope, method=way) for way in ("dense", "sorted")]
    assert torch.allclose(*ways, atol=1e-9)
    assert ways[0].shape == (count, heads, queries, width)
