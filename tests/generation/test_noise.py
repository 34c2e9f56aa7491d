"""One stream an image: a function of seed, class, index and attempt, shared by no two images."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarkit.diffusion import draw_noise
from cifarkit.generation import SampleGenerators, image_generator
from cifarkit.generation.noise import _mix


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


@given(st.integers(-(2**70), 2**70), st.integers(0, 1023), st.integers(0, 2**22 - 1), st.integers(0, 50))
def test_a_stream_is_a_function_of_its_numbers(seed: int, label: int, index: int, attempt: int) -> None:
    first, again = (image_generator(seed, label, index, attempt) for _ in range(2))
    assert numbers(first) == numbers(again)
    assert numbers(image_generator(seed, label, index, attempt + 1)) != numbers(first)
    assert numbers(image_generator(seed + 1, label, index, attempt)) != numbers(image_generator(seed, label, index))


def test_no_two_images_share_a_stream() -> None:
    seeds = {image_generator(3, label, index).initial_seed() for label in range(10) for index in range(3000)}
    assert len(seeds) == 30_000


@given(st.integers(0, 2**32 - 1))
def test_mixing_can_be_undone(value: int) -> None:
    def unshift(mixed: int, by: int) -> int:
        original = mixed
        for _ in range(32 // by + 1):
            original = mixed ^ original >> by
        return original

    mixed = unshift(_mix(value), 16) * pow(0xC2B2AE35, -1, 2**32) & 0xFFFFFFFF
    mixed = unshift(mixed, 13) * pow(0x85EBCA6B, -1, 2**32) & 0xFFFFFFFF
    assert unshift(mixed, 16) == value


def make(count: int = 3) -> SampleGenerators:
    return SampleGenerators([image_generator(0, 0, index) for index in range(count)])


def test_it_is_a_sequence_of_generators() -> None:
    generators = make()
    assert isinstance(generators, Sequence)
    assert len(generators) == len(list(generators)) == 3
    assert numbers(generators[1]) == numbers(image_generator(0, 0, 1))
    assert all(type(item) is torch.Generator for item in generators[:2])
    with pytest.raises(IndexError):
        generators[3]


def test_each_row_is_drawn_from_its_own_generator() -> None:
    rows = make().normal(2, 4)
    assert rows.shape == (3, 2, 4)
    assert torch.equal(rows[2], torch.randn(2, 4, generator=image_generator(0, 0, 2)))
    assert torch.equal(make(2).normal(2, 4), rows[:2])


def test_the_noise_does_not_depend_on_the_default_dtype_and_device() -> None:
    expected = make().normal(2, 4)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = make().normal(2, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_it_is_a_generator_for_the_whole_batch() -> None:
    assert numbers(make()) == numbers(make())
    assert numbers(make()) != numbers(image_generator(0, 0, 0))


def test_samplers_draw_each_sample_from_its_own_stream() -> None:
    streams = [image_generator(0, label, 3) for label in range(3)]
    expected = [torch.randn(1, 2, 2, generator=image_generator(0, label, 3)) for label in range(3)]
    assert torch.equal(draw_noise((3, 1, 2, 2), SampleGenerators(streams)), torch.stack(expected))


def test_a_place_that_has_no_stream_is_named() -> None:
    with pytest.raises(ValueError, match="label=1024 must be at least 0 and below 1024"):
        image_generator(0, 1024, 0)
    with pytest.raises(ValueError, match="index=-1 must be at least 0"):
        image_generator(0, 0, -1)
    with pytest.raises(TypeError, match=r"index=5\.0 is a float; give an integer"):
        image_generator(0, 0, 5.0)  # type: ignore[arg-type]


def test_what_is_no_sequence_of_generators_is_named() -> None:
    for wrong in ([], [3]):
        with pytest.raises(TypeError, match=r"generators must be one torch\.Generator a sample, at least one; got"):
            SampleGenerators(wrong)  # type: ignore[arg-type]
