"""Architectures for small images, one a file."""

from cifarkit.models.resnet import resample_stem, resnet18, resnet34
from cifarkit.models.speednet import SpeedNet

__all__ = ["SpeedNet", "resample_stem", "resnet18", "resnet34"]
