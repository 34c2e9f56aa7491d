"""Random transforms of torchvision, by which all images of a batch get the same draw."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

_DRAWING = {"ColorJitter", "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "GaussianBlur"}
_DRAWING |= {"ElasticTransform", "ScaleJitter", "JPEG"}  # of torchvision, beside those whose name starts with Random
_OURS = {  # by torchvision's names
    "RandomCrop": "RandomCrop",
    "RandomHorizontalFlip": "RandomHorizontalFlip",
    "RandomRotation": "RandomRotation",
    "RandomErasing": "Cutout",
    "ColorJitter": "ColorJitter",
    "TrivialAugmentWide": "TrivialAugment",
    "AutoAugment": "TrivialAugment",
    "RandAugment": "TrivialAugment",
    "AugMix": "TrivialAugment",
}


def warn_of_batch_draw(transform: Any) -> None:
    """Warn if a transform draws once for a whole batch, and name what draws for each image."""
    found = _find(transform)
    if found is None:
        return
    name = type(found).__name__
    ours = f"cifarkit.transforms.{_OURS[name]}, or " if name in _OURS else ""
    warnings.warn(
        f"transform holds torchvision's {name}, by which all images of a batch get the same draw; for one draw an "
        f"image use {ours}lambda images: torch.stack([transform(image) for image in images])",
        stacklevel=3,
    )


def _find(transform: Any) -> Any | None:
    """Return the first transform of torchvision that draws once for a whole batch, also from within others."""
    kind = type(transform)
    foreign = kind.__module__.startswith("torchvision.")
    always = getattr(transform, "p", None) == 1 and kind.__name__.endswith(("Flip", "Grayscale", "Invert", "Equalize"))
    if foreign and not always and (kind.__name__.startswith("Random") or kind.__name__ in _DRAWING):
        return transform
    if not (foreign or kind.__module__.startswith("cifarkit.") or isinstance(transform, nn.Sequential)):
        return None  # it may take its members image by image
    members = getattr(transform, "transforms", getattr(transform, "stages", ()))  # of Compose and of ByEpoch
    if isinstance(transform, nn.Sequential):
        members = list(transform)
    if isinstance(members, Mapping):
        members = [*members.values()]
    if not isinstance(members, (list, tuple, nn.ModuleList)):  # an iterator would be used up
        return None
    return next((found for member in members if (found := _find(member)) is not None), None)
