"""The parts of the U-Net: residual blocks, attention between pixels, and convolutions that can be made fast."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.inference import cpu_has_amx
from cifarkit.models.attention import SelfAttention
from cifarkit.models.winograd import FastConvolution

Layer = TypeVar("Layer", bound=nn.Conv2d | nn.Linear)

_WORTH_TRANSFORMING = 128, 64  # channels, in and out, from which FastConvolution pays; the latter where it enlarges
_FUSED_NODES = 64  # up to so many PyTorch's fused attention is at least as fast on a CPU as two plain products


class ResidualBlock(nn.Module):
    """Two convolutions, told the time between them, and attention if heads are given; each added to its input."""

    def __init__(self, before: int, after: int, dim: int, dropout: float, heads: int | None) -> None:
        super().__init__()
        self.first_norm, self.first = group_norm(before), convolution(before, after)
        self.shift = linear(dim, after)
        self.norm, self.dropout, self.last = group_norm(after), nn.Dropout(dropout), zeroed(convolution(after, after))
        self.shortcut = nn.Identity() if before == after else started(nn.Conv2d(before, after, 1))
        self.attention = None if heads is None else PixelAttention(after, heads)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)), shift)
        h = self.shortcut(x) + self.last(self.dropout(F.silu(self.norm(h))))
        attended: Tensor = h if self.attention is None else self.attention(h)
        return attended


class PixelAttention(nn.Module):
    """Attention between the pixels, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = group_norm(channels), SelfAttention(channels, heads)
        for layer in (self.attention.query, self.attention.key, self.attention.value):
            started(layer)
        zeroed(self.attention.project)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H W, C), a view where C comes last
        mixed: Tensor = self._attend(nodes) if self._is_faster_plain(nodes) else self.attention(nodes)
        return x + mixed.transpose(1, 2).reshape(x.shape)  # (B, H W, C) -> (B, C, H, W), again a view

    def _is_faster_plain(self, nodes: Tensor) -> bool:
        return nodes.device.type == "cpu" and self.attention.heads == 1 and nodes.shape[1] > _FUSED_NODES

    def _attend(self, nodes: Tensor) -> Tensor:
        layers, scale = self.attention, nodes.shape[2] ** -0.5
        query, key, value = (layer(nodes) for layer in (layers.query, layers.key, layers.value))
        weights = torch.bmm(query * scale, key.transpose(1, 2)).softmax(-1)  # (B, N, N)
        projected: Tensor = layers.project(torch.bmm(weights, value))
        return projected


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that keeps the size and adds a shift (B, O) if given, fast while ``fast`` is there."""

    fast: FastConvolution | None = None
    enlarging = False

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        if self.fast is not None and not torch.is_grad_enabled() and self._is_tiled(x):
            return self.fast(x, shift)
        h = self.convolve(x)
        return h if shift is None else h + shift[:, :, None, None]

    def convolve(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def accelerate(self, dtype: torch.dtype) -> None:
        """Form what a fast convolution of these weights needs, if it pays.

        With AMX products of bf16 take little time, and the additions that save some of them would take more; that is
        reckoned, not measured.
        """
        cheap = dtype is torch.bfloat16 and cpu_has_amx()
        if not cheap and min(self.in_channels, self.out_channels) >= _WORTH_TRANSFORMING[self.enlarging]:
            assert self.bias is not None
            self.fast = FastConvolution(self.weight, self.bias, dtype, enlarge=self.enlarging)

    def _is_tiled(self, x: Tensor) -> bool:
        return self.enlarging or not (x.shape[2] % 2 or x.shape[3] % 2)


class EnlargingConvolution(Convolution):
    """Enlarge images twofold by nearest neighbours and convolve, as one transposed convolution of 4 x 4.

    Each pixel of the result sees but two by two of the small ones, so that 16 products do the work of 36.
    """

    enlarging = True

    def convolve(self, x: Tensor) -> Tensor:
        taps = self.weight.flip(2, 3).transpose(0, 1)  # (O, C, 3, 3) -> (C, O, 3, 3)
        wide = F.pad(taps, (1, 1, 1, 1))
        wide = wide[..., :-1] + wide[..., 1:]
        wide = wide[..., :-1, :] + wide[..., 1:, :]  # (C, O, 4, 4): sums of the taps that meet in one small pixel
        wide = wide.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, wide, self.bias, stride=2, padding=1)


class Downsampling(nn.Module):
    """Halve the sides by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = started(nn.Conv2d(channels, channels, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        smaller: Tensor = self.convolution(x)
        return smaller


class Upsampling(nn.Module):
    """Double the sides by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = started(EnlargingConvolution(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.convolution(x)
        return larger


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of at least 16 channels, at most 32 groups; a CPU is slow with smaller ones."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 16), channels), channels)


def convolution(before: int, after: int) -> Convolution:
    return started(Convolution(before, after, 3, padding=1))


def linear(before: int, after: int) -> nn.Linear:
    return started(nn.Linear(before, after))


def started(layer: Layer) -> Layer:
    """Draw the weights so that signals keep their size on the way forward and back, and set the bias to 0."""
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer: Layer) -> Layer:
    """Set weights and bias to 0: what the layer ends adds nothing to its input before training moves it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
