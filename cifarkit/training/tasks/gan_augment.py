"""Augmentation that gradients pass through, the same for the images a GAN is shown and for those it makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cifarkit.checks import check_number
from cifarkit.seeding import Draws

KINDS = ("color", "translation", "cutout")


class DifferentiableAugmentation:
    """Change colours, move, and blank a square of every image, each by draws of its own.

    The discriminator sees real and generated images through it and cannot learn the real ones by heart; gradients pass
    through to the generator, which therefore does not learn to make augmented images.

    Args:
        kinds: those of "color", "translation" and "cutout" to use, which are done in this order.
        translation: longest move along each side, as a share of the side, in [0, 1].
        cutout: side of the square, as a share of the side of the image, in [0, 1].
    Raises:
        ValueError: for an unknown kind or a share out of range.
    Shapes:
        images (B, C, H, W) float in [-1, 1], draws of B samples -> (B, C, H, W) of at least float32; what is uncovered
        is 0.
    Source: Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3.2.
    """

    def __init__(self, kinds: Sequence[str] = KINDS, *, translation: float = 0.125, cutout: float = 0.5) -> None:
        if isinstance(kinds, str) or not isinstance(kinds, Sequence) or any(kind not in KINDS for kind in kinds):
            raise ValueError(f"kinds={kinds!r} must be a tuple of some of {', '.join(map(repr, KINDS))}")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self.translation = check_number("translation", translation, 0, 1)
        self.cutout = check_number("cutout", cutout, 0, 1)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # moving multiplies matrices, which would round pixels
            images = images.to(torch.promote_types(images.dtype, torch.float32))
            if "color" in self.kinds:
                images = change_color(images, draws)
            if "translation" in self.kinds:
                images = translate(images, draws, self.translation)
            if "cutout" in self.kinds:
                images = cut_out(images, draws, self.cutout)
        return images

    def __repr__(self) -> str:
        return f"DifferentiableAugmentation({self.kinds}, translation={self.translation}, cutout={self.cutout})"


def change_color(images: Tensor, draws: Draws) -> Tensor:
    """Add up to half to all pixels, then scale colours around grey by 0 to 2 and contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = draws.uniform(3).to(images.dtype).T[:, :, None, None, None]  # (B, 1, 1, 1) each
    images = images + (brightness - 0.5)
    images = images.mean(1, keepdim=True).lerp(images, 2 * saturation)
    return images.mean((1, 2, 3), keepdim=True).lerp(images, contrast + 0.5)


def translate(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Move each image by whole pixels, up to a share of its sides.

    The move is a product with two matrices of zeros and ones, because its gradient is one again; that of a gather
    would be a scatter, which is slow.
    """
    reach = [round(share * side) for side in images.shape[2:]]
    moves = [draws.integers(-most, most + 1) for most in reach]
    rows, columns = (
        _moving_matrix(move, side).to(images.dtype) for move, side in zip(moves, images.shape[2:], strict=True)
    )
    return rows[:, None] @ images @ columns[:, None].mT  # (B, 1, H, H) @ (B, C, H, W) @ (B, 1, W, W)


def _moving_matrix(moves: Tensor, side: int) -> Tensor:
    """Return (B, side, side) with a one where a place of the result takes from a place of the image."""
    places = torch.arange(side, device=moves.device)
    return places[:, None] == places + moves[:, None, None]  # (side, 1) == (B, 1, side)


def cut_out(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Set a square of each image to 0; its middle is any pixel, so that it may reach over the edge."""
    covered = torch.ones((), dtype=torch.bool, device=images.device)
    for dimension, side in enumerate(images.shape[2:]):
        length = round(share * side)
        start = draws.integers(0, side)[:, None] - length // 2  # (B, 1)
        places = torch.arange(side, device=images.device)
        along = (places >= start) & (places < start + length)  # (B, side)
        covered = covered & (along[:, None, :, None] if dimension == 0 else along[:, None, None, :])
    return images.masked_fill(covered, 0.0)
