"""The feature map of a network: what it computes before its pooling."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet, MNASNet, RegNet, ResNet, ShuffleNetV2, SwinTransformer

from cifarkit.inference import device_of, dtype_of, evaluation_mode
from cifarkit.models.speednet import SpeedNet

_log = logging.getLogger(__name__)
_PARTS: dict[type[nn.Module], tuple[str, ...]] = {  # what networks run before their pooling
    SpeedNet: ("stem", "groups"),
    ResNet: ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    RegNet: ("stem", "trunk_output"),
    ShuffleNetV2: ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    MNASNet: ("layers",),
}
_HEADS = ("fc", "classifier", "head", "conv_head", "norm_head")  # what torchvision and timm run behind it


def feature_map(backbone: Any, images: Tensor) -> Any:
    """Run a backbone up to its pooling; a network of no known kind is run as a whole."""
    parts = _parts(backbone)
    if parts:
        for name in parts:
            images = getattr(backbone, name)(images)
        return images
    if isinstance(backbone, DenseNet):
        return F.relu(backbone.features(images))  # torchvision's forward does this one outside of features
    if isinstance(backbone, SwinTransformer):
        return backbone.permute(backbone.norm(backbone.features(images)))  # (B, h, w, C) -> (B, C, h, w)
    if callable(getattr(backbone, "forward_features", None)):
        features = backbone.forward_features(images)
        # timm's mark for Swin and its like
        return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
    return backbone.features(images) if _has_features(backbone) else backbone(images)


def _parts(backbone: nn.Module) -> tuple[str, ...]:
    return next((names for kind, names in _PARTS.items() if isinstance(backbone, kind)), ())


def _has_features(backbone: nn.Module) -> bool:
    return isinstance(getattr(backbone, "features", None), nn.Module)


def zero_image(backbone: nn.Module, size: tuple[int, int]) -> Tensor:
    """Make an image (1, C, H, W) as the backbone's first convolution takes it."""
    colours = next((layer.in_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)), 3)
    return torch.zeros(1, colours, *size, device=device_of(backbone), dtype=dtype_of(backbone, torch.float32))


def look_into(backbone: nn.Module, size: tuple[int, int]) -> tuple[int, list[str]]:
    """Send a zero image through a backbone.

    Returns:
        The channels of its feature map, and the names of the parts of its head, as far as they are usual ones.
    Raises:
        TypeError: if backbone is no module.
        ValueError: if it does not take the image, or gives no feature map.
    """
    if not isinstance(backbone, nn.Module):
        kind = type(backbone).__name__
        raise TypeError(f"backbone is a {kind}; give a torch.nn.Module that maps images to (B, C, h, w)")
    name, image = type(backbone).__name__, zero_image(backbone, size)
    try:
        with evaluation_mode(backbone), torch.no_grad():
            features, left_out = _run_and_watch(backbone, image)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        takes_images = any(isinstance(layer, nn.Conv2d) for layer in backbone.modules())
        advice = "the image_size it takes" if takes_images else "a network that maps images to (B, C, h, w)"
        raise ValueError(
            f"backbone={name} fails on an image of shape {tuple(image.shape)} ({error}); give {advice}"
        ) from error
    if not isinstance(features, Tensor) or features.dim() != 4:
        what = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ValueError(
            f"backbone={name} gives {what} and no feature map (B, C, h, w); give an nn.Sequential of those of its "
            "layers that come before its pooling, or a network whose forward ends there"
        )
    if features.shape[2:].numel() == 1:
        advice = "give larger images, or a network that shrinks them less"
        _log.warning("%s gives a feature map of one cell, which can attend only to itself; %s", name, advice)
    is_cut = bool(_parts(backbone)) or hasattr(backbone, "forward_features") or _has_features(backbone)
    return int(features.shape[1]), left_out if is_cut else []


def _run_and_watch(backbone: nn.Module, image: Tensor) -> tuple[Any, list[str]]:
    """Return the feature map, and which of the usual parts of a head it was made without.

    Seen and not known by name, as timm's EfficientNet makes its map by the conv_head that MobileNetV3 has behind it.
    """
    left_out = [name for name, _ in backbone.named_children() if name in _HEADS]
    hooks = [
        backbone.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: left_out.remove(name) if name in left_out else None
        )
        for name in left_out
    ]
    try:
        return feature_map(backbone, image), left_out
    finally:
        for hook in hooks:
            hook.remove()
