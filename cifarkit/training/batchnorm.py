"""The statistics of BatchNorm, measured anew where weights have changed without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifarkit.training.distributed import world_size
from cifarkit.training.loading import iterating, undisturbed
from cifarkit.training.task import train_unfrozen

if TYPE_CHECKING:
    from cifarkit.training.run import Run


def refresh_batchnorm(network: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Measure anew the BatchNorm statistics of a network, averaged equally over batches of images.

    A batch may be a tuple of all the network takes, as (latents, labels) for a generator. Frozen parts keep their
    statistics. The network is left in evaluation mode.

    Raises:
        ValueError: if there is no batch; the statistics are then as before.
    """
    if not _refreshed(network, batches):
        raise ValueError("batches hold none; can they be iterated over only once?")


@torch.no_grad()
def _refreshed(network: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> bool:
    """Refresh a network, and tell whether there was a batch, or nothing to do."""
    train_unfrozen(network)
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta, begun = [layer.momentum for layer in layers], False
    try:
        for inputs in batches if layers else ():
            for layer in () if begun else layers:
                layer.reset_running_stats()
                layer.momentum = None  # None makes BatchNorm keep the equal average over batches
            begun = True
            network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        network.eval()
    return begun or not layers


def refresh_on_training_images(network: nn.Module, name: str, run: Run, samples: int) -> None:
    """Refresh a network, which has that name in the task of a run, on so many images of all ranks together."""
    own_share = -(-samples // world_size())
    with undisturbed(run.train_loader) as loader, iterating(loader) as batches, run.trainer.precision.autocast():
        if not _refreshed(network, _inputs(run, name, batches, own_share)):
            warnings.warn(
                f"train_loader gave no images to measure the BatchNorm statistics of the average of {name!r} on, so "
                "they stay those of the raw network; can it be iterated over only once?",
                stacklevel=2,
            )


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
