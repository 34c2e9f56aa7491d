"""Attributions that add up: the gradient integrated on the way from a baseline, with as many steps as it takes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from cifarkit.attribution.question import Question
from cifarkit.checks import check_integer, check_number

_FIRST_STEPS = 16  # with 8 nodes a ResNet's sum is hardly ever within 1 %


def integrated_gradients(
    question: Question,
    *,
    baselines: Any = None,
    steps: int | None = None,
    tolerance: float = 0.01,
    max_steps: int = 512,
) -> Tensor:
    """Return (image - baseline) times the mean gradient on the straight line between the two.

    The sum over an image is the change of the logit, if the integral is exact. So by default its Gauss-Legendre nodes
    are doubled from 16 on, for the images whose sum is still too far off; what is returned is Captum's map for the
    last number of nodes. The sum can fit by luck: give steps where each pixel has to be as exact.

    Args:
        baselines: where the line starts: None for zero; "mean" (of the image), "blur", a number, or a tensor.
        steps: this many nodes for every image, as in Captum, whose default is 50; None doubles.
        tolerance: the most the sum may be off, as a share of the change of the logit (or of 1 % of the largest logit,
            if that is more).
        max_steps: doubling ends here, with a warning.
    Raises:
        ValueError: if a number is out of range.
    Source: Sundararajan et al. 2017, arXiv 1703.01365, section 3; Captum's IntegratedGradients.
    """
    method = captum_method(question, steps, tolerance, max_steps)
    maps: Tensor = method.attribute(question.images, question.baselines(baselines), question.targets)
    return maps


def captum_method(question: Question, steps: int | None, tolerance: float, max_steps: int) -> Any:
    """Return an attribution method of Captum's kind that integrates as described above, within max_batch."""
    from captum.attr import IntegratedGradients

    if steps is not None:
        steps = check_integer("steps", steps, 1)
    tolerance = check_number("tolerance", tolerance, 0, above=True)
    max_steps = check_integer("max_steps", max_steps, _FIRST_STEPS)

    class BoundedIntegratedGradients(IntegratedGradients):  # type: ignore[misc]  # Captum has no types
        def attribute(self, inputs: Tensor, baselines: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
            start = baselines[0] if isinstance(baselines, tuple) else baselines  # a tuple from NoiseTunnel
            starts, targets = start.expand_as(inputs), target.expand(len(inputs))
            task = _Integral(question, IntegratedGradients(self.forward_func), inputs.detach(), starts, targets)
            return task.sums(steps) if steps is not None else task.within(tolerance, max_steps)

        attribute.__wrapped__ = attribute  # type: ignore[attr-defined]  # what NoiseTunnel calls, past Captum's log

    return BoundedIntegratedGradients(question.forward)


class _Integral:
    """The integrals of some images, each from its start."""

    def __init__(self, question: Question, method: Any, images: Tensor, starts: Tensor, targets: Tensor) -> None:
        self.question, self.method = question, method
        self.images, self.starts, self.targets = images, starts, targets

    def within(self, tolerance: float, max_steps: int) -> Tensor:
        """Double the nodes of those images whose sum is too far off."""
        change, size = self.question.changes(self.images, self.starts, self.targets)
        maps, steps = torch.empty_like(self.images), _FIRST_STEPS
        pending = torch.arange(len(maps), device=maps.device)
        while True:
            maps[pending] = self.sums(steps, pending)
            errors = (maps[pending].double().sum((1, 2, 3)) - change[pending]).abs() / size[pending].clamp(min=1e-12)
            pending = pending[errors > tolerance]
            if not len(pending):
                return maps
            if 2 * steps > max_steps:
                warnings.warn(
                    f"the sum of {len(pending)} of {len(maps)} maps of integrated gradients is still up to "
                    f"{100 * float(errors.max()):.2g} % off after {steps} steps, above tolerance={tolerance:g}; raise "
                    "max_steps",
                    stacklevel=5,
                )
                return maps
            steps *= 2

    def sums(self, steps: int, chosen: Tensor | None = None) -> Tensor:
        """Return the maps of chosen images with so many nodes; as many images at a time as max_batch allows."""
        tensors = (self.images, self.starts, self.targets)
        if chosen is not None:
            tensors = (self.images[chosen], self.starts[chosen], self.targets[chosen])
        most = self.question.max_batch
        pieces = zip(*(torch.split(tensor, max(1, most // steps)) for tensor in tensors), strict=True)
        return torch.cat(
            [
                self.method.attribute(
                    images, starts, target=targets, n_steps=steps, method="gausslegendre", internal_batch_size=most
                ).detach()
                for images, starts, targets in pieces
            ]
        )
