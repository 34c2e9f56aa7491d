"""How many micro-batches make one optimizer update, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from cifarkit.checks import check_integer


class AccumulationPlan:
    """A number of micro-batches an update, or {first epoch: number} with epochs from 0.

    Raises:
        TypeError: if a number or an epoch is no integer.
        ValueError: if a number is below 1 or an epoch below 0.
    """

    def __init__(self, plan: int | Mapping[int, int]) -> None:
        if not isinstance(plan, Mapping):
            plan = {0: check_integer("accumulate_grad_batches", plan, 1)}
        self.factors: dict[int, int] = {}
        for epoch, factor in plan.items():
            first = check_integer("first epoch in accumulate_grad_batches", epoch, 0)
            self.factors[first] = check_integer(f"accumulate_grad_batches[{epoch}]", factor, 1)

    def factor(self, epoch: int) -> int:
        """Return the number of micro-batches an update in this epoch, 1 before the first one named."""
        begun = [first for first in self.factors if first <= epoch]
        return self.factors[max(begun)] if begun else 1

    def updates(self, batches: int, epoch: int) -> int:
        """Return the updates that so many batches make; a short last window makes one too."""
        return -(-batches // self.factor(epoch))

    def total_updates(self, batches: int, max_epochs: int | None, max_steps: int | None) -> int:
        """Return the updates of a whole fit over epochs of so many batches."""
        if max_epochs is None:
            assert max_steps is not None
            return max_steps
        edges = [*sorted({0, *(first for first in self.factors if first < max_epochs)}), max_epochs]
        total = sum((end - begin) * self.updates(batches, begin) for begin, end in pairwise(edges))
        return total if max_steps is None else min(total, max_steps)
