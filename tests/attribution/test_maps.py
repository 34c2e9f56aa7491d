"""Maps in [0, 1], overlays, and the rules for zero maps and negative images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cifarkit.attribution import heatmap, overlay, signed_heatmap, visible_images

MAPS = torch.tensor([[[[1.0, -4.0], [0.0, 2.0]]], [[[0.5, 0.0], [0.0, 0.0]]]])  # (2, 1, 2, 2)


def test_channels_add_up_and_the_largest_becomes_one() -> None:
    three = torch.cat([MAPS, MAPS, -MAPS], dim=1)
    expected = torch.tensor([[[0.25, -1.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(signed_heatmap(three, outliers=0), expected)
    torch.testing.assert_close(signed_heatmap(MAPS[:, 0], outliers=0), expected)
    torch.testing.assert_close(heatmap(three, outliers=0), expected.abs())


def test_signs_can_be_told_apart() -> None:
    assert heatmap(MAPS, sign="positive", outliers=0)[0].tolist() == [[0.25, 0], [0, 0.5]]
    assert heatmap(MAPS, sign="negative", outliers=0)[0].tolist() == [[0, 1], [0, 0]]


def test_one_scale_makes_maps_comparable() -> None:
    assert heatmap(MAPS, scale="batch", outliers=0)[1].max() == 0.125
    assert heatmap(MAPS, scale=2)[0].tolist() == [[0.5, 1], [0, 1]]


def test_outliers_do_not_darken_the_rest() -> None:
    maps = torch.full((1, 1, 10, 10), 0.5)
    maps[0, 0, 0, 0] = 1e6
    assert heatmap(maps).min() == 1
    assert heatmap(maps, outliers=0).median() < 1e-6
    maps = torch.zeros(1, 1, 10, 10)
    maps[0, 0, 0, 0] = 3  # all that is there
    assert heatmap(maps, outliers=0.1).max() == 1


@pytest.mark.parametrize("scale", ["image", "batch", 1.0])
def test_a_zero_map_stays_zero(scale: Any) -> None:
    assert not heatmap(torch.zeros(2, 3, 4, 4), scale=scale).any()


def test_tiny_values_are_values() -> None:
    torch.testing.assert_close(heatmap(MAPS * 1e-40, outliers=0), heatmap(MAPS, outliers=0), rtol=1e-2, atol=1e-3)


def test_overlay_is_grey_where_nothing_counts_red_for_and_blue_against() -> None:
    images = torch.full((2, 3, 2, 2), 0.5)
    result = overlay(images, MAPS, outliers=0, opacity=1)
    assert result.shape == (2, 3, 2, 2)
    assert result[0, :, 1, 0].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert result[0, 0, 1, 1] > result[0, 2, 1, 1]
    assert result[0, 2, 0, 1] > result[0, 0, 0, 1]
    assert overlay(images[:, :1], MAPS).shape == (2, 3, 2, 2)
    assert torch.equal(overlay(images, MAPS * 0), overlay(images, MAPS, opacity=0))


def test_images_are_shown_as_they_are_unnormalised_or_stretched() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(visible_images(images), images)
    torch.testing.assert_close(visible_images((images * 255).round().to(torch.uint8)), images, rtol=0, atol=0.002)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.2)
    normalised = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(visible_images(normalised, mean=mean, std=std), images)
    stretched = visible_images(normalised)
    assert stretched.amin((1, 2, 3)).tolist() == [0, 0]
    assert stretched.amax((1, 2, 3)).tolist() == [1, 1]
    assert torch.equal(visible_images(torch.full((1, 1, 2, 2), -3.0)), torch.zeros(1, 3, 2, 2))


def call(maps: Any = MAPS, images: Tensor | None = None, **options: Any) -> Tensor:
    return heatmap(maps, **options) if images is None else overlay(images, maps, **options)


GREY = torch.zeros(2, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"maps": MAPS.int()}, TypeError, "attributions must be a float tensor.*got torch.int32"),
        ({"maps": [1.0]}, TypeError, "got list"),
        ({"maps": MAPS[0, 0]}, ValueError, r"attributions must be \(B, C, H, W\) or \(B, H, W\)"),
        ({"maps": MAPS / 0}, ValueError, "attributions hold NaN"),
        ({"sign": "both"}, ValueError, "sign='both' is unknown"),
        ({"scale": "row"}, ValueError, "scale='row' is unknown"),
        ({"scale": 0}, ValueError, "scale=0 must be above 0"),
        ({"outliers": 1}, ValueError, "outliers=1 must be at least 0 and below 1"),
        ({"images": GREY, "opacity": 2}, ValueError, "opacity=2"),
        ({"images": GREY[:1]}, ValueError, "give one map"),
        ({"images": GREY.int()}, TypeError, "images must be a uint8 or float tensor"),
        ({"images": GREY[:, :2]}, ValueError, r"images must be \(B, 1 or 3, H, W\)"),
        ({"images": GREY / 0}, ValueError, "images hold NaN"),
        ({"images": GREY, "mean": 0.5}, ValueError, "mean and std must both be given"),
        ({"images": GREY, "mean": 0.5, "std": 0}, ValueError, "std=0 must be above 0"),
        ({"images": GREY, "mean": 0.5, "std": (1, 1, -1)}, ValueError, "std=-1 must be above 0"),
        ({"images": GREY, "mean": (0.5, 0.5), "std": 1}, ValueError, "mean has 2 values and images has 3 channels"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**arguments)


def test_bytes_are_not_normalised() -> None:
    with pytest.raises(ValueError, match="images are uint8, so they are not normalised; leave out mean and std"):
        overlay(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.rand(1, 4, 4), mean=0.5, std=0.5)
