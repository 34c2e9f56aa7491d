"""Normal numbers whose order does not depend on the pieces in which they are taken."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**14  # numbers made at a time, a multiple of 16


class NormalStream:
    """Hand out the numbers of ``torch.randn(total)`` after ``torch.manual_seed(seed)`` without holding them all.

    They are made on the CPU, in float32, so they are the same for every device. PyTorch fills a tensor in sixteens,
    and where its size is no multiple of 16 it draws the last sixteen once more. Pieces of any size, drawn one by one,
    would therefore hold other numbers; blocks that are multiples of 16, with the last of 16 or more, do not.

    Args:
        seed: any integer; taken modulo 2**64, as PyTorch does with negative ones.
        total: how many numbers there are.
    """

    def __init__(self, seed: int, total: int) -> None:
        self._generator = torch.Generator().manual_seed(seed % 2**64)
        self._unmade, self._left = total, torch.empty(0)

    def take(self, *shape: int) -> Tensor:
        """Return the next numbers, float32 of this shape."""
        count = torch.Size(shape).numel()
        pieces, held = [self._left], len(self._left)
        while held < count:
            pieces.append(self._block())
            held += len(pieces[-1])
        numbers = torch.cat(pieces)
        self._left = numbers[count:].clone()  # not a view, which would keep what was handed out
        return numbers[:count].view(shape)

    def _block(self) -> Tensor:
        """Make the next block; the last takes all that is left, so that it is not too short for PyTorch's sixteens."""
        assert self._unmade, "more numbers were taken than there are"
        size = _BLOCK if self._unmade >= 2 * _BLOCK else self._unmade
        self._unmade -= size
        return torch.randn(size, generator=self._generator, dtype=torch.float32)
