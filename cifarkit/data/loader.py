"""Batches in a fixed random order, whole-batch transforms, and a position that is one number."""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import check_device, check_integer, check_transform, has_parameter
from cifarkit.data.batch_draws import warn_of_batch_draw
from cifarkit.data.dataset import ImageDataset
from cifarkit.memory import keep_freed_memory
from cifarkit.seeding import Draws

Transform = Callable[..., Tensor]

_MOST_WORKERS = min(2, os.cpu_count() or 1)  # threads that prepare batches; more would take cores from the model


class Loader:
    """Iterate over an :class:`ImageDataset` in batches of (images, labels).

    An iteration that reaches the end begins the next epoch. One that is left early, by ``break``, ``itertools.islice``
    or ``next(iter(loader))``, does not: the next iteration starts the same epoch again, with the same batches. In a
    loop of your own that leaves early, call :meth:`set_epoch`.

    The order is a function of (seed, epoch), and what a transform draws for an image is one of (seed, epoch, index
    of the image). So the pixels of a sample do not depend on the batch size, on the shard, or on where a run was
    resumed. Images stay uint8 in memory until the transform; a thread prepares the next batches while the model works,
    and a second one helps if the transform's attribute ``stateless`` is true, as it is for cifarkit's own.
    A transform that takes no ``draws``, or whose attribute ``keyed`` is false, runs when its batch is asked for: it may
    use the global random states, which the model uses too, and two threads would share them in an order that cannot be
    repeated. One that draws nothing may say so by ``keyed = True``. A random transform of torchvision gives all images
    of a batch the same draw; a warning of most of them names what to use instead.

    Args:
        dataset: the images.
        batch_size: images a batch, on each rank.
        transform: images (B, C, H, W) -> images; called with ``draws`` if it has an argument of that name. It gets
            float32 in [0, 1], or uint8 if its attribute ``accepts_uint8`` is true. None leaves float32 in [0, 1].
        shuffle: draw a new order each epoch.
        drop_last: leave out the short last batch; then an epoch does not cover every sample.
        seed: of order and draws.
        device: where the images are kept and transformed.
        rank, world_size: this process among all. Together the ranks cover each sample exactly once, and step s of
            world_size ranks holds the samples of step s of one process with a batch world_size times as big; only a
            last step of fewer samples than ranks is joined to the one before.
    Raises:
        ValueError: if batch_size, rank or world_size is out of range, the dataset smaller than world_size, or the
            device absent.
        TypeError: if dataset is no ImageDataset, a number no integer, or transform no callable of images.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        transform: Transform | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not isinstance(dataset, ImageDataset):
            raise TypeError(f"dataset must be an ImageDataset; got {type(dataset).__name__}; see cifarkit.data")
        batch_size, seed = check_integer("batch_size", batch_size, 1), check_integer("seed", seed)
        rank, world_size = check_integer("rank", rank), check_integer("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        if len(dataset) < world_size:
            raise ValueError(f"dataset has {len(dataset)} images, too few for world_size={world_size}")
        self.dataset, self.batch_size = dataset, batch_size
        self.transform = None if transform is None else check_transform("transform", transform)
        self.shuffle, self.drop_last, self.seed, self.device = shuffle, drop_last, seed, check_device(device)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._stage: int | None = None  # the epoch of the training, if these go round in epochs of their own
        self._position = self._start = 0  # batches of the epoch that are used up; where the next iteration starts
        self._images, self._labels = dataset.images.to(self.device), dataset.labels.to(self.device)
        self.device = self._images.device  # "cuda" is another GPU in a thread than where the images are
        self._bounds = self._batch_bounds()  # once, because state_dict is called for every batch
        self._takes_draws = transform is not None and has_parameter(transform, "draws")
        self._takes_uint8 = bool(getattr(transform, "accepts_uint8", False))
        self._workers = _MOST_WORKERS if transform is None or getattr(transform, "stateless", False) else 1
        self._prefetches = transform is None or bool(getattr(transform, "keyed", self._takes_draws))
        warn_of_batch_draw(transform)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the epoch, from the beginning or from where ``load_state_dict`` put it.

        ``epoch`` advances when the last batch is used up; an iteration that is broken off leaves it as it is.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        first, self._start = self._start, 0
        self._position = first
        indices = self._indices(self.epoch)[first:]
        prepare = self._prefetched if self._prefetches else self._prepared
        for position, batch in enumerate(prepare(indices, self.epoch), first + 1):
            self._position = position
            yield batch
        self.epoch, self._position = self.epoch + 1, 0

    @property
    def position(self) -> int:
        """Batches of the epoch that are used up."""
        return self._position

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of an epoch, from its first sample.

        Raises:
            TypeError: if epoch is no integer.
            ValueError: if it is below 0.
        """
        self.epoch = check_integer("epoch", epoch, 0)
        self._position = self._start = 0

    def copy(self) -> Loader:
        """Return a loader of the same images at the same position, which moves on its own."""
        return copy.copy(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, and the samples of it that all ranks have used up, at its end all of them."""
        names = ("seed", "shuffle", "drop_last")
        settings = {name: getattr(self, name) for name in names} | {"samples_in_dataset": len(self.dataset)}
        samples = self._bounds[self._position] if self._position < len(self) else len(self.dataset)
        return {"epoch": self.epoch, "samples": samples, **settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, also with another batch size or number of ranks.

        Raises:
            ValueError: if the position is of another dataset, order or kind of loader, or falls inside a batch.
        """
        if "share" in state:
            raise ValueError(f"the saved position is of a MixedLoader with share={state['share']}; give one again")
        own = self.state_dict()
        for name in ("seed", "shuffle", "drop_last", "samples_in_dataset"):
            if state[name] != own[name]:
                raise ValueError(f"the saved position has {name}={state[name]}, this loader {own[name]}")
        at_end = state["samples"] == len(self.dataset)  # whatever drop_last left out
        if not at_end and state["samples"] not in self._bounds:
            raise ValueError(
                f"the saved position, {state['samples']} samples into the epoch, falls inside a batch; "
                f"batch_size * world_size = {self.batch_size * self.world_size} must divide it"
            )
        self.epoch = state["epoch"]
        self._position = self._start = len(self) if at_end else self._bounds.index(state["samples"])

    def _batch_bounds(self) -> list[int]:
        """Return where each batch of all ranks begins, and the end of the last: [0, ..., samples of the epoch]."""
        samples, step = len(self.dataset), self.batch_size * self.world_size
        bounds = list(range(0, samples + 1, step))
        if bounds[-1] == samples or self.drop_last:
            return bounds
        if len(bounds) > 1 and samples - bounds[-1] < self.world_size:
            bounds.pop()  # too few for one each: the batch before takes them in, so that no rank is left without
        return [*bounds, samples]

    def _indices(self, epoch: int) -> list[Tensor]:
        """Return the sample indices of each batch of this rank."""
        if self.shuffle:
            key = Draws(self.seed, epoch, torch.zeros(1, dtype=torch.int64)).integers(0, 2**31)
            order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(int(key)))
        else:
            order = torch.arange(len(self.dataset))
        return [order[a:b][self.rank :: self.world_size] for a, b in pairwise(self._bounds)]

    def _prefetched(self, indices: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepare the next batches in threads while those before them are in use."""
        # One core for each worker keeps its operators from competing with the model for all of them. Setting that also
        # sets the default of threads yet to come, so it is put back once every worker has made it its own.
        threads, ready = torch.get_num_threads(), threading.Barrier(self._workers)
        with self._pool() as pool:
            for started in [pool.submit(_start_worker, ready) for _ in range(self._workers)]:
                started.result()
            torch.set_num_threads(threads)
            submitted = (pool.submit(self._prepare, item, epoch) for item in indices)  # one at a time, when asked for
            ahead = deque(islice(submitted, self._workers + 1))  # so that no worker waits to be told of the next
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(islice(submitted, 1))
                yield batch

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, "cifarkit-loader", initializer=torch.set_num_threads, initargs=(1,))

    def _prepared(self, indices: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._prepare(item, epoch) for item in indices)

    def _prepare(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        on_device = indices.to(self.device)
        images, labels = self._images.index_select(0, on_device), self._labels[on_device]  # many times as fast as [...]
        if self.transform is not None:
            if not self._takes_uint8:
                images = images.float() / 255
            if self._takes_draws:
                draws = Draws(self.seed, epoch, indices, device=self.device, stage=self._stage)
                images = self.transform(images, draws=draws)
            else:
                images = self.transform(images)
        return (images.float() / 255 if images.dtype == torch.uint8 else images), labels


def _start_worker(ready: threading.Barrier) -> None:
    """Read the number of threads, which fixes it for this worker, and wait until the others have."""
    torch.get_num_threads()
    ready.wait()
