"""Generated images beside the training images they are nearest to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.plots.figure import FilePath, Range, require_same_length
from cifarkit.plots.images import image_grid, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS_A_ROW = 4


def nearest_pairs(
    samples: Tensor,
    train: Tensor,
    distances: Tensor,
    indices: Tensor,
    count: int = 16,
    path: FilePath = None,
    *,
    mirror: bool = False,
    value_range: Range = None,
    title: str = "Generated images, each beside the nearest training image: the nearest pairs first",
) -> Figure:
    """Show the generated images that are nearest to a training image, each left of that image.

    Args:
        samples: (M, C, H, W); with value_range, as in :func:`image_grid`.
        train: (N, C, H, W), likewise.
        distances, indices: (M,) each, as ``generation.nearest_copies(train, samples)`` returns them.
        count: the most pairs to show.
        mirror: as given to ``nearest_copies``; a training image whose mirror image is nearer is shown mirrored.
        title: a line over the grid.
    Raises:
        TypeError: if images are no tensors of uint8 or float.
        ValueError: if lengths or shapes do not fit together, an index is out of range, or count is below 1.
    """
    count = check_integer("count", count, 1)
    require_same_length(distances=distances, samples=samples)
    require_same_length(indices=indices, samples=samples)
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(f"samples are {tuple(samples.shape[1:])} and train {tuple(train.shape[1:])}; sizes must agree")
    if int(indices.min()) < 0 or int(indices.max()) >= len(train):
        raise ValueError(
            f"indices run from {int(indices.min())} to {int(indices.max())}, train has {len(train)} images"
        )
    chosen = distances.argsort(stable=True)[:count]
    nearest = train[indices[chosen]]
    if mirror:
        nearest = _turned(nearest, samples[chosen])
    left, right = (to_pixels(x, value_range) for x in (samples[chosen], nearest))  # (count, H, W, 3)
    pairs = torch.stack([torch.from_numpy(left.copy()), torch.from_numpy(right.copy())], 1).flatten(0, 1)
    captions = [
        text
        for sample, index in zip(chosen.tolist(), indices[chosen].tolist(), strict=True)
        for text in (f"generated {sample}", f"{distances[sample].item():.3g} to {index}")
    ]
    return image_grid(pairs.permute(0, 3, 1, 2), captions, None, 2 * _PAIRS_A_ROW, path, title=title)


def _turned(images: Tensor, samples: Tensor) -> Tensor:
    """Return images (B, C, H, W), mirrored where they are nearer to the samples so."""
    mirrored = images.flip(3)
    far, near = ((x.float() - samples.float()).square().flatten(1).sum(1) for x in (images, mirrored))  # (B,)
    return torch.where((near < far).reshape(-1, 1, 1, 1), mirrored, images)
