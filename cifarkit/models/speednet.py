"""A small convolutional network that learns CIFAR-10 in few operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer

_PATCH = 2 * 2  # pixels that a filter of the stem reads, of every channel
_WHITENED_AT_A_TIME = 500  # images


class SpeedNet(nn.Module):
    """Classify small images with seven convolutions in a VGG-like row (1.97 M parameters at the default widths).

    A 2x2 convolution is followed by three groups of 3x3 convolutions. Each group halves the image right after its
    first convolution, so that the others, BatchNorm and GELU run on a quarter of the pixels. Every 3x3 convolution
    starts as the identity on its first channels, BatchNorm learns no scale, and :meth:`whiten` sets the stem from the
    training images instead of learning it.

    Args:
        num_classes: number of logits K.
        widths: channels of the three groups; (32, 64, 64) makes a network for quick experiments.
        depth: 3x3 convolutions a group; with 3 the last two of a group have a residual connection around them.
        channels: C of the images, 1 for grey; the stem has 8 filters for each.
    Raises:
        TypeError: if num_classes, depth, channels or a width is no integer.
        ValueError: if one is below 1, depth is not 2 or 3, or widths are not three.
    Shapes:
        (B, C, H, W) -> (B, K) logits; H and W from 9 pixels, but made for 20 to 64, such as 28 or 32.
    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3.
    """

    def __init__(
        self, num_classes: int = 10, *, widths: Sequence[int] = (64, 256, 256), depth: int = 2, channels: int = 3
    ) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1)
        if not isinstance(widths, Sequence) or len(widths) != 3:
            raise ValueError(f"widths={widths!r} must be three positive integers, such as (64, 256, 256)")
        widths = [check_integer(f"widths[{index}]", width, 1) for index, width in enumerate(widths)]
        if check_integer("depth", depth) not in (2, 3):
            raise ValueError(f"depth={depth} is not offered; use 2, or 3 with a residual connection")
        channels = check_integer("channels", channels, 1)
        stem_width = 2 * _PATCH * channels  # a direction and its negative for each number of a patch
        self.stem = nn.Sequential(nn.Conv2d(channels, stem_width, kernel_size=2), nn.GELU())
        inputs = (stem_width, *widths[:-1])
        self.groups = nn.Sequential(
            *(_Group(before, after, depth) for before, after in zip(inputs, widths, strict=True))
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(9)  # the head reads maxima, which are large; small logits learn faster

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.groups(self.stem(images)))  # (B, D, 1, 1)
        logits: Tensor = self.head(features.flatten(1))  # (B, D) -> (B, K)
        return logits

    @torch.no_grad()
    def whiten(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Set the stem to the principal directions of 2x2 patches, each over its deviation, and to their negatives.

        What leaves the stem is then uncorrelated and of unit variance. Its kernel is frozen, its bias set to 0 and
        left to learn.

        Args:
            images: (N, C, H, W) float, normalised as in training; a few thousand do.
            epsilon: added to the variances, so that directions of hardly any variance are not blown up.
        Raises:
            TypeError: if images are no float tensor.
            ValueError: if images are not (N, C, H, W), none, or not all finite.
        Source: Jordan 2024, section 3.2.
        """
        stem = self.stem[0]
        assert isinstance(stem, nn.Conv2d)
        channels = stem.in_channels
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a float tensor, normalised as in training; got {kind}")
        if images.dim() != 4 or images.shape[1] != channels:
            got = tuple(images.shape)
            raise ValueError(f"images must be (N, {channels}, H, W), normalised as in training; got {got}")
        if not len(images) or not images.isfinite().all():
            raise ValueError(f"images must be finite, and at least one; got {len(images)}, not all finite or none")
        numbers = _PATCH * channels
        covariance, count = images.new_zeros(numbers, numbers, dtype=torch.float32), 0
        for some in torch.split(images, _WHITENED_AT_A_TIME):  # all patches at once would be the peak of the memory
            patches = nn.functional.unfold(some.float(), kernel_size=2).transpose(1, 2).flatten(0, 1)  # (patches, 4C)
            covariance, count = covariance + patches.T @ patches, count + len(patches)
        variances, directions = torch.linalg.eigh(covariance / count)
        rows = (directions / (variances + epsilon).sqrt()).T.flip(0)  # (4C, 4C), the strongest direction first
        assert stem.bias is not None
        stem.weight.copy_(torch.cat([rows, -rows]).view_as(stem.weight)).requires_grad_(False)
        stem.bias.zero_()


class _Group(nn.Module):
    """Two or three 3x3 convolutions with a 2x2 max-pool after the first."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(before, after), nn.MaxPool2d(2), _norm(after), nn.GELU())
        rest = [_convolution(after, after), _norm(after)]
        if depth == 3:
            rest += [nn.GELU(), _convolution(after, after), _norm(after)]
        self.rest = nn.Sequential(*rest)
        self.residual = depth == 3
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        more: Tensor = self.activation(self.rest(x) + x if self.residual else self.rest(x))
        return more


def _convolution(before: int, after: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:before].detach())
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width, momentum=0.4)
    layer.weight.requires_grad_(False)  # the next kernel can do what a scale does
    return layer
