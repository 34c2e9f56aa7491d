"""The call every transform shares: both dtypes, any shape, draws keyed by sample, bad input named."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.transforms import (
    AlternatingFlip,
    ColorJitter,
    Compose,
    Cutout,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    Resize,
    Transform,
    TrivialAugment,
)
from cifarkit.transforms.base import to_dtype, to_float

ALL = [
    RandomCrop(8, padding=2),
    RandomCrop((6, 9), padding=3, mode="constant", fill=0.2),
    RandomHorizontalFlip(),
    AlternatingFlip(),
    RandomRotation(30),
    RandomRotation(30, interpolation="bilinear", fill=0.3),
    ColorJitter(0.4, 0.4, 0.4),
    Cutout(4),
    TrivialAugment(),
    Resize((7, 12)),
    Normalize(0.4, 0.2),
    Compose([RandomCrop(8, 2), RandomHorizontalFlip(), RandomRotation(20), Cutout(3)]),
]


def photos(count: int, channels: int = 3, height: int = 10, width: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("transform", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_both_dtypes_give_the_same_picture(transform: Transform, channels: int) -> None:
    images = photos(24, channels)
    from_bytes = transform(images, Draws(1, 2, torch.arange(24)))
    from_floats = transform(to_float(images), Draws(1, 2, torch.arange(24)))
    assert from_floats.dtype == torch.float32
    assert from_bytes.dtype == (torch.float32 if isinstance(transform, Normalize) else torch.uint8)
    difference = (to_float(from_bytes) - from_floats).abs()
    assert difference.max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("transform", ALL, ids=repr)
@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(transform: Transform, count: int) -> None:
    result = transform(photos(count))
    assert result.shape[:2] == (count, 3)
    assert result.shape[2:] == transform(photos(2)).shape[2:]


@pytest.mark.parametrize("transform", ALL, ids=repr)
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(list(range(12))), size=st.integers(1, 12))
def test_a_sample_does_not_depend_on_its_batch(transform: Transform, order: list[int], size: int) -> None:
    images, samples = photos(12), torch.arange(100, 112)
    chosen = torch.tensor(order[:size])
    whole = transform(images, Draws(7, 3, samples))
    part = transform(images[chosen], Draws(7, 3, samples[chosen]))
    assert torch.equal(part, whole[chosen])


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_input_is_left_alone(transform: Transform) -> None:
    for images in (photos(6), to_float(photos(6))):
        before = images.clone()
        transform(images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_a_fixed_transform_does_not_depend_on_the_draws(transform: Transform) -> None:
    images, samples = photos(24), torch.arange(24)
    epochs = [transform(images, Draws(0, epoch, samples)) for epoch in range(2)]
    assert transform.fixed == torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_any_memory_layout(transform: Transform) -> None:
    images, samples = photos(6), torch.arange(6)
    result = transform(images.contiguous(memory_format=torch.channels_last), Draws(0, 0, samples))
    assert torch.equal(result, transform(images, Draws(0, 0, samples)))


def test_without_draws_the_global_seed_decides() -> None:
    transform, images = RandomCrop(8), photos(32)
    torch.manual_seed(5)
    first, second = transform(images), transform(images)
    torch.manual_seed(5)
    assert torch.equal(first, transform(images))
    assert not torch.equal(first, second)


def test_bytes_survive_the_way_through_floats() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_dtype(to_float(values), torch.uint8), values)


def test_repr_names_the_settings() -> None:
    assert repr(RandomHorizontalFlip(0.25)) == "RandomHorizontalFlip(p=0.25)"
    assert repr(RandomCrop(32)) == "RandomCrop(size=(32, 32), padding=4, mode='reflect', fill=0.0)"
    assert repr(copy.deepcopy(AlternatingFlip())) == "AlternatingFlip()"


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_bad_images_are_named(transform: Transform) -> None:
    with pytest.raises(ValueError, match=r"images has shape \(3, 8, 8\); give \(B, C, H, W\)"):
        transform(torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match=r"images has dtype torch.int64; give uint8"):
        transform(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="images is a list; give a tensor"):
        transform([1, 2])  # type: ignore[arg-type]


def test_draws_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="draws is for 3 samples and images holds 4"):
        RandomHorizontalFlip()(photos(4), Draws(0, 0, torch.arange(3)))


def test_fill_is_checked() -> None:
    with pytest.raises(ValueError, match=r"fill=128 must be at least 0 and at most 1; a byte such as 128 is 128 / 255"):
        RandomRotation(10, fill=128)
    with pytest.raises(TypeError, match="fill='grey' is a str; give a number"):
        Cutout(2, fill="grey")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has 2 values and images has 3 channels"):
        Cutout(2, fill=(0.1, 0.2))(photos(2))
