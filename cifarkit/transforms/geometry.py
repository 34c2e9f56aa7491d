"""Move pixels: crop, flip, rotate, resize. All but Resize and bilinear rotation copy values, so uint8 stays uint8."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarkit.checks import check_integer, check_number, check_size
from cifarkit.seeding import Draws
from cifarkit.transforms.base import (
    Fill,
    RandomTransform,
    Transform,
    check_fill,
    check_images,
    fill_like,
    to_dtype,
    to_float,
)

# AlternatingFlip draws in an epoch no run reaches: in epoch 0 its numbers would be those of the first transform.
_NO_EPOCH = 2**62


class SeparableTransform(RandomTransform):
    """A move of whole rows and whole columns. Moves in a row are one move, and Compose gathers their pixels once."""

    accepts_uint8 = True

    @abstractmethod
    def move(self, rows: Tensor, columns: Tensor, parameters: Tensor, outside: int) -> tuple[Tensor, Tensor]:
        """Rearrange the sources of a picture: rows (B, H) and columns (B, W) int64, outside where there is none."""


class RandomCrop(SeparableTransform):
    """Pad each image on all sides and cut a window out of it, every position being equally likely.

    Output pixel (y, x) is padded pixel (y + top, x + left), top uniform in 0..H + 2 padding - height, left alike.

    Args:
        size: side of the window in pixels, or (height, width).
        padding: pixels added on each side.
        mode: what they hold: "reflect" mirrors without repeating the edge (c b | a b c), "symmetric" repeats it
            (b a | a b c), "edge" copies it (a a | a b c), "constant" is fill.
        fill: value in [0, 1] for mode "constant", or one for each channel.
    Raises:
        TypeError: if size or padding is no integer.
        ValueError: if an argument is out of range, or the padded image is smaller than the window.
    Source: He et al. 2015, section 4.2 (with zeros); the modes are those of ``torchvision.transforms.Pad``.
    """

    def __init__(self, size: int | Sequence[int], padding: int = 4, mode: str = "reflect", *, fill: Fill = 0.0) -> None:
        if mode not in ("reflect", "symmetric", "edge", "constant"):
            raise ValueError(f"mode={mode!r} is unknown; give 'reflect', 'symmetric', 'edge' or 'constant'")
        self.size, self.padding = check_size("size", size), check_integer("padding", padding, 0)
        self.mode, self.fill = mode, check_fill(fill)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, 2) int64, the top and left of the window in the padded image."""
        starts = []
        for length, side in zip((height, width), self.size, strict=True):
            spare = length + 2 * self.padding - side
            if spare < 0:
                raise ValueError(
                    f"size={self.size} exceeds images of {height} x {width} px with padding={self.padding}; "
                    "give a smaller size or a larger padding"
                )
            if self.padding >= length + (self.mode == "symmetric") and self.mode in ("reflect", "symmetric"):
                raise ValueError(
                    f"padding={self.padding} is too wide to mirror images of {height} x {width} px; "
                    "give a smaller padding, or mode='edge'"
                )
            starts.append(draws.integers(0, spare + 1))
        return torch.stack(starts, dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        rows, columns, outside = pixel_sources(images)
        rows, columns = self.move(rows, columns, parameters, outside)
        if self.mode != "constant":
            return pick_pixels(images, rows[:, :, None] + columns[:, None, :])
        numbers = (rows[:, :, None] + columns[:, None, :]).clamp_(max=outside)
        return pick_pixels(images, numbers, fill_like(self.fill, images)[:, None])

    def move(self, rows: Tensor, columns: Tensor, parameters: Tensor, outside: int) -> tuple[Tensor, Tensor]:
        top, left = parameters.unbind(1)
        return self._cut(rows, top, self.size[0], outside), self._cut(columns, left, self.size[1], outside)

    def _cut(self, sources: Tensor, start: Tensor, side: int, outside: int) -> Tensor:
        """Cut windows (B, side) that begin at start (B,) out of sources (B, L) padded at both ends."""
        last = sources.shape[1] - 1
        position = (start - self.padding)[:, None] + torch.arange(side, device=sources.device)  # (B, side)
        if self.mode == "reflect":
            position = last - (last - position.abs()).abs()
        elif self.mode == "symmetric":  # mirrored at -1/2 and last + 1/2
            position = torch.where(position < 0, -1 - position, position)
            position = torch.where(position > last, 2 * last + 1 - position, position)
        elif self.mode == "edge":
            position = position.clamp(0, last)
        else:
            sources = F.pad(sources, (1, 1), value=outside)
            position = (position + 1).clamp(0, last + 2)
        return sources.gather(1, position)


class RandomHorizontalFlip(SeparableTransform):
    """Mirror each image left to right with probability p: output column x is column W - 1 - x."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number("p", p, 0, 1)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B,) bool, true where the image is mirrored."""
        return draws.bernoulli(self.p)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        return torch.where(parameters[:, None, None, None], images.flip(-1), images)

    def move(self, rows: Tensor, columns: Tensor, parameters: Tensor, outside: int) -> tuple[Tensor, Tensor]:
        return rows, torch.where(parameters[:, None], columns.flip(1), columns)


class AlternatingFlip(RandomHorizontalFlip):
    """Mirror a fixed random half of the images in even epochs and the other half in odd ones.

    Two successive epochs then show every image in both senses, where random flips show a half of them twice in
    the same. Without draws it is a random flip, for there is no epoch.

    Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """

    def __init__(self) -> None:
        super().__init__(0.5)

    def __repr__(self) -> str:
        return "AlternatingFlip()"

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B,) bool, true where the image is mirrored in the epoch of draws."""
        first_half = draws.at_epoch(_NO_EPOCH).bernoulli(self.p)
        return first_half ^ (draws.epoch % 2 == 1)


class RandomRotation(RandomTransform):
    """Turn each image about its centre, counter-clockwise, by an angle uniform in [-degrees, degrees].

    Output pixel (x, y), measured from the centre, is taken from (x cos a - y sin a, x sin a + y cos a). The corners
    that come into view are filled; do it before Normalize, where a fill of 0.5 means grey.

    Args:
        degrees: the largest angle, from 0 to 180.
        interpolation: "nearest" copies the nearest pixel; "bilinear" weighs the four around.
        fill: value in [0, 1] of what lies outside the image, or one for each channel.
    Raises:
        ValueError: if an argument is out of range.
    """

    accepts_uint8 = True
    needs_unit_range = True

    def __init__(self, degrees: float, *, interpolation: str = "nearest", fill: Fill = 0.5) -> None:
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"interpolation={interpolation!r} is unknown; give 'nearest' or 'bilinear'")
        self.degrees, self.interpolation = check_number("degrees", degrees, 0, 180), interpolation
        self.fill = check_fill(fill)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B,) float32, the angles in degrees."""
        return draws.uniform(low=-self.degrees, high=self.degrees)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        matrices = rotation_matrices(parameters)
        if self.interpolation == "nearest":
            return affine_nearest(images, matrices, fill_like(self.fill, images))
        floats = to_float(images)
        return to_dtype(affine_bilinear(floats, matrices, fill_like(self.fill, floats)), images.dtype)


class Resize(Transform):
    """Resize all images to one size, bilinear with antialiasing, as torchvision's functional resize does.

    Args:
        size: (height, width) in pixels, or the length of the shorter side, the other keeping the proportions.
    Raises:
        TypeError: if size is no integer, nor two.
        ValueError: if a side is below 1, or the images have no channels or no pixels.
    """

    fixed = True

    def __init__(self, size: int | Sequence[int]) -> None:
        height, width = check_size("size", size)
        self.size = (height, width) if isinstance(size, Sequence) else height

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        check_images(images)
        channels, height, width = images.shape[1:]
        if not channels * height * width:
            raise ValueError(f"images has shape {tuple(images.shape)}; give at least one channel and one pixel")
        target = self.size
        if isinstance(target, int):
            shorter = min(height, width)
            target = (int(target * height / shorter), int(target * width / shorter))
        if target == (height, width):
            return images
        if not len(images):  # which interpolate refuses
            return images.new_empty(0, channels, *target)
        floats = to_float(images)
        if floats.dtype in (torch.float16, torch.bfloat16):  # which PyTorch does not antialias on the CPU
            floats = floats.float()
        resized = F.interpolate(floats, target, mode="bilinear", antialias=True)
        return to_dtype(resized, images.dtype).to(images.dtype)


def pixel_sources(images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Number the pixels of images (B, C, H, W) row by row: pixel (y, x) is rows[b, y] + columns[b, x].

    Returns:
        rows (B, H) and columns (B, W) int64, and the number that means outside, H * W or any larger one.
    """
    batch_size, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) * width
    columns = torch.arange(width, device=images.device)
    return rows.expand(batch_size, -1), columns.expand(batch_size, -1), height * width


def pick_pixels(images: Tensor, numbers: Tensor, fills: Tensor | None = None) -> Tensor:
    """Gather pixels (B, C, H', W') by their numbers (B, H', W'); number H * W + k means column k of fills (C, F)."""
    pixels = images.flatten(2)  # (B, C, H, W) -> (B, C, H * W)
    if fills is not None:
        pixels = torch.cat([pixels, fills.expand(len(images), -1, -1)], dim=2)
    index = numbers.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H' * W'), channels share one copy
    return pixels.gather(2, index).view(*images.shape[:2], *numbers.shape[1:])


def rotation_matrices(degrees: Tensor) -> Tensor:
    """Return (B, 2, 3), which take an output pixel to its source, for angles (B,) counter-clockwise."""
    cosine, sine = (degrees * (math.pi / 180)).cos(), (degrees * (math.pi / 180)).sin()
    zero = torch.zeros_like(cosine)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)


def affine_nearest(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Take each output pixel from the nearest one to matrix @ (x, y, 1), in pixels from the centre.

    Args:
        images: (B, C, H, W) of any dtype.
        matrices: (B, 2, 3) float32.
        fill: (C,) in the dtype of images, put where the source lies outside.
    """
    height, width = images.shape[2:]
    # One pixel of fill all round: whatever falls outside is clamped onto it, which costs less than a mask.
    bordered = fill[:, None, None].expand(len(images), -1, height + 2, width + 2).clone()
    bordered[:, :, 1:-1, 1:-1] = images
    columns, rows = _source_positions(matrices, height, width)
    columns.round_().clamp_(-1, width)
    numbers = rows.round_().clamp_(-1, height).mul_(width + 2).add_(columns).add_(width + 3)  # exact below 2**24
    return pick_pixels(bordered, numbers.long())


def affine_bilinear(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Do as affine_nearest for float images, but weigh the four pixels around.

    A pixel of which the share m comes from inside becomes m * sampled + (1 - m) * fill, sampled with zeros outside: the
    rule of ``torchvision.transforms.functional.rotate``, kept for equal results although it darkens the seam.
    """
    if not len(images):
        return images
    height, width = images.shape[2:]
    columns, rows = _source_positions(matrices, height, width)
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=3)  # (B, H, W, 2)
    inside = torch.ones_like(images[:, :1])  # one more channel, cheaper than sampling twice
    sampled = F.grid_sample(torch.cat([images, inside], dim=1), grid.to(images.dtype), align_corners=False)
    mask = sampled[:, -1:]
    return mask * sampled[:, :-1] + (1 - mask) * fill[:, None, None]


def _source_positions(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return columns and rows (B, H, W) float32, where matrices (B, 2, 3) take each output pixel from."""
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=matrices.device) - middle_x
    y = torch.arange(height, device=matrices.device) - middle_y
    columns = (matrices[:, 0, :1] * x + (matrices[:, 0, 2:] + middle_x))[:, None, :]  # (B, 1, W)
    rows = (matrices[:, 1, :1] * x + (matrices[:, 1, 2:] + middle_y))[:, None, :]
    return columns + (matrices[:, 0, 1:2] * y)[:, :, None], rows + (matrices[:, 1, 1:2] * y)[:, :, None]
