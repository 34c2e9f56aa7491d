"""Batches of a frozen network's features instead of images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cifarkit.checks import check_number
from cifarkit.data.loader import Loader
from cifarkit.inference import device_of, dtype_of, evaluation_mode, inference_autocast
from cifarkit.layout import EitherLayout

_log = logging.getLogger(__name__)
_CHUNK = 512  # images at a time in the pass that fills the cache
_Versions = list[tuple[Tensor, int]]  # images, parameters and buffers, and how often each had been written to


class _Cache(NamedTuple):
    """All features, and the state of what computed them."""

    features: Tensor  # (N, ...)
    parts: list[str]  # names of the modules that ran
    versions: _Versions


class FeatureLoader(Loader):
    """Iterate over (features, labels) where a :class:`Loader` gives (images, labels), in the same order.

    Where the transform is fixed (none, or its attribute ``fixed`` is true) the features of all images are computed
    once and kept, until an epoch begins with the backbone or the images written to (through ``.data`` or NumPy goes
    unseen). Else, or if they need too much memory, they are computed batch by batch. A warning tells of both. The
    backbone runs in evaluation mode without gradients, and afterwards is as it was.

    Args:
        loader: whose dataset, transform, order, device and position are taken over; it does not move with this one.
        backbone: images (B, C, H, W) -> features (B, ...), a module or a method of one, such as ``hybrid.features``.
        precision: what the backbone computes and the cache keeps: "fp32", "bf16", or "auto" as in ``predict``. The
            batches are float32 in any case.
        max_bytes: the largest cache, on the loader's device.
    Raises:
        TypeError: if loader is no Loader of images, backbone no module, or it gives no tensor of one row an image.
        ValueError: if precision is unknown or max_bytes below 0.
    """

    def __init__(
        self,
        loader: Loader,
        backbone: nn.Module | Callable[[Tensor], Tensor],
        *,
        precision: str = "auto",
        max_bytes: float = 4 * 2**30,
    ) -> None:
        if not isinstance(loader, Loader):
            raise TypeError(f"loader is a {type(loader).__name__}; give a cifarkit.data.Loader of images")
        if isinstance(loader, FeatureLoader):
            advice = "give its Loader of images, and as backbone nn.Sequential(first, second)"
            raise TypeError(f"loader is a FeatureLoader, which gives features; {advice}")
        owner = backbone if isinstance(backbone, nn.Module) else getattr(backbone, "__self__", None)
        if not isinstance(owner, nn.Module):
            advice = "give a torch.nn.Module that maps images to features, or a method of one such as hybrid.features"
            raise TypeError(f"backbone is a {type(backbone).__name__}; {advice}")
        inference_autocast(precision, device_of(owner))  # which knows the names
        vars(self).update(vars(loader.copy()))  # all that makes the order and the position, of a subclass too
        self.loader, self.backbone, self._owner = loader.copy(), backbone, owner
        self._network = EitherLayout(backbone)
        self.precision, self.max_bytes = precision, check_number("max_bytes", max_bytes, 0)
        self._store: list[_Cache] = []  # one once it is filled; copies of this loader share it
        obstacle = self._obstacle()
        if obstacle is not None:
            _log.warning("%s, so features are computed anew for every batch; %s", *obstacle)
        self._prefetches = self._cached = obstacle is None

    @property
    def cached(self) -> bool:
        """Whether the features of all images are computed once and kept, rather than batch by batch."""
        return self._cached

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the epoch as a Loader does; the first call of all fills the cache."""
        if self._cached:  # filled here, because the thread that prefetches must not switch the backbone's mode
            if not self._store:
                self._store.append(self._fill(None))
            elif self._has_changed(self._store[0]):
                what = "the backbone or an image has changed since the features were kept"
                _log.warning("%s, so they are computed anew", what)
                self._store[0] = self._fill(self._store[0].features)
        return super().__iter__()

    def _prepare(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        if not self._cached:
            images, labels = self.loader._prepare(indices, epoch)
            return self._extract(images).float(), labels
        on_device = indices.to(self.device)
        return self._store[0].features.index_select(0, on_device).float(), self._labels[on_device]

    def _prepared(self, indices: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepare the images as the loader does, in its thread if it may, and their features in the caller's."""
        source = self.loader
        batches = (source._prefetched if source._prefetches else source._prepared)(indices, epoch)
        # Closed at once, so that the thread ends with the epoch even if an exception of the backbone is kept.
        with closing(cast("Generator[tuple[Tensor, Tensor]]", batches)):
            for images, labels in batches:
                yield self._extract(images).float(), labels

    @torch.no_grad()
    def _extract(self, images: Tensor) -> Tensor:
        """Run the backbone on a batch; the result is on the loader's device, in the dtype it was computed in."""
        device = device_of(self._owner)
        with evaluation_mode(self._owner), inference_autocast(self.precision, device):
            features: Any = self._network(images.to(device, dtype_of(self._owner, images.dtype)))
        if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"backbone gives {shape} for {len(images)} images; it must give a tensor (B, ...)")
        return features.to(self.device)

    def _obstacle(self) -> tuple[str, str] | None:
        """Say why there can be no cache, and what would help; None if there can."""
        if self.transform is not None and not getattr(self.transform, "fixed", False):
            advice = "to keep them, give a transform that draws nothing, or say so by its attribute fixed = True"
            return f"transform={self.transform!r} may be random", advice
        images, _ = self.loader._prepare(torch.zeros(1, dtype=torch.int64), 0)
        sample = self._extract(images)
        needed = len(self.dataset) * math.prod(sample.shape[1:]) * sample.element_size()
        if needed > self.max_bytes:
            advice = f"to keep them, give max_bytes={needed}"
            return f"the features of {len(self.dataset)} images need {needed / 2**30:.2g} GiB", advice
        return None

    def _fill(self, features: Tensor | None) -> _Cache:
        """Compute the features of the whole dataset, into the old ones if they are given and still fit."""
        chunks = torch.split(torch.arange(len(self.dataset)), _CHUNK)
        with _watched(self._owner) as parts:
            for part in tqdm(chunks, desc="features", unit="batch", leave=False, disable=None):
                computed = self._extract(self.loader._prepare(part, 0)[0])
                shape = (len(self.dataset), *computed.shape[1:])
                if features is None or features.shape != shape or features.dtype != computed.dtype:
                    features = computed.new_empty(shape)  # in one piece: joining parts would need twice the memory
                features[part[0] : part[-1] + 1] = computed
        assert features is not None  # a dataset has at least one image
        names = list(parts)
        return _Cache(features, names, self._versions(names))

    def _has_changed(self, cache: _Cache) -> bool:
        """Tell whether what computed the features has been written to or replaced since."""
        try:
            now = self._versions(cache.parts)
        except AttributeError:  # a module that ran is no longer there
            return True
        same = (one is other and v == w for (one, v), (other, w) in zip(now, cache.versions, strict=False))
        return len(now) != len(cache.versions) or not all(same)

    def _versions(self, parts: Sequence[str]) -> _Versions:
        """Return the versions of the images and of what the parts and those around them hold.

        A part that did not run itself may hold a positional embedding, and its own parts may have run unseen, as in
        compiled ones.
        """
        held: list[Iterable[Tensor]] = [[self.loader._images]]
        for name in _names_around(parts):
            around = self._owner.get_submodule(name)
            held += [around.parameters(recurse=False), around.buffers(recurse=False)]
        for name in parts:
            ran = self._owner.get_submodule(name)
            held += [ran.parameters(), ran.buffers()]
        unique = {id(tensor): tensor for tensor in chain(*held)}.values()
        return [(tensor, -1 if tensor.is_inference() else tensor._version) for tensor in unique]  # those have none


@contextmanager
def _watched(owner: nn.Module) -> Iterator[dict[str, None]]:
    """Note the names of the modules that run: the head of a classifier whose ``features`` are taken does not."""
    ran: dict[str, None] = {}  # in place of a set, for its order

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.update({name: None})

    hooks = [part.register_forward_pre_hook(note(name)) for name, part in list(owner.named_modules())]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def _names_around(parts: Sequence[str]) -> list[str]:
    """Name the modules that parts lie in, among them "", the whole."""
    paths = [name.split(".") for name in parts]
    return list({"": None} | {".".join(path[:depth]): None for path in paths for depth in range(len(path))})
