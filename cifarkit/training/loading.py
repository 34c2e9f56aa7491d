"""Loaders as the loop needs them: not empty, not disturbed by a look at them, and continued where a run stopped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from cifarkit.seeding import RngState
from cifarkit.training.distributed import rank, world_size


def own_part() -> dict[str, Any]:
    """Return the arguments by which a Loader gives this process, one of those of torchrun, its part of each batch."""
    return {"rank": rank(), "world_size": world_size()}


def require_batches(name: str, loader: Any) -> None:
    """Raise TypeError unless loader is an iterable with a length, and ValueError if it is empty or another's part."""
    try:
        batches = len(loader) if hasattr(loader, "__iter__") else None
    except TypeError:  # also a DataLoader over an IterableDataset, which has a __len__ that raises
        batches = None
    if batches is None:
        raise TypeError(f"{name} must be an iterable of batches with a length; got {type(loader).__name__}")
    if batches == 0:
        raise ValueError(f"{name} has no batches: the dataset is empty, or drop_last dropped the only one")
    part = _part(loader)
    if part is not None and part != (rank(), world_size()):
        raise ValueError(
            f"{name} has rank={part[0]}, world_size={part[1]}, but this is process {rank()} of {world_size()}: "
            "give Loader(**training.own_part()), and PyTorch's DataLoader a DistributedSampler"
        )


def _part(loader: Any) -> tuple[int, int] | None:
    """Return the rank and the world size that a loader was made for, None if that cannot be told."""
    if hasattr(loader, "world_size"):
        return loader.rank, loader.world_size
    sampler = getattr(loader, "sampler", None)
    if hasattr(sampler, "num_replicas"):
        return sampler.rank, sampler.num_replicas  # type: ignore[union-attr]
    whole = type(sampler) in (SequentialSampler, RandomSampler)  # PyTorch's own, which know of no other process
    return (0, 1) if whole and type(getattr(loader, "batch_sampler", None)) is BatchSampler else None


@contextmanager
def undisturbed(loader: Any) -> Iterator[Any]:
    """Yield the loader to iterate over: its position and the global random states do not move by that.

    A loader that can make a copy of itself is spared altogether, for a position put back is a position to start at,
    which it was not if the loader was in the middle of an iteration or looked at before. The copy starts at the first
    batch of the epoch. Another loader's state is put back when the block ends.
    """
    rng, generators = RngState.capture(), generator_states(loader)
    bystander = _rewound(loader.copy()) if hasattr(loader, "copy") else loader
    state = loader.state_dict() if bystander is loader and hasattr(loader, "state_dict") else None
    try:
        yield bystander
    finally:
        if state is not None:
            loader.load_state_dict(state)
        set_generator_states(loader, generators)
        rng.restore()


def _rewound(loader: Any) -> Any:
    """Put a loader that counts samples, as cifarkit's own do, back to the first: a resumed one may be at its end."""
    state = loader.state_dict() if hasattr(loader, "position") and hasattr(loader, "state_dict") else {}
    if "samples" in state:
        loader.load_state_dict({**state, "samples": 0})
    return loader


@contextmanager
def iterating(batches: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Iterate, and end the iteration with the block: an exception would keep its thread alive as long as itself."""
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def generator_states(loader: Any) -> list[Tensor]:
    """Return the states of the generators that a DataLoader and its samplers were given."""
    return [generator.get_state() for generator in _generators(loader)]


def set_generator_states(loader: Any, states: Sequence[Tensor]) -> None:
    """Put back what :func:`generator_states` returned."""
    for generator, state in zip(_generators(loader), states, strict=True):
        generator.set_state(state)


def _generators(loader: Any) -> list[torch.Generator]:
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    candidates = [getattr(item, "generator", None) for item in (loader, sampler)]
    for item in (batch_sampler, getattr(batch_sampler, "sampler", None)):  # most often the sampler once more
        generator = getattr(item, "generator", None)
        candidates += [] if any(generator is other for other in candidates) else [generator]
    return [candidate for candidate in candidates if isinstance(candidate, torch.Generator)]


def warn_of_lasting_workers(loader: Iterable[Any]) -> None:
    """Warn if a DataLoader keeps its workers from epoch to epoch; their random states are in no checkpoint.

    They were seeded when the first epoch began. Begun in a later one they are seeded anew, and the drawing of that seed
    changes the order of the samples, too.
    """
    if getattr(loader, "persistent_workers", False):
        warnings.warn(
            "the resumed run may not be equal bit for bit: a DataLoader with persistent_workers=True cannot be "
            "continued in a later epoch; leave it out, or use cifarkit.Loader",
            stacklevel=2,
        )


def replayed(loader: Iterable[Any], batches: int, rng_at_start: RngState) -> Iterator[Any]:
    """Iterate over what is left of an epoch of a loader that keeps no state, such as PyTorch's DataLoader.

    The loader is asked for the same order again by the random state its epoch began with, and the used batches are
    drawn once more and passed over.
    """
    present = RngState.capture()
    rng_at_start.restore()
    iterator = iter(loader)
    for _ in islice(iterator, batches):  # an order is drawn when the first batch is asked for, so here
        pass
    present.restore()  # transforms that use the global state draw for the next batch what they would have drawn
    return iterator
