"""Change values, not places: brightness, contrast and saturation, and the normalisation that ends a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cifarkit.checks import check_number, check_numbers
from cifarkit.seeding import Draws
from cifarkit.transforms.base import RandomTransform, Transform, check_images, to_dtype, to_float


class ColorJitter(RandomTransform):
    """Change brightness, then contrast, then saturation, each by a factor drawn for each image.

    A factor f blends with a degenerate picture, f * image + (1 - f) * other, clamped to [0, 1]: other is black for
    the brightness, the mean grey of the image for the contrast, its greyscale for the saturation. The order is
    fixed, so that the three factors say everything.

    Args:
        brightness: x draws factors uniform in [max(0, 1 - x), 1 + x], as torchvision does; 0 leaves it alone.
        contrast: the same for the contrast.
        saturation: the same for the saturation; images of one channel have none to change.
    Raises:
        TypeError: if one of them is no number.
        ValueError: if one of them is negative.
    """

    needs_unit_range = True

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> None:
        self.brightness = check_number("brightness", brightness, 0)
        self.contrast = check_number("contrast", contrast, 0)
        self.saturation = check_number("saturation", saturation, 0)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, 3) float32, the factors of brightness, contrast and saturation."""
        spans = (self.brightness, self.contrast, self.saturation)
        return torch.stack([draws.uniform(low=max(0.0, 1 - span), high=1 + span) for span in spans], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        result = to_float(images)
        if self.brightness:
            result = adjust_brightness(result, parameters[:, 0])
        if self.contrast:
            result = adjust_contrast(result, parameters[:, 1])
        if self.saturation:
            result = adjust_saturation(result, parameters[:, 2])
        return to_dtype(result, images.dtype)


class Normalize(Transform):
    """Shift and scale each channel to (image - mean) / std, from uint8 or from floats in [0, 1], into floats.

    For uint8 the division by 255 is part of the same two passes: image * (1 / (255 std)) - mean / std.

    Args:
        mean: value in [0, 1] for all channels, or one for each.
        std: value above 0 for all channels, or one for each.
    Raises:
        TypeError: if a value is no number.
        ValueError: if one is out of range, or the images have another number of channels.
    """

    accepts_uint8 = True
    needs_unit_range = True
    leaves_unit_range = True
    fixed = True

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = check_numbers("mean", mean, 0, 1), check_numbers("std", std, 0, above=True)
        if min(len(self.mean), len(self.std)) > 1 and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std has {len(self.std)}; give as many of each")

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        check_images(images)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, images.shape[1]):
                raise ValueError(
                    f"{name} has {len(values)} values and images has {images.shape[1]} channels; give one for each"
                )
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
        mean = torch.tensor(self.mean, dtype=torch.float64)[:, None, None]  # (1 or C, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64)[:, None, None]
        if images.dtype == torch.uint8:
            scale, shift = (1 / (255 * std)).to(images.device, dtype), (mean / std).to(images.device, dtype)
            return images.float().mul_(scale).sub_(shift)
        return images.sub(mean.to(images.device, dtype)).div_(std.to(images.device, dtype))


def grayscale(images: Tensor) -> Tensor:
    """Return (B, 1, H, W): the luma 0.2989 R + 0.587 G + 0.114 B of three channels, the mean of any other number.

    Source: ITU-R BT.601, with the rounding that torchvision uses.
    """
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def blend(images: Tensor, other: Tensor | float, factors: Tensor) -> Tensor:
    """Return factor * images + (1 - factor) * other, clamped to [0, 1]; factors (B,)."""
    weight = factors.to(images.dtype)[:, None, None, None]
    return (weight * images + (1 - weight) * other).clamp_(0, 1)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend float images with black: 0 is black, 1 the image."""
    return blend(images, 0.0, factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend float images with their mean grey: 0 is that grey, 1 the image."""
    return blend(images, grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend float images with their greyscale: 0 is without colour, 1 the image."""
    return images if images.shape[1] == 1 else blend(images, grayscale(images), factors)
