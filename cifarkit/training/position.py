"""Where a run stands in the batches of its training loader, and the random states that lead there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cifarkit.seeding import RngState
from cifarkit.training.loading import generator_states, replayed, set_generator_states, warn_of_lasting_workers


class Position:
    """The place of this process in its training loader, so that a resumed run is given the same batches.

    Args:
        loader: the training loader.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._opened = False  # by this process
        self._loader_state: dict[str, Any] | None = None
        self._rng_at_epoch_start: RngState | None = None
        self._generators = generator_states(loader)  # before the running epoch drew its order

    def open(self, epoch: int, batches: int) -> Iterator[Any]:
        """Start the batches of an epoch, or what is left of them behind those that are used up."""
        if epoch and not self._opened:
            warn_of_lasting_workers(self.loader)
        self._opened = True
        self._generators = generator_states(self.loader)
        set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:  # a DistributedSampler repeats its order otherwise
            set_epoch(epoch)
        if batches == 0 or self._rng_at_epoch_start is None or hasattr(self.loader, "load_state_dict"):
            self._rng_at_epoch_start = RngState.capture()
            return iter(self.loader)
        return replayed(self.loader, batches, self._rng_at_epoch_start)

    def mark(self) -> None:
        """Note where the loader stands, before it is asked for more or moves on to the next epoch."""
        state_of = getattr(self.loader, "state_dict", None)
        self._loader_state = state_of() if state_of else None

    def state_dict(self, batches: int) -> dict[str, Any]:
        """Return what each process has for itself, in an epoch of which so many batches are used up."""
        return {
            "loader": self._loader_state,
            "rng": RngState.capture().state_dict(),
            "generators": self._generators if batches else generator_states(self.loader),
            "rng_at_epoch_start": self._rng_at_epoch_start.state_dict() if self._rng_at_epoch_start else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up all but the present random state, which comes last of all.

        Raises:
            ValueError: if the loader does not take the position; then nothing has changed.
        """
        if state["loader"] is not None and hasattr(self.loader, "load_state_dict"):
            try:
                self.loader.load_state_dict(state["loader"])
            except ValueError:
                raise
            except Exception as error:  # the loader may be anybody's
                name = type(self.loader).__name__
                raise ValueError(f"checkpoint['loader'] is no position of this {name}: {error!r}") from error
        self._loader_state = state["loader"]
        set_generator_states(self.loader, state["generators"])
        if state["rng_at_epoch_start"] is not None:
            self._rng_at_epoch_start = RngState.from_state_dict(state["rng_at_epoch_start"])
