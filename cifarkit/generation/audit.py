"""Whether generated images are copies of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifarkit.generation.distances import blocks, squared_distances

_CANDIDATES = 4  # nearest by float32, among which float64 decides
_USUAL, _SUSPECT = 0.01, 0.02  # shares of images as near as the nearest 1 % of others: to be expected, and twice it
_NEAREST = 0.5  # of the least distance of other real images, below which a single one is suspect
_FAKES = 2048  # generated images at a time


class Copies(NamedTuple):
    """The nearest real image of each generated one: Euclidean distances float64 (M,), indices int64 (M,).

    Of real images that are equally near it is any.
    """

    distances: Tensor
    indices: Tensor


def nearest_copies(real: Tensor, fake: Tensor, *, mirror: bool = False) -> Copies:
    """Find the real image that each generated one is nearest to.

    Args:
        real: (N, C, H, W) images, or features (N, D); uint8 counts as [0, 1], float as it is.
        fake: (M, C, H, W) or (M, D), of the same kind.
        mirror: compare with the real images' mirror images, too, for generators trained on both.
    Raises:
        TypeError: if they are no tensors of one kind, uint8 or float.
        ValueError: if their shapes do not fit together, or a value is not finite.
    """
    real, fake = check_images(real, fake, ("real", "fake"), mirror=mirror)
    found = [_nearest(real, part, mirror) for part in torch.split(fake, _FAKES)]
    return Copies(torch.cat([part.distances for part in found]), torch.cat([part.indices for part in found]))


def check_images(real: Any, fake: Any, names: tuple[str, str], *, mirror: bool) -> tuple[Tensor, Tensor]:
    """Return both on the CPU if they fit together, or raise as :func:`nearest_copies`; names are those of arguments."""
    first, second = names
    for name, images in ((first, real), (second, fake)):
        if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            got = getattr(images, "dtype", type(images).__name__)
            raise TypeError(f"{name} must be a uint8 or float tensor of images or features, got {got}")
        if images.dim() not in (2, 4) or 0 in images.shape:
            raise ValueError(f"{name} has shape {tuple(images.shape)}; it must be (N, C, H, W) or (N, D)")
        if images.is_floating_point() and not images.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
    if (real.dtype == torch.uint8) != (fake.dtype == torch.uint8):
        raise TypeError(f"{first} is {real.dtype} and {second} {fake.dtype}; give both as uint8 or both as float")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"{first} has rows of shape {tuple(real.shape[1:])} and {second} {tuple(fake.shape[1:])}")
    if mirror and real.dim() != 4:
        raise ValueError("mirror=True needs images (N, C, H, W); features have no mirror image")
    return real.detach().cpu(), fake.detach().cpu()


def _nearest(real: Tensor, fake: Tensor, mirror: bool) -> Copies:
    """Search in float32, which may confuse nearly equal distances, and decide between the best in float64.

    Indices from N on are those of mirror images until the end.
    """
    centre = _rows(real[:: max(len(real) // 1000, 1)], torch.float32).mean(0)  # smaller numbers are rounded less
    points = _rows(fake, torch.float32) - centre
    best, indices = torch.empty(len(fake), 0), torch.empty(len(fake), 0, dtype=torch.int64)
    every = torch.arange(len(real) * (2 if mirror else 1))
    for part in blocks(len(every), max(len(fake), fake[0].numel())):
        table = squared_distances(points, _rows(_take(real, every[part]), torch.float32) - centre)  # (M, n)
        nearest = table.topk(min(_CANDIDATES, table.shape[1]), largest=False)
        best = torch.cat([best, nearest.values], 1)
        indices = torch.cat([indices, nearest.indices + part.start], 1)
        order = best.topk(min(_CANDIDATES, best.shape[1]), largest=False).indices
        best, indices = best.gather(1, order), indices.gather(1, order)
    own = _rows(fake, torch.float64)
    exact = [(_rows(_take(real, column), torch.float64) - own).square().sum(1).sqrt() for column in indices.T]
    distances, winner = torch.stack(exact, 1).min(1)
    return Copies(distances, indices.gather(1, winner[:, None])[:, 0] % len(real))


def _take(real: Tensor, indices: Tensor) -> Tensor:
    """Return the images (B, ...) of indices (B,), from N on mirrored."""
    chosen = real[indices % len(real)]
    mirrored = indices >= len(real)
    if mirrored.any():
        chosen[mirrored] = chosen[mirrored].flip(3)
    return chosen


def _rows(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, ...) -> (N, D), uint8 in [0, 1]."""
    rows = images.flatten(1).to(dtype)
    return rows / 255 if images.dtype == torch.uint8 else rows


@dataclass(frozen=True)
class CopyCheck:
    """How near generated images come to the training images, and how near other real images do.

    Attributes:
        copies: the nearest training image of each generated one.
        usual: distances (H,) of other real images to their nearest training image, without those that are one.
        share: of generated images that are as near as the nearest 1 % of the other real images; 0.01 is usual.
    """

    copies: Copies
    usual: Tensor
    share: float

    def __str__(self) -> str:
        near, usual = self.copies.distances, self.usual
        chance = 3 * (_USUAL * (1 - _USUAL) / len(near)) ** 0.5  # deviations, for few images have a few such by chance
        clear = self.share <= max(_SUSPECT, _USUAL + chance) and near.min() >= _NEAREST * usual.min()
        verdict = "no sign of copying" if clear else "look at the nearest pairs: some may be copies"
        return (
            f"distance to the nearest training image: generated {near.median():.4g} (median), {near.min():.4g} "
            f"(least); other real images {usual.median():.4g}, {usual.min():.4g}. {self.share:.1%} of {len(near):,} "
            f"generated images are as near as the nearest 1% of {len(usual):,} other real ones: {verdict}"
        )


def check_copies(train: Tensor, fake: Tensor, other_real: Tensor, *, mirror: bool = False) -> CopyCheck:
    """Compare the distances of generated images to the training images with those of real images not trained on.

    Args:
        train, fake, other_real: as for :func:`nearest_copies`; the last are, for example, the test images.
        mirror: as for :func:`nearest_copies`.
    Raises:
        TypeError, ValueError: as :func:`nearest_copies`.
        ValueError: if every other real image is a training image.
    """
    check_images(train, fake, ("train", "fake"), mirror=mirror)
    check_images(train, other_real, ("train", "other_real"), mirror=mirror)  # before the search, which may take long
    copies = nearest_copies(train, fake, mirror=mirror)
    usual = nearest_copies(train, other_real, mirror=mirror).distances
    usual = usual[usual > 0]
    if not len(usual):
        raise ValueError("other_real holds only training images; give real images that were not trained on")
    share = (copies.distances <= usual.quantile(_USUAL)).double().mean().item()
    return CopyCheck(copies, usual, share)
