"""What every transform of a batch of images shares: the call, its draws, its two number formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from cifarkit.checks import check_numbers
from cifarkit.seeding import Draws

Fill = float | Sequence[float]  # one value in [0, 1] for all channels, or one for each


class Transform(ABC):
    """Map a batch of images to a batch of images, with one independent draw for each image.

    Images are (B, C, H, W), uint8 or floating point in [0, 1]; the result has the dtype of the input (Normalize
    alone always gives floats). The two formats give the same picture within rounding to 1/255.

    Attributes:
        accepts_uint8: uint8 images are handled as they are, which moves a quarter of the bytes; where it is False,
            Compose and the Loader convert to float first.
        needs_unit_range: the values must be in [0, 1] (or uint8), so the transform comes before Normalize.
        leaves_unit_range: the values that come out are no longer in [0, 1].
        fixed: the same image gives the same result every time, so that what is computed from it may be kept; false
            unless a class says so.
        stateless: a call leaves nothing behind for the next one, so that two threads may make one each.
    """

    accepts_uint8: bool = False
    needs_unit_range: bool = False
    leaves_unit_range: bool = False
    fixed: bool = False
    stateless: bool = True

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Transform images (B, C, H, W); draws None takes random numbers keyed by PyTorch's global state."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


class RandomTransform(Transform):
    """A transform in two halves: ``parameters`` draws for each image, ``apply`` is an ordinary function of them."""

    @abstractmethod
    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, ...), what each image of the given size will undergo."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Transform images (B, C, H, W) by the given parameters; nothing is random here."""

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws_for(images, draws)
        parameters = self.parameters(draws, images.shape[2], images.shape[3])
        return self.apply(images, parameters.to(images.device))


def check_images(images: Tensor) -> None:
    """Refuse anything but (B, C, H, W) uint8 or floating point, before it fails in a less readable place."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images is a {type(images).__name__}; give a tensor (B, C, H, W), uint8 or float in [0, 1]")
    if images.ndim != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; give (B, C, H, W), one image as images[None]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; give uint8, or floating point in [0, 1]")


def draws_for(images: Tensor, draws: Draws | None) -> Draws:
    """Check images, and return draws, or fresh ones where it is None."""
    check_images(images)
    if draws is None:
        return Draws.random(len(images), device=images.device)
    if len(draws) != len(images):
        raise ValueError(f"draws is for {len(draws)} samples and images holds {len(images)}; give one for each image")
    return draws


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1]; floating point passes unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def to_dtype(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn float images in [0, 1] back into the dtype they came in, rounding where that is uint8."""
    return images.mul(255).round_().clamp_(0, 255).byte() if dtype == torch.uint8 else images


def check_fill(fill: Fill) -> float | tuple[float, ...]:
    """Return fill as plain floats; ValueError unless each value is in [0, 1]."""
    try:
        values = check_numbers("fill", fill, 0, 1)
    except ValueError as error:
        raise ValueError(f"{error}; a byte such as 128 is 128 / 255") from None
    return values[0] if len(values) == 1 else values


def fill_like(fill: float | tuple[float, ...], images: Tensor) -> Tensor:
    """Return fill as (C,) in the dtype of images (B, C, H, W), scaled to 0..255 and rounded for uint8."""
    channels = images.shape[1]
    values = (fill,) * channels if isinstance(fill, float) else fill
    if len(values) != channels:
        raise ValueError(f"fill={fill} has {len(values)} values and images has {channels} channels; give one for each")
    if images.dtype == torch.uint8:
        values = tuple(round(255 * value) for value in values)
    return torch.tensor(values, dtype=images.dtype, device=images.device)
