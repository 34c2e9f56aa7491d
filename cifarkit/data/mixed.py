"""Batches of which a fixed share is generated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, cast

import torch
from torch import Tensor

from cifarkit.checks import check_number
from cifarkit.data.dataset import ImageDataset
from cifarkit.data.loader import Loader, Transform

_OTHER_DRAWS = 2**40  # added to the seed, so that image i of the one set is not augmented as image i of the other


class MixedLoader:
    """Iterate over batches of real images and of generated ones, in a fixed proportion.

    An epoch is one pass over the real images, so it has the more batches the larger the share; give the Trainer
    ``max_steps`` to compare shares at equal numbers of updates. The generated images go round and round: which come
    in a batch is a function of (seed, epoch, number of the batch), so the position is one number here, too.

    Args:
        loader: of the real images, whose batch size, transform, order, device, rank and epoch are taken over; it
            does not move with this one.
        fake: the generated images, of the same classes and size.
        share: of generated images in a batch, above 0 and below 1; at least one is generated and one real. On several
            ranks the last batch of an epoch may hold a real image more, and no generated one more for it.
        transform: of the generated images; None takes that of the loader.
        tell_apart: yield (images, labels, generated) with a bool (B,), for a task that logs them apart. In any case
            the real images of a batch come first.
    Raises:
        TypeError: if loader is no plain Loader, or fake no ImageDataset.
        ValueError: if share is out of range, or classes, sizes or numbers of images do not fit.
    """

    def __init__(
        self,
        loader: Loader,
        fake: ImageDataset,
        share: float,
        *,
        transform: Transform | None = None,
        tell_apart: bool = False,
    ) -> None:
        if type(loader) is not Loader:
            raise TypeError(f"loader is a {type(loader).__name__}; give the cifarkit.data.Loader of the real images")
        if not isinstance(fake, ImageDataset):
            raise TypeError(f"fake must be an ImageDataset; got {type(fake).__name__}; see generate_dataset")
        self.share = check_number("share", share, 0, 1, above=True, below=True)
        _require_same_kind(loader.dataset, fake)
        if loader.batch_size < 2:
            raise ValueError("loader has batch_size=1, which holds no two kinds of images; give at least 2")
        self.rank, self.world_size = loader.rank, loader.world_size
        self.loader, self.fake, self.transform, self.tell_apart = loader, fake, transform, tell_apart
        count = min(max(round(self.share * loader.batch_size), 1), loader.batch_size - 1)
        self._real = _like(loader, loader.dataset, loader.batch_size - count, loader.transform)
        if len(fake) < count * loader.world_size:
            raise ValueError(f"fake has {len(fake)} images, too few for {count} a batch on {loader.world_size} ranks")
        chosen, other_seed = loader.transform if transform is None else transform, loader.seed + _OTHER_DRAWS
        self._fake = _like(loader, fake, count, chosen, seed=other_seed, drop_last=True)
        self._real.epoch = loader.epoch

    @property
    def epoch(self) -> int:
        """Passes over the real images that are completed."""
        return self._real.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._real.epoch = epoch

    @property
    def position(self) -> int:
        """Batches of the epoch that are used up."""
        return self._real.position

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of an epoch, from its first sample; see :meth:`Loader.set_epoch`."""
        self._real.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._real)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the epoch, from the beginning or from where ``load_state_dict`` put it."""
        ratio = self._fake.batch_size / self._real.batch_size
        real = cast("Generator[tuple[Tensor, Tensor]]", iter(self._real))
        fakes = self._fakes_from(self._real._start)  # read now, because the iteration of the real ones resets it
        with closing(real), closing(fakes):  # so that no thread outlives an iteration that is broken off
            for (images, labels), (more, their_labels) in zip(real, fakes, strict=False):
                count = max(round(len(labels) * ratio), 1)  # fewer beside a short last batch
                mixed = torch.cat([images, more[:count]]), torch.cat([labels, their_labels[:count]])
                generated = torch.arange(len(mixed[1]), device=labels.device) >= len(labels)
                yield (*mixed, generated) if self.tell_apart else mixed

    def copy(self) -> MixedLoader:
        """Return a loader of the same images at the same position, which moves on its own."""
        twin = copy.copy(self)
        twin._real, twin._fake = self._real.copy(), self._fake.copy()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return the position: that of a Loader over the real images, and what is mixed in."""
        return self._real.state_dict() | {"share": self.share, "fakes": len(self.fake)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; with another batch size, the generated images come in another order.

        Raises:
            ValueError: if the position is of other data, another order or another share, or falls inside a batch.
        """
        for name, own in (("share", self.share), ("fakes", len(self.fake))):
            if state.get(name) != own:
                raise ValueError(f"the saved position has {name}={state.get(name)}, this loader {own}")
        self._real.load_state_dict({name: value for name, value in state.items() if name not in ("share", "fakes")})

    def _fakes_from(self, first: int) -> Generator[tuple[Tensor, Tensor]]:
        """Return endless batches of generated images, beginning with those of a batch of the present epoch."""
        source = self._fake.copy()
        source.epoch, source._start = divmod(self._real.epoch * len(self._real) + first, len(source))
        source._stage = self._real.epoch  # so that ByEpoch gives both kinds the same size

        def batches() -> Generator[tuple[Tensor, Tensor]]:
            while True:
                yield from source

        return batches()


def _like(
    loader: Loader, dataset: ImageDataset, batch_size: int, transform: Transform | None, **changed: Any
) -> Loader:
    """Make a loader with the settings of another."""
    names = ("shuffle", "drop_last", "seed", "device", "rank", "world_size")
    settings = {name: getattr(loader, name) for name in names} | changed
    with warnings.catch_warnings():
        if transform is loader.transform:  # of which the other loader has warned
            warnings.simplefilter("ignore", UserWarning)
        return Loader(dataset, batch_size, transform=transform, **settings)


def _require_same_kind(real: ImageDataset, fake: ImageDataset) -> None:
    if real.classes != fake.classes:
        raise ValueError(f"fake has the classes {fake.classes}, the real images {real.classes}; they must be the same")
    if real.image_shape != fake.image_shape:
        raise ValueError(f"fake has images of shape {fake.image_shape}, the real ones are {real.image_shape}")
