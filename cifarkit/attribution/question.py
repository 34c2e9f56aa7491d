"""One call of ``attribute``, its arguments checked once, so that every method finds the same things in it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarkit.attribution.ranges import check_range
from cifarkit.attribution.scoring import baseline_images, bring_to, check_class_numbers, check_images, first_logits
from cifarkit.inference import frozen_copy
from cifarkit.layout import EitherLayout
from cifarkit.seeding import RngState

_SMALL = 0.01  # share of the largest logit; a smaller change of the class's logit counts as this much


@dataclass(frozen=True)
class Question:
    """Why does the model give this logit to this image?

    Attributes:
        model: as it was given, in evaluation mode.
        network: what is evaluated: the model, or a copy of it with its BatchNorms folded.
        images: (B, C, H, W), on the model's device and of its dtype.
        targets: int64 (B,), the class asked about.
        max_batch: the most images in one pass.
        seed: of all noise.
    """

    model: nn.Module
    network: Callable[[Tensor], Tensor]
    images: Tensor
    targets: Tensor
    max_batch: int
    seed: int

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of the network, at least float32."""
        return compute_logits(self.network, images)

    def with_frozen_network(self, evaluations: int) -> Question:
        """Return the question put to a copy with folded BatchNorms, where that is possible and worth it."""
        with torch.no_grad():
            copy = frozen_copy(self.model, self.images[: self.max_batch], evaluations)
        return self if copy is self.model else replace(self, network=EitherLayout(copy))

    def baselines(self, value: Any) -> Tensor:
        """Return the images that stand for "nothing to see" (B, C, H, W): zero for None, or see baseline_images."""
        return baseline_images(0.0 if value is None else value, self.images, "baselines")

    def zeros(self) -> Tensor:
        """Return where maps are added up (B, C, H, W), at least float32, so that sums of a bf16 model keep digits."""
        return torch.zeros_like(self.images, dtype=torch.promote_types(self.images.dtype, torch.float32))

    def batches(self, size: int, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut images, targets and others into pieces of so many images, at least one."""
        pieces = (torch.split(tensor, max(1, size)) for tensor in (self.images, self.targets, *others))
        return zip(*pieces, strict=True)

    def changes(self, images: Tensor, starts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what attributions have to add up to, and what errors of the sum are measured against.

        Returns:
            logit(image) - logit(start) of each target, float64 (B,), and its size, which is at least 1 % of the
            largest logit, so that a class that did not change does not ask for an exact sum.
        """
        same = bool((starts == starts[:1]).all())  # then one of them will do
        at_images = self._all_logits(images)
        at_starts = self._all_logits(starts[:1] if same else starts).expand_as(at_images)
        change = (at_images - at_starts).gather(1, targets[:, None])[:, 0]
        largest = torch.maximum(at_images.abs().amax(1), at_starts.abs().amax(1))
        return change, torch.maximum(change.abs(), _SMALL * largest)

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the logit of the target of each image, float64 (B,)."""
        return self._all_logits(images).gather(1, targets[:, None])[:, 0]

    @torch.no_grad()
    def _all_logits(self, images: Tensor) -> Tensor:
        return torch.cat([self.forward(part) for part in torch.split(images, self.max_batch)]).double()


def ask(model: nn.Module, images: Any, targets: Any, max_batch: int, seed: int) -> Question:
    """Check the arguments of ``attribute``, whose model must be in evaluation mode.

    Raises:
        TypeError: if images are no float tensor, or targets no integers.
        ValueError: if images do not fit the model, are raw pixels, or a target is no class of it.
    """
    given = check_images(images)
    check_range(given)
    given = bring_to(model, given).clone()  # a tensor of inference mode can take no gradient, its clone can
    with torch.no_grad():
        count = _count_classes(model, given[:1], seed)
        if targets is None:
            classes = torch.cat([compute_logits(model, part).argmax(1) for part in torch.split(given, max_batch)])
        else:
            classes = check_class_numbers(targets, len(given), count)
    return Question(model, model, given, classes.to(given.device), max_batch, seed)


def compute_logits(network: Callable[[Any], Tensor], images: Any) -> Tensor:
    """Return logits, at least float32, so that differences of those of autocast keep their digits."""
    logits = network(images)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def explain_missing_gradient(question: Question) -> None:
    """Raise ValueError if the logits do not depend on the images in a way that autograd can follow."""
    image, said = question.images[:1].clone().requires_grad_(), None
    try:
        with torch.enable_grad():
            logits = compute_logits(question.model, image)
        found = logits.requires_grad and torch.autograd.grad(logits.sum(), image, allow_unused=True)[0] is not None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # which the pass without gradients did not raise: numpy() of a tensor, for one
        found, said = False, error
    if not found:
        raise ValueError(
            "the model is not differentiable: no gradient leads from its logits back to the images. Look for detach(), "
            "torch.no_grad, argmax, rounding or NumPy in its forward pass, or use 'occlusion', which needs no gradient"
            + ("" if said is None else f". It says: {said}")
        )


def has_gradient(question: Question) -> bool:
    """Tell whether the gradient of a logit is anything but 0 for some of the images."""
    images = question.images[: question.max_batch].clone().requires_grad_()
    with torch.enable_grad():
        logits = question.forward(images).gather(1, question.targets[: len(images), None])
    return bool(torch.autograd.grad(logits.sum(), images)[0].any())


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put the global random states back, also after an error."""
    before = RngState.capture()
    try:
        yield
    finally:
        before.restore()


def _count_classes(model: nn.Module, image: Tensor, seed: int) -> int:
    """Return K by one forward pass, or say what does not fit; what a random model draws from then on is seeded."""
    before = RngState.capture()
    logits = first_logits(model, image)
    if _has_drawn(before):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed % 2**64)
        _warn_if_random(logits, first_logits(model, image))
    return logits.shape[1]


def _has_drawn(before: RngState) -> bool:
    """Tell whether a global random state has moved on, which costs less than a second pass of every model."""
    now = RngState.capture()
    moved = [
        now.python != before.python,
        any(not np.array_equal(one, other) for one, other in zip(now.numpy, before.numpy, strict=True)),
        not torch.equal(now.torch_cpu, before.torch_cpu),
        any(not torch.equal(one, other) for one, other in zip(now.torch_cuda, before.torch_cuda, strict=True)),
    ]
    return any(moved)


def _warn_if_random(logits: Tensor, again: Tensor) -> None:
    if not torch.equal(logits, again):
        change = float((logits.double() - again.double()).abs().max())
        warnings.warn(
            f"the model is random in evaluation mode: between two passes of one image a logit changed by {change:.2g}. "
            "Its maps hold that noise, which seed= repeats. Look for F.dropout without training=self.training, or "
            "torch.rand and the like in its forward pass",
            stacklevel=5,
        )
