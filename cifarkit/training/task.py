"""What is trained: a task yields losses, the Trainer does everything between two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = Sequence[Tensor]


@dataclass(frozen=True)
class Update:
    """One loss, and the optimizer that lowers it.

    Args:
        loss: scalar, the mean over the samples of the batch.
        optimizer: a key of ``task.optimizers``.
        metrics: scalars to report beside the loss, each a mean over the samples of the batch.
    """

    loss: Tensor
    optimizer: str = "model"
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Task(nn.Module):
    """Networks, their optimizers, and the losses that train them.

    The networks are ordinary submodules; ``optimizers`` maps a name to the optimizer of each ``Update.optimizer``.
    Between two yields of :meth:`updates` the Trainer leaves autocast, runs backward, averages over micro-batches,
    unscales, clips and steps, so code after a ``yield`` sees the new weights.

    What this costs: the graphs of all micro-batches stay alive while a later stage still uses them; every
    micro-batch must yield the same sequence of optimizers; code after the last yield never matters to training;
    optimizers that need a closure (LBFGS) do not fit; and a task opens no autocast of its own across a yield.
    """

    optimizers: dict[str, Optimizer]
    layout: torch.memory_format = torch.channels_last  # of images and kernels, which convolutions prefer

    def updates(self, batch: Batch) -> Iterator[Update]:
        """Yield one :class:`Update` for each optimizer step that this batch makes."""
        raise NotImplementedError(f"{type(self).__name__} must define updates(batch)")

    def evaluate(self, batch: Batch) -> Mapping[str, tuple[Tensor | float, int]]:
        """Return for each metric its sum over the batch, a scalar tensor or a number, and the samples summed."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(batch) to be validated")

    def train(self, mode: bool = True) -> Task:
        """Switch to training mode, but leave every frozen part in evaluation mode.

        A part is frozen when it has parameters and none of them asks for a gradient. Its BatchNorm statistics then
        stand still and its dropout is off, which setting ``requires_grad`` alone does not do.
        """
        super().train(mode)
        if mode:
            _freeze_again(self)
        return self


def train_unfrozen(module: nn.Module) -> None:
    """Switch a module to training mode and its frozen parts to evaluation mode."""
    module.train()
    _freeze_again(module)


def _freeze_again(module: nn.Module) -> None:
    if is_frozen(module):
        module.eval()
    else:
        for child in module.children():
            _freeze_again(child)


def freeze(module: nn.Module) -> nn.Module:
    """Keep a module's parameters and BatchNorm statistics as they are, and return it."""
    return module.requires_grad_(False).eval()


def unfreeze(module: nn.Module) -> nn.Module:
    """Let a module learn again, and return it."""
    return module.requires_grad_(True).train()


def is_frozen(module: nn.Module) -> bool:
    """Tell whether a module has parameters of which none asks for a gradient."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


def metric_name(optimizer: str, metric: str, *, prefix: str = "") -> str:
    """Name a metric of one optimizer: ``train_loss`` for "model", ``train_generator_loss`` for "generator"."""
    return prefix + (metric if optimizer == "model" else f"{optimizer}_{metric}")
