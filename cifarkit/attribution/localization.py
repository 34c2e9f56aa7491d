"""How much of an explanation lies where the right answer is known to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cifarkit.attribution.ranks import average_ranks
from cifarkit.attribution.scoring import check_attributions


@dataclass(frozen=True)
class Localization:
    """How well maps point at a feature that decides the label. The sign of a map does not matter.

    Attributes:
        mass: share of the map inside the feature, float64 (B,); ``chance`` if it has no preference.
        hits: whether the largest value is inside, float64 (B,); of several largest ones the share that is.
        auc: probability that a pixel inside is above one outside, float64 (B,); 0.5 by chance.
        chance: share of the pixels that are inside, float64 (B,).
    """

    mass: Tensor = field(repr=False)
    hits: Tensor = field(repr=False)
    auc: Tensor = field(repr=False)
    chance: Tensor = field(repr=False)

    def __str__(self) -> str:
        return (
            f"{self.mass.mean():.1%} of the map inside the feature (by chance {self.chance.mean():.1%}), "
            f"largest value inside in {self.hits.mean():.1%} of {len(self.mass)} images, "
            f"area under the ROC curve {self.auc.mean():.3f}"
        )


def localization(attributions: Tensor, inside: Tensor) -> Localization:
    """Compare maps with the place of the feature that decides the label.

    The value of a pixel is the sum of the absolute values of its channels. A map of zeros counts as one without
    preference: its mass is spread evenly.

    Args:
        attributions: (B, C, H, W), or (B, H, W).
        inside: bool (B, H, W), true where the feature is, in part of each image.
    Raises:
        TypeError: if attributions are no float tensor or inside is no bool tensor.
        ValueError: if the shapes differ, or all or nothing of an image is inside.
    Source: Arras et al. 2022, "CLEVR-XAI", section 3.3 (mass); Zhang et al. 2016 (pointing game).
    """
    where = _check_inside(inside)
    channels = attributions.shape[1] if isinstance(attributions, Tensor) and attributions.dim() == 4 else 1
    maps = check_attributions(attributions, where[:, None].expand(-1, channels, -1, -1))
    values, where = maps.double().abs().sum(1).flatten(1), where.flatten(1)  # (B, H * W)
    pixels, part = values.shape[1], where.sum(1).double()
    total = values.sum(1)
    mass = torch.where(total > 0, (values * where).sum(1) / total.clamp_min(1e-300), part / pixels)
    largest = values == values.amax(1, keepdim=True)
    hits = (largest & where).sum(1).double() / largest.sum(1)
    # Mann and Whitney 1947: the ranks inside, above the least they could add up to, over the number of pairs.
    above = (average_ranks(values) * where).sum(1) - part * (part + 1) / 2
    return Localization(mass, hits, above / (part * (pixels - part)), part / pixels)


def _check_inside(inside: Any) -> Tensor:
    if not isinstance(inside, Tensor) or inside.dtype != torch.bool:
        got = inside.dtype if isinstance(inside, Tensor) else type(inside).__name__
        raise TypeError(f"inside must be a bool tensor (B, H, W); got {got}")
    if inside.dim() != 3 or 0 in inside.shape:
        raise ValueError(f"inside must be (B, H, W); got shape {tuple(inside.shape)}")
    where = inside.cpu()
    if (where.flatten(1).all(1) | ~where.flatten(1).any(1)).any():
        raise ValueError("inside must be true in part of each image; in one it is true everywhere or nowhere")
    return where
