"""Blank out a part of each image."""

from __future__ import annotations

import torch
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.seeding import Draws
from cifarkit.transforms.base import Fill, RandomTransform, check_fill, fill_like


class Cutout(RandomTransform):
    """Fill a square of each image, centred on a pixel drawn uniformly and clipped at the border.

    It covers rows c - size // 2 up to c - size // 2 + size - 1, columns alike. For the images that a border clips
    it hides less, which the paper found to matter.

    Args:
        size: side of the square in pixels.
        fill: value in [0, 1] of the square, or one for each channel.
    Raises:
        TypeError: if size is no integer.
        ValueError: if an argument is out of range.
    Source: DeVries and Taylor 2017, arXiv 1708.04552, section 3.2.
    """

    accepts_uint8 = True
    needs_unit_range = True

    def __init__(self, size: int, *, fill: Fill = 0.5) -> None:
        self.size, self.fill = check_integer("size", size, 1), check_fill(fill)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, 2) int64, the row and the column of the centre."""
        return torch.stack([draws.integers(0, height), draws.integers(0, width)], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        start = parameters - self.size // 2
        inside = box_mask(images, torch.cat([start, start + self.size], dim=1))
        return torch.where(inside, fill_like(self.fill, images)[:, None, None], images)


def box_mask(images: Tensor, boxes: Tensor) -> Tensor:
    """Return (B, 1, H, W) bool, true inside boxes (B, 4): top, left, bottom, right, the last two excluded."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # (B, 1) each
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # (B, H), (B, W)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
