"""Crop, flip, rotation and resize: torchvision's pixels for the same parameters, draws as documented."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from cifarkit.seeding import Draws
from cifarkit.transforms import AlternatingFlip, RandomCrop, RandomHorizontalFlip, RandomRotation, Resize
from cifarkit.transforms.base import to_float
from cifarkit.transforms.geometry import rotation_matrices

MANY = 20_000
BAD_SIZES: list[tuple[Any, type[Exception], str]] = [
    (0, ValueError, "size=0 must be at least 1"),
    ((8, -1), ValueError, "size=-1 must be at least 1"),
    ((8, 8, 8), ValueError, r"size=\(8, 8, 8\) holds 3 numbers; give a side in pixels, or \(height, width\)"),
    (32.0, TypeError, r"size=32\.0 is a float; give an integer"),
    ("32", TypeError, "size='32' is a str; give an integer"),
]


def photos(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws(3, epoch, torch.arange(count))


def chi_square(values: Tensor, bins: int) -> float:
    """Return the statistic of equal frequencies divided by its degrees of freedom, about 1 if they are equal."""
    counts = torch.bincount(values, minlength=bins).double()
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum() / (bins - 1))


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge", "constant"])
@pytest.mark.parametrize(("size", "shape"), [((32, 32), (32, 32)), ((9, 14), (10, 13)), ((3, 3), (7, 5))])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crop_equals_torchvision(mode: str, size: tuple[int, int], shape: tuple[int, int], channels: int) -> None:
    images, crop = photos(20, channels, *shape), RandomCrop(size, padding=4, mode=mode, fill=1 / 255)
    offsets = crop.parameters(draws(20), *shape)
    for inputs, fill in ((images, 1), (to_float(images), 1 / 255)):
        padded = TF.pad(inputs, [4], fill=fill, padding_mode=mode)
        expected = [TF.crop(padded[i], *offsets[i].tolist(), *size) for i in range(20)]
        assert torch.equal(crop.apply(inputs, offsets), torch.stack(expected))


def test_crop_positions_are_uniform_and_independent() -> None:
    crop = RandomCrop((32, 30), padding=4)
    top, left = crop.parameters(draws(MANY), 32, 32).unbind(1)
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 8, 0, 10)
    assert chi_square(top, 9) < 2.5
    assert chi_square(left, 11) < 2.5
    assert chi_square(top * 11 + left, 99) < 1.5


def test_crop_without_padding_or_room_is_the_image() -> None:
    images = photos(5)
    for mode in ("reflect", "constant"):
        assert torch.equal(RandomCrop(32, padding=0, mode=mode)(images), images)


def test_crop_fills_each_channel() -> None:
    images = photos(1, 3, 4, 4)
    corner = RandomCrop(2, padding=2, mode="constant", fill=(0.0, 0.5, 1.0)).apply(images, torch.tensor([[0, 0]]))
    assert corner[0, :, 0, 0].tolist() == [0, 128, 255]


def test_crop_errors() -> None:
    with pytest.raises(ValueError, match="mode='mirror' is unknown; give 'reflect'"):
        RandomCrop(32, mode="mirror")
    with pytest.raises(ValueError, match="padding=-1 must be at least 0"):
        RandomCrop(32, padding=-1)
    with pytest.raises(TypeError, match=r"padding=2\.0 is a float; give an integer"):
        RandomCrop(32, padding=2.0)  # type: ignore[arg-type]
    for size, error, message in BAD_SIZES:
        with pytest.raises(error, match=message):
            RandomCrop(size)
    with pytest.raises(ValueError, match=r"size=\(41, 41\) exceeds images of 32 x 32 px with padding=4"):
        RandomCrop(41)(photos(1))
    with pytest.raises(ValueError, match="padding=4 is too wide to mirror images of 4 x 9 px"):
        RandomCrop(4)(photos(1, 3, 4, 9))
    assert RandomCrop(4, mode="symmetric")(photos(1, 3, 4, 9)).shape == (1, 3, 4, 4)


def test_flip_equals_torchvision_with_probability_p() -> None:
    images, flip = photos(50, 3, 5, 8), RandomHorizontalFlip(0.3)
    mirrored = flip.parameters(draws(50), 5, 8)
    expected = [TF.hflip(image) if mirror else image for image, mirror in zip(images, mirrored, strict=True)]
    assert torch.equal(flip.apply(images, mirrored), torch.stack(expected))
    assert flip.parameters(draws(MANY), 5, 8).float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(RandomHorizontalFlip(1)(images), images.flip(-1))
    assert torch.equal(RandomHorizontalFlip(0)(images), images)
    with pytest.raises(ValueError, match=r"p=1\.5 must be at least 0 and at most 1"):
        RandomHorizontalFlip(1.5)


def test_alternating_flip_shows_both_senses_in_two_epochs() -> None:
    epochs = [AlternatingFlip().parameters(draws(MANY, epoch), 32, 32) for epoch in range(4)]
    assert epochs[0].float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert torch.equal(epochs[1], ~epochs[0])
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])


def test_alternating_flip_is_independent_of_the_crop() -> None:
    source = draws(MANY)
    top = RandomCrop(32).parameters(source, 32, 32)[:, 0]
    flipped = AlternatingFlip().parameters(source, 32, 32)
    assert chi_square(top[flipped], 9) < 2.5


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [(32, 32), (12, 17)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rotation_equals_torchvision(interpolation: str, shape: tuple[int, int], channels: int) -> None:
    images, count = to_float(photos(30, channels, *shape)), 30
    fill = [0.5, 0.2, 0.9, 0.0][:channels]
    rotation = RandomRotation(180, interpolation=interpolation, fill=fill)
    angles = rotation.parameters(draws(count), *shape)
    angles[:2] = torch.tensor([0.0, 37.0])
    mode = InterpolationMode(interpolation)
    expected = [TF.rotate(images[i], angles[i].item(), interpolation=mode, fill=fill) for i in range(count)]
    wrong = (rotation.apply(images, angles) - torch.stack(expected)).abs() > 1e-4  # torchvision's sines are float64
    # Where a position falls half-way between two pixels, the last bit decides which is nearest.
    assert wrong.float().mean() <= (1e-4 if interpolation == "nearest" else 0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_of_bytes_equals_torchvision(interpolation: str) -> None:
    images, rotation = photos(30), RandomRotation(90, interpolation=interpolation, fill=100 / 255)
    angles = rotation.parameters(draws(30), 32, 32)
    mode = InterpolationMode(interpolation)
    expected = [TF.rotate(images[i], angles[i].item(), interpolation=mode, fill=[100.0]) for i in range(30)]
    difference = (rotation.apply(images, angles).int() - torch.stack(expected).int()).abs()
    assert difference.max() <= (0 if interpolation == "nearest" else 1)


def test_rotation_angles_are_uniform() -> None:
    angles = RandomRotation(15).parameters(draws(MANY), 32, 32)
    assert -15 <= angles.min() < -14.9
    assert 14.9 < angles.max() <= 15
    assert chi_square(((angles + 15) / 3).long().clamp(max=9), 10) < 2.5


def test_quarter_turns_are_exact() -> None:
    images, angles = photos(3), torch.tensor([90.0, 180.0, -90.0])
    turned = RandomRotation(180).apply(images, angles)
    assert torch.equal(turned, torch.stack([images[i].rot90(k, (1, 2)) for i, k in enumerate((1, 2, 3))]))
    identity = torch.eye(2, 3)
    assert torch.allclose(rotation_matrices(torch.zeros(2)), identity.expand(2, 2, 3))


def test_rotation_errors() -> None:
    with pytest.raises(ValueError, match=r"degrees=-5 must be at least 0 and at most 180"):
        RandomRotation(-5)
    with pytest.raises(TypeError, match=r"degrees=\(5, 9\) is a tuple; give a number"):
        RandomRotation((5, 9))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interpolation='cubic' is unknown; give 'nearest' or 'bilinear'"):
        RandomRotation(5, interpolation="cubic")


@pytest.mark.parametrize("size", [16, 48, (20, 31)])
@pytest.mark.parametrize("shape", [(32, 32), (28, 37)])
def test_resize_equals_torchvision(size: int | tuple[int, int], shape: tuple[int, int]) -> None:
    images = photos(4, 3, *shape)
    target = size if isinstance(size, int) else list(size)
    expected = TF.resize(to_float(images), target, antialias=True)
    torch.testing.assert_close(Resize(size)(to_float(images)), expected, atol=1e-6, rtol=0)
    assert (Resize(size)(images).int() - TF.resize(images, target, antialias=True).int()).abs().max() <= 1


def test_resize_errors() -> None:
    for size, error, message in BAD_SIZES:
        with pytest.raises(error, match=message):
            Resize(size)


def test_sizes_may_come_from_numpy() -> None:
    side: Any = np.int64(20)
    assert repr(Resize(side)) == "Resize(size=20)"
    assert repr(RandomCrop(side, padding=side)) == repr(RandomCrop(20, padding=20))
    assert Resize((side, 31))(photos(2)).shape == RandomCrop([side, np.int32(31)])(photos(2)).shape == (2, 3, 20, 31)
