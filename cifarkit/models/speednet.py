"""A small convolutional network that learns CIFAR-10 in few operations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cifarkit.checks import check_integer

_STEM_WIDTH = 24  # twice the 3 * 2 * 2 numbers that the 2x2 stem reads


class SpeedNet(nn.Module):
    """Classify small images with seven convolutions in a VGG-like row (1.97 M parameters at the default widths).

    A 2x2 convolution is followed by three groups of two 3x3 convolutions. Each group halves the image right after its
    first convolution, so that the second one, BatchNorm and GELU run on a quarter of the pixels.

    Args:
        num_classes: number of logits K.
        widths: channels of the three groups; (32, 64, 64) makes a network for quick experiments.
    Raises:
        TypeError: if num_classes or a width is no integer.
        ValueError: if one is below 1, or widths are not three.
    Shapes:
        (B, 3, H, W) -> (B, K) logits, H and W from 28 to 64 pixels.
    Source: the plain network of Jordan 2024, arXiv 2404.00498, section 3.
    """

    def __init__(self, num_classes: int = 10, *, widths: Sequence[int] = (64, 256, 256)) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1)
        if not isinstance(widths, Sequence) or len(widths) != 3:
            raise ValueError(f"widths={widths!r} must be three positive integers, such as (64, 256, 256)")
        widths = [check_integer(f"widths[{index}]", width, 1) for index, width in enumerate(widths)]
        self.stem = nn.Sequential(nn.Conv2d(3, _STEM_WIDTH, kernel_size=2), nn.GELU())
        inputs = (_STEM_WIDTH, *widths[:-1])
        self.groups = nn.Sequential(*(_group(before, after) for before, after in zip(inputs, widths, strict=True)))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.groups(self.stem(images)))  # (B, D, 1, 1)
        logits: Tensor = self.head(features.flatten(1))  # (B, D) -> (B, K)
        return logits


def _group(before: int, after: int) -> nn.Sequential:
    """Two 3x3 convolutions with a 2x2 max-pool after the first."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(after),
        nn.GELU(),
        nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.GELU(),
    )
