"""The statistics of BatchNorm, measured anew where weights have changed without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifarkit.training.distributed import world_size
from cifarkit.training.loading import iterating, undisturbed
from cifarkit.training.task import train_unfrozen

if TYPE_CHECKING:
    from cifarkit.training.run import Run


@torch.no_grad()
def refresh_batchnorm(network: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Measure anew the BatchNorm statistics of a network, averaged equally over batches of images.

    A batch may be a tuple of all the network takes, as (latents, labels) for a generator. Frozen parts keep their
    statistics. The network is left in evaluation mode.

    Raises:
        ValueError: if there is no batch; the statistics are then as before.
    """
    train_unfrozen(network)
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    layers = [layer for layer in layers if layer.track_running_stats]
    batches = iter(batches if layers else ())
    first = next(batches, None)
    if layers and first is None:
        network.eval()
        raise ValueError("batches hold none; can they be iterated over only once?")
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # None makes BatchNorm keep the equal average over batches
    try:
        for inputs in chain(() if first is None else (first,), batches):
            network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        network.eval()


def refresh_on_training_images(network: nn.Module, name: str, run: Run, samples: int) -> None:
    """Refresh a network, which has that name in the task of a run, on so many images of all ranks together."""
    own_share = -(-samples // world_size())
    with undisturbed(run.train_loader) as loader, iterating(loader) as batches, run.trainer.precision.autocast():
        refresh_batchnorm(network, _inputs(run, name, batches, own_share))


def _inputs(run: Run, name: str, batches: Iterable[Any], samples: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield what the network of that name takes: images, unless the task says otherwise by a method ``inputs_of``."""
    inputs_of = getattr(run.task, "inputs_of", None)
    seen = 0
    for batch in batches:
        on_device = run.to_device(batch)
        yield (on_device[0],) if inputs_of is None else inputs_of(name, on_device)
        seen += len(on_device[0])
        if seen >= samples:
            return
