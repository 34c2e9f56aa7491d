"""Weighted sums over a sorted sequence, each up to a place of its own: one running sum serves them all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers (rows, N, columns) of a temporary. For a thread of the CPU 1 MiB of fp64, which stays in its cache and spares
# the system from handing out new pages, the half of the time otherwise; elsewhere few large steps beat many small ones.
_CHUNK_NUMBERS, _CHUNK_NUMBERS_ELSEWHERE = 2**17, 2**22
_FEWEST_COLUMNS, _MOST_COLUMNS = 8, 64  # fp64 numbers in a cache line; more, and the strides of cumsum miss the cache


class RunningSum(NamedTuple):
    """Weights in the order they are added in, behind one that is 0, and how far each of M sums goes."""

    order: Tensor  # (R, N + 1)
    weights: Tensor  # (R, N + 1)
    places: Tensor  # (R, M), from 0 to N

    def of_weights(self) -> Tensor:
        """Sum the weights: (R, M)."""
        return self.weights.cumsum(1).gather(1, self.places)

    def of_numbers(self, numbers: Tensor) -> Tensor:
        """Sum weighted numbers (R, N): (R, M)."""
        return (self.weights * numbers.gather(1, self.order)).cumsum(1).gather(1, self.places)

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """Sum weighted vectors (R, N, D): (R, M, D)."""
        weighted = self.weights[:, :, None] * gather_rows(vectors, self.order)
        return gather_rows(weighted.cumsum(1), self.places)


def sums_from_both_ends(numbers: Tensor, others: Tensor, high: Tensor, low: Tensor) -> tuple[RunningSum, RunningSum]:
    """Sort numbers (R, N) and cut them where each plus one of the others (R, M) is 0.

    Returns:
        The sum of ``high`` weights (R, N) from the largest number down to the cut, not counting pairs that add up to 0,
        and that of ``low`` weights from the smallest number up to it.
    """
    ordered, order = numbers.detach().contiguous().sort(dim=1)  # searchsorted warns of any other layout
    cuts = torch.searchsorted(ordered, -others.detach().contiguous(), right=True)
    return _running_sum(order.flip(1), high, numbers.shape[1] - cuts), _running_sum(order, low, cuts)


def _running_sum(order: Tensor, weights: Tensor, places: Tensor) -> RunningSum:
    return RunningSum(F.pad(order, (1, 0)), F.pad(weights.gather(1, order), (1, 0)), places)


def gather_rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Take the vectors of matrix (R, N, D) at index (R, M): (R, M, D), copied whole, which gather would not."""
    rows, count, dim = matrix.shape
    flat = index + torch.arange(rows, device=index.device)[:, None] * count
    return matrix.reshape(rows * count, dim).index_select(0, flat.flatten()).view(rows, index.shape[1], dim)


def chunks(query: Tensor, value: Tensor) -> tuple[list[slice], list[slice]]:
    """Split the rows and columns of query (R, M) and value (R, N, D), so that temporaries are of a good size.

    A chunk has one row and 8 columns at least.
    """
    rows, nodes, columns = value.shape
    longest = max(query.shape[1], nodes)
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return _slices(rows, _CHUNK_NUMBERS_ELSEWHERE // (longest * columns)), [slice(0, columns)]
    most = _CHUNK_NUMBERS * torch.get_num_threads()
    width = min(columns, _MOST_COLUMNS, max(_FEWEST_COLUMNS, most // longest))
    return _slices(rows, most // (longest * width)), _slices(columns, width)


def _slices(count: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, count, size)]
