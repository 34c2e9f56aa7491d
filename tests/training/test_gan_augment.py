"""Differentiable augmentation: what it does to pixels, gradients through it, draws of each image, and mistakes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.training.tasks.gan_augment import DifferentiableAugmentation, cut_out, translate


def pictures(count: int = 64, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(count: int = 64, first: int = 0) -> Draws:
    return Draws(0, 0, torch.arange(first, first + count))


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image and fill with 0, the plain way."""
    result = torch.zeros_like(image)
    height, width = image.shape[1:]
    for row in range(max(0, down), min(height, height + down)):
        for column in range(max(0, right), min(width, width + right)):
            result[:, row, column] = image[:, row - down, column - right]
    return result


def test_translation_moves_whole_images_and_fills_with_zero() -> None:
    images, seen = pictures(), set()
    for before, after in zip(images, translate(images, draws(), 0.25), strict=True):
        fits = [(y, x) for y in range(-2, 3) for x in range(-2, 3) if torch.equal(after, shifted(before, y, x))]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 15  # of 25


def test_cutout_blanks_a_square_that_may_reach_over_the_edge() -> None:
    blanked = (cut_out(pictures(), draws(), 0.5) == 0).all(1)  # (B, H, W)
    areas = blanked.sum((1, 2))
    assert areas.max() == 16
    assert areas.min() < 16
    for mask in blanked:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        assert 2 <= min(rows, columns) <= max(rows, columns) <= 4


def test_colour_is_affine_in_the_pixels_and_keeps_their_order_in_place() -> None:
    images = pictures()
    changed = DifferentiableAugmentation(["color"])(images, draws())
    brightness, saturation, contrast = draws().uniform(3).T[:, :, None, None, None]
    brighter = images + brightness - 0.5
    grey = brighter.mean(1, keepdim=True)
    saturated = (brighter - grey) * saturation * 2 + grey
    mean = saturated.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(changed, (saturated - mean) * (contrast + 0.5) + mean)


def test_an_image_does_not_depend_on_its_batch() -> None:
    augment, images = DifferentiableAugmentation(), pictures()
    halves = [augment(images[a : a + 32], draws(32, a)) for a in (0, 32)]
    assert torch.equal(augment(images, draws()), torch.cat(halves))
    assert not torch.equal(augment(images, draws()), augment(images, draws(first=1)))


def test_gradients_pass_through() -> None:
    images = pictures(4).double().float().requires_grad_()
    augment = DifferentiableAugmentation(translation=0.5, cutout=0.25)
    augment(images, draws(4)).square().sum().backward()
    assert images.grad is not None
    assert all(gradient.any() for gradient in images.grad)
    assert not DifferentiableAugmentation(["cutout"], cutout=1.0)(images, draws(4)).isnan().any()


def test_pixels_are_not_rounded_under_autocast() -> None:
    images = pictures()
    plain = DifferentiableAugmentation()(images, draws())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DifferentiableAugmentation()(images, draws()), plain)


def test_kinds_can_be_left_out() -> None:
    assert torch.equal(DifferentiableAugmentation([])(pictures(), draws()), pictures())
    assert repr(DifferentiableAugmentation(["cutout", "color"])).startswith("DifferentiableAugmentation(('color', 'cut")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("colour",)}, r"kinds=\('colour',\) must be a tuple of some of 'color', 'translation', 'cutout'"),
        ({"kinds": "color"}, "kinds='color' must be a tuple"),
        ({"kinds": 3}, "kinds=3 must be a tuple"),
        ({"translation": -0.1}, "translation=-0.1 must be at least 0 and at most 1"),
        ({"cutout": 2}, "cutout=2 must be at least 0 and at most 1"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifferentiableAugmentation(**arguments)
