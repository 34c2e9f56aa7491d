"""Colour: torchvision's values for the same factors, and its normalisation."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.transforms import ColorJitter, Normalize
from cifarkit.transforms.base import to_float
from cifarkit.transforms.color import adjust_brightness, adjust_contrast, adjust_saturation

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def photos(count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 9, 12), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness, TF.adjust_brightness),
        (adjust_contrast, TF.adjust_contrast),
        (adjust_saturation, TF.adjust_saturation),
    ],
)
def test_adjustments_equal_torchvision(ours: object, theirs: object, channels: int) -> None:
    images, factors = to_float(photos(8, channels)), torch.linspace(0, 1.9, 8)
    expected = torch.stack([theirs(images[i], factors[i].item()) for i in range(8)])  # type: ignore[operator]
    torch.testing.assert_close(ours(images, factors), expected, atol=1e-6, rtol=0)  # type: ignore[operator]


def test_jitter_is_brightness_then_contrast_then_saturation() -> None:
    images, jitter = to_float(photos(10)), ColorJitter(0.4, 0.3, 0.2)
    factors = jitter.parameters(Draws(0, 0, torch.arange(10)), 9, 12)
    for i, (brightness, contrast, saturation) in enumerate(factors.tolist()):
        expected = TF.adjust_brightness(images[i], brightness)
        expected = TF.adjust_saturation(TF.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(jitter.apply(images, factors)[i], expected, atol=1e-6, rtol=0)


def test_jitter_factors_fill_their_range() -> None:
    factors = ColorJitter(0.4, 0.0, 3.0).parameters(Draws(0, 0, torch.arange(20_000)), 9, 12)
    assert factors.amin(0).tolist() == pytest.approx([0.6, 1, 0], abs=0.01)
    assert factors.amax(0).tolist() == pytest.approx([1.4, 1, 4], abs=0.01)
    assert factors.mean(0).tolist() == pytest.approx([1, 1, 2], abs=0.05)


def test_jitter_of_nothing_is_the_image() -> None:
    assert torch.equal(ColorJitter()(photos(3)), photos(3))


def test_jitter_errors() -> None:
    with pytest.raises(ValueError, match="contrast=-1 must be at least 0"):
        ColorJitter(contrast=-1)
    with pytest.raises(TypeError, match=r"brightness=\(0.8, 1.2\) is a tuple; give a number"):
        ColorJitter((0.8, 1.2))  # type: ignore[arg-type]


def test_normalize_equals_torchvision() -> None:
    images = photos(5)
    expected = TF.normalize(to_float(images), list(MEAN), list(STD))
    assert torch.equal(Normalize(MEAN, STD)(to_float(images)), expected)
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_value_serves_all_channels(channels: int) -> None:
    images = to_float(photos(2, channels))
    torch.testing.assert_close(Normalize(0.5, 0.25)(images), (images - 0.5) / 0.25)


def test_normalize_errors() -> None:
    with pytest.raises(ValueError, match=r"std=0\.0 must be above 0"):
        Normalize(MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match=r"mean=125\.3 must be at least 0 and at most 1"):
        Normalize((125.3, 123.0, 113.9), STD)
    with pytest.raises(ValueError, match="mean has 3 values and std has 2"):
        Normalize(MEAN, (0.2, 0.2))
    with pytest.raises(ValueError, match="mean has 3 values and images has 1 channels; give one for each"):
        Normalize(MEAN, STD)(photos(1, 1))
    with pytest.raises(TypeError, match=r"mean='0\.5' is a str; give a number"):
        Normalize("0.5", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"std=\(\) is empty; give a number, or one for each channel"):
        Normalize(0.5, ())


def test_arrays_and_tensors_serve_as_numbers() -> None:
    images = photos(2)
    converters: list[Any] = [np.array, torch.tensor]
    for convert in converters:
        assert torch.equal(Normalize(convert(MEAN), convert(0.25))(images), Normalize(MEAN, 0.25)(images))
