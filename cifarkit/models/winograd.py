"""Convolutions of 3 x 3 with fixed weights by Winograd's method: the same result with fewer multiplications."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TAPS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))  # G of F(2, 3)
_ENLARGED_TAPS = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
_TRANSFORMED = 2**22  # numbers that images are turned into at a time, which a cache should hold


class FastConvolution:
    """A 3 x 3 convolution of stride 1 and padding 1 with fixed weights, on images in channels_last.

    Two by two pixels of the result come from four by four of the images. Both are transformed by additions, so that 16
    products of matrices do the work of 36. With ``enlarge`` the images are enlarged twofold by nearest neighbours
    first; the two middle pixels of four in a row are then equal, one of their sums is always 0, and 9 products remain.

    Args:
        weight, bias: (O, C, 3, 3) and (O,), those of the convolution; not looked at again.
        dtype: of the products and of the result.
        enlarge: double the sides of the images first.
    Shapes:
        (B, C, H, W), optionally shift (B, O) to add -> (B, O, H, W), H and W even; (B, O, 2 H, 2 W) with enlarge.
    Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, enlarge: bool = False) -> None:
        self.dtype, self.enlarge = dtype, enlarge
        taps = torch.tensor(_ENLARGED_TAPS if enlarge else _TAPS, dtype=weight.dtype, device=weight.device)
        last = weight.detach().permute(2, 3, 1, 0).flatten(2).flatten(0, 1)  # (O, C, 3, 3) -> (9, C O)
        both = torch.kron(taps, taps) @ last  # (16 or 9, C O)
        self.products = both.to(dtype).view(-1, weight.shape[1], weight.shape[0])  # (16 or 9, C, O)
        self.bias = bias.detach().to(dtype)

    def __call__(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        batch, channels, height, width = images.shape
        rows, columns = (height, width) if self.enlarge else (height // 2, width // 2)
        offset = self.bias.expand(batch, -1) if shift is None else shift.to(self.dtype) + self.bias  # (B, O)
        padded = F.pad(images.to(self.dtype).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
        result = padded.new_empty(batch, rows, 2, columns, 2, offset.shape[1])
        count = max(1, _TRANSFORMED // (len(self.products) * rows * columns * channels))  # images at a time
        for some, added, out in zip(*(torch.split(part, count) for part in (padded, offset, result)), strict=True):
            self._convolve(some, added, out)
        return result.view(batch, 2 * rows, 2 * columns, -1).permute(0, 3, 1, 2)  # (B, O, 2 h, 2 w), channels_last

    def _convolve(self, padded: Tensor, offset: Tensor, result: Tensor) -> None:
        """Turn (B, H + 2, W + 2, C) and the numbers (B, O) to add into result (B, h, 2, w, 2, O)."""
        fold, unfold, count = (_fold_enlarged, _unfold_enlarged, 3) if self.enlarge else (_fold, _unfold, 4)
        (batch, rows, _, columns, _, _), (height, channels) = result.shape, (padded.shape[1], padded.shape[3])
        by_column = padded.new_empty(count, batch, height, columns, channels)
        fold(padded, 2, by_column)  # first, for its strided reading is slow, and there is less to read here
        tiles = padded.new_empty(count, count, batch, rows, columns, channels)
        fold(by_column, 2, tiles)
        mixed = torch.bmm(tiles.view(count**2, -1, channels), self.products)
        mixed = mixed.view(count, count, batch, rows, columns, -1)  # (4 or 3, 4 or 3, B, h, w, O)
        mixed[1, 1] += offset[:, None, None]  # this product is a part of every pixel
        halves = mixed.new_empty(2, *mixed.shape[1:])
        unfold(mixed, halves)
        unfold(halves.transpose(0, 1), result.permute(4, 2, 0, 1, 3, 5))


def _fold(x: Tensor, dim: int, out: Tensor) -> None:
    """Transform four neighbours along a dimension, and the four two further on, and so on: B^T of F(2, 3)."""
    first, second, third, fourth = (_cut(x, dim, start, x.shape[dim] - 2, 2) for start in range(4))
    torch.sub(first, third, out=out[0])
    torch.add(second, third, out=out[1])
    torch.sub(third, second, out=out[2])
    torch.sub(second, fourth, out=out[3])


def _unfold(mixed: Tensor, out: Tensor) -> None:
    """Form two neighbours of the result from four products: A^T of F(2, 3)."""
    both = mixed[1] + mixed[2]
    torch.add(mixed[0], both, out=out[0])
    difference = torch.sub(mixed[1], mixed[2], out=both)
    torch.sub(difference, mixed[3], out=out[1])


def _fold_enlarged(x: Tensor, dim: int, out: Tensor) -> None:
    """Do the same for a, b, b, c, which three neighbours become: half of b + b, without b - b."""
    first, second, third = (_cut(x, dim, start, x.shape[dim] - 2, 1) for start in range(3))
    torch.sub(first, second, out=out[0])
    out[1].copy_(second)
    torch.sub(second, third, out=out[2])


def _unfold_enlarged(mixed: Tensor, out: Tensor) -> None:
    torch.add(mixed[0], mixed[1], out=out[0])
    torch.sub(mixed[1], mixed[2], out=out[1])


def _cut(x: Tensor, dim: int, start: int, length: int, step: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, start + length, step),)]
