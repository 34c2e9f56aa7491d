"""Means of a task's metrics over a loader, which leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import name_kinds
from cifarkit.inference import evaluation_mode
from cifarkit.training import distributed
from cifarkit.training.interrupts import InterruptGuard
from cifarkit.training.kinds import describe
from cifarkit.training.loading import iterating, undisturbed
from cifarkit.training.task import Batch, Task


def evaluate(
    task: Task,
    loader: Iterable[Any],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    guard: InterruptGuard | None,
) -> dict[str, float]:
    """Return the task's metrics over a loader, each the mean over all samples of all ranks.

    Args:
        task, loader: what is judged, on its device, and on what.
        device: where it is.
        autocast: opens the region in which the task computes.
        guard: asked between two batches, if there is one.
    """
    distributed.average_statistics(task)
    # Not inference_mode: a model that keeps a table made here could not use it in its next training step.
    sums: dict[str, list[Any]] = {}
    counts: dict[str, list[Any]] = {}
    batches_seen = 0
    with (
        undisturbed(loader) as bystander,
        iterating(bystander) as batches,
        evaluation_mode(task),
        torch.no_grad(),
    ):
        if guard is not None and distributed.world_size() == 1:  # else the other ranks would wait for this one
            batches = guard.excusing(batches)
        for batch in batches:
            batches_seen += 1
            if guard is not None:
                distributed.heed(guard)
            with autocast():
                results = task.evaluate(to_device(batch, device, task.layout))
            for name, (total, count) in _checked(results, task).items():
                sums.setdefault(name, []).append(total)
                counts.setdefault(name, []).append(count)
    totals, samples = (
        distributed.add_up({name: _sum(parts) for name, parts in each.items()}) for each in (sums, counts)
    )
    if not totals and not distributed.add_up({"batches": batches_seen})["batches"]:
        raise ValueError("the loader to evaluate on gives no batch; can it be iterated over only once?")
    if uncounted := [name for name, count in samples.items() if not count]:
        raise ValueError(f"{type(task).__name__}.evaluate counted no samples for {uncounted[0]!r} in the whole loader")
    return {f"val_{name}": total / samples[name] for name, total in totals.items()}


def _sum(parts: Sequence[Any]) -> float:
    """Add up numbers and scalar tensors, which are read off their device together."""
    tensors = [part.float() for part in parts if isinstance(part, Tensor)]
    read = torch.stack(tensors).tolist() if tensors else []
    return float(sum(read) + sum(float(part) for part in parts if not isinstance(part, Tensor)))


def _checked(results: Any, task: Task) -> Mapping[str, tuple[Any, Any]]:
    """Return the results of a batch.

    Raises:
        TypeError: if they are no dict of name to (sum, count).
    """
    found = results if isinstance(results, Mapping) else {"": results}
    for name, pair in found.items():
        if not isinstance(name, str) or not name or not _is_sum_and_count(pair):
            got = f"{name!r}: {describe(pair)}" if name else describe(pair)
            raise TypeError(
                f"{type(task).__name__}.evaluate must return a sum over the batch and the number of samples for each "
                f"metric, as in {{'loss': (loss * len(images), len(images))}}; got {got}"
            )
    return found


def _is_sum_and_count(pair: Any) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return False
    total, count = pair
    return _is_scalar(total) and _is_scalar(count)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and not value.dim())


def to_device(batch: Batch, device: torch.device, layout: torch.memory_format) -> list[Tensor]:
    """Move a batch, its images in a layout."""
    if not isinstance(batch, (list, tuple)) or not all(isinstance(item, Tensor) for item in batch):
        raise TypeError(f"a batch must be a tuple of tensors such as (images, labels); got {name_kinds(batch)}")
    if not len(batch[0]):
        raise ValueError("a batch is empty; leave it out")
    return [
        item.to(device, non_blocking=True, memory_format=layout)
        if item.dim() == 4
        else item.to(device, non_blocking=True)
        for item in batch
    ]
