"""Change batches of images, with a draw of its own for each image: ``t(images, draws=None) -> images``."""

from cifarkit.transforms.base import RandomTransform, Transform
from cifarkit.transforms.by_epoch import ByEpoch
from cifarkit.transforms.color import ColorJitter, Normalize
from cifarkit.transforms.compose import Compose
from cifarkit.transforms.erase import Cutout
from cifarkit.transforms.geometry import AlternatingFlip, RandomCrop, RandomHorizontalFlip, RandomRotation, Resize
from cifarkit.transforms.mix import CutMix, Mixup
from cifarkit.transforms.policy import TrivialAugment

__all__ = [
    "AlternatingFlip",
    "ByEpoch",
    "ColorJitter",
    "Compose",
    "CutMix",
    "Cutout",
    "Mixup",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomTransform",
    "Resize",
    "Transform",
    "TrivialAugment",
]
