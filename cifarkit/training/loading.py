"""Loaders as the loop needs them: not empty, not disturbed by a look at them, and continued where a run stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from cifarkit.seeding import RngState


def require_batches(name: str, loader: Any) -> None:
    """Raise TypeError unless loader is an iterable with a length, and ValueError if it is empty."""
    if not hasattr(loader, "__iter__") or not hasattr(loader, "__len__"):
        raise TypeError(f"{name} must be an iterable of batches with a length; got {type(loader).__name__}")
    if len(loader) == 0:
        raise ValueError(f"{name} has no batches: the dataset is empty, or drop_last dropped the only one")


@contextmanager
def undisturbed(loader: Any) -> Iterator[None]:
    """Put back a loader's position and the global random states when the block ends."""
    rng = RngState.capture()
    state = loader.state_dict() if hasattr(loader, "state_dict") else None
    try:
        yield
    finally:
        if state is not None:
            loader.load_state_dict(state)
        rng.restore()


def replayed(loader: Iterable[Any], batches: int, rng_at_start: RngState) -> Iterator[Any]:
    """Iterate over what is left of an epoch of a loader that keeps no state, such as PyTorch's DataLoader.

    The loader is asked for the same order again by the random state its epoch began with, and the used batches are
    drawn once more and passed over.
    """
    present = RngState.capture()
    rng_at_start.restore()
    remaining = islice(iter(loader), batches, None)
    first = next(remaining, None)  # orders are drawn when the first batch is asked for
    present.restore()
    return iter(()) if first is None else chain([first], remaining)
