"""Attributions that add up: the gradient integrated on the way from a baseline, with as many nodes as it takes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cifarkit.attribution.question import Question
from cifarkit.checks import check_integer, check_number

_NODES, _FIRST_PARTS = 4, 4  # of the rule of one part of the way, and into how many equal parts it is cut at first
_STEPS_BF16 = 32


def integrated_gradients(
    question: Question,
    *,
    baselines: Any = None,
    steps: int | None = None,
    tolerance: float | None = None,
    max_steps: int = 512,
) -> Tensor:
    """Return (image - baseline) times the mean gradient on the straight line between the two.

    The sum over an image is the change of the logit, if the integral is exact; so is the sum over each part of the
    line. By default it has 16 Gauss-Legendre nodes, and those parts whose sums are farthest off get twice as many,
    until the whole is near enough: most of the change happens on a small part of the line. The whole can fit by luck,
    so give steps where each pixel has to be as exact.

    Args:
        baselines: where the line starts: None for zero; "mean" (of the image), "blur", a number, or a tensor.
        steps: Captum's n_steps (50 there): so many nodes for the whole line and every image; None refines.
        tolerance: the most the sum may be off, as a share of the change of the logit (or of 1 % of the largest logit);
            None is 0.01, but in bf16 takes 32 nodes as they are, since refining would chase its rounding.
        max_steps: nodes of an image at which refining ends, with a warning.
    Source: Sundararajan et al. 2017, arXiv 1703.01365, section 3; Captum's IntegratedGradients.
    """
    from captum.attr import IntegratedGradients

    coarse = question.images.dtype in (torch.bfloat16, torch.float16)
    if steps is None and tolerance is None and (coarse or torch.is_autocast_enabled(question.images.device.type)):
        steps = _STEPS_BF16
    tolerance = check_number("tolerance", 0.01 if tolerance is None else tolerance, 0, above=True)
    max_steps = check_integer("max_steps", max_steps, _NODES * _FIRST_PARTS)
    images, starts, targets = question.images, question.baselines(baselines), question.targets
    lines = _Lines(question, IntegratedGradients(question.forward), images, starts, targets)
    if steps is not None:
        return lines.sums(check_integer("steps", steps, 1), images, starts, targets)
    return lines.refined(tolerance, max_steps)


@dataclass
class _Parts:
    """Parts of lines: of which image, from which share of the way to which, the logits there, maps (S, C, H, W)."""

    owners: Tensor  # (S,), as all but the maps
    left: Tensor
    right: Tensor
    logits_left: Tensor
    logits_right: Tensor
    maps: Tensor
    errors: Tensor  # of the sums of the maps

    def __len__(self) -> int:
        return len(self.owners)

    def chosen(self, which: Tensor) -> _Parts:
        return _Parts(*(values[which] for values in vars(self).values()))

    def joined(self, other: _Parts) -> _Parts:
        return _Parts(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class _Lines:
    """The ways from starts to images (B, C, H, W)."""

    question: Question
    method: Any
    images: Tensor
    starts: Tensor
    targets: Tensor

    def sums(self, steps: int, images: Tensor, starts: Tensor, targets: Tensor) -> Tensor:
        """Return Captum's maps with so many nodes, as many images at a time as max_batch allows."""
        most = self.question.max_batch
        pieces = (torch.split(tensor, max(1, most // steps)) for tensor in (images, starts, targets))
        return torch.cat(
            [
                self.method.attribute(
                    image, start, target=target, n_steps=steps, method="gausslegendre", internal_batch_size=most
                ).detach()
                for image, start, target in zip(*pieces, strict=True)
            ]
        )

    def refined(self, tolerance: float, max_steps: int) -> Tensor:
        """Cut lines until their sums fit. A map for each part is held, about max_batch of them beside the results.

        Images are begun when there is room, and give theirs back when they are done; only the first of them may go on
        without room.
        """
        count, most = len(self.images), self.question.max_batch
        size = self._sizes()
        result, missed = self.question.zeros(), torch.zeros_like(size)
        begun = min(count, max(1, most // _FIRST_PARTS))
        parts = self._begin(0, begun)
        while len(parts):
            errors = torch.zeros_like(size).index_add(0, parts.owners, parts.errors).abs()
            full = torch.bincount(parts.owners, minlength=count) * _NODES >= max_steps
            pending = (errors > tolerance * size) & ~full
            missed += errors.masked_fill(pending, 0)
            done = ~pending[parts.owners]
            result.index_add_(0, parts.owners[done], parts.maps[done].to(result))
            parts = parts.chosen(~done)
            if len(parts):
                split = _worst_parts(parts, most - len(parts))
                parts = parts.chosen(~split).joined(self._halves(parts.chosen(split)))
            fresh = min(count - begun, max((most - len(parts)) // _FIRST_PARTS, int(not len(parts))))
            if fresh > 0:
                parts = parts.joined(self._begin(begun, begun + fresh))
                begun += fresh
        _warn_of_errors(missed / size, result.flatten(1).any(1), tolerance, max_steps)
        return result

    def _sizes(self) -> Tensor:
        """Return what errors of the sums are measured against, float64 (B,)."""
        return self.question.changes(self.images, self.starts, self.targets)[1].clamp(min=1e-12)

    def _begin(self, first: int, last: int) -> _Parts:
        """Cut the lines of images first to last into equal parts."""
        owners = torch.arange(first, last, device=self.images.device)
        edges = torch.linspace(0, 1, _FIRST_PARTS + 1, dtype=torch.float64, device=owners.device)
        logits = self._logits_at(owners.repeat_interleave(len(edges)), edges.repeat(len(owners))).view(len(owners), -1)
        left, right = edges[:-1].repeat(len(owners)), edges[1:].repeat(len(owners))
        owners = owners.repeat_interleave(_FIRST_PARTS)
        return self._integrate(owners, left, right, logits[:, :-1].flatten(), logits[:, 1:].flatten())

    def _halves(self, old: _Parts) -> _Parts:
        middle = (old.left + old.right) / 2
        logits = self._logits_at(old.owners, middle)
        left, right = torch.cat([old.left, middle]), torch.cat([middle, old.right])
        at_left, at_right = torch.cat([old.logits_left, logits]), torch.cat([logits, old.logits_right])
        return self._integrate(old.owners.repeat(2), left, right, at_left, at_right)

    def _integrate(self, owners: Tensor, left: Tensor, right: Tensor, at_left: Tensor, at_right: Tensor) -> _Parts:
        maps = self.sums(_NODES, self._at(owners, right), self._at(owners, left), self.targets[owners])
        errors = maps.double().sum((1, 2, 3)) - (at_right - at_left)
        return _Parts(owners, left, right, at_left, at_right, maps, errors)

    def _logits_at(self, owners: Tensor, shares: Tensor) -> Tensor:
        return self.question.scores(self._at(owners, shares), self.targets[owners])

    def _at(self, owners: Tensor, shares: Tensor) -> Tensor:
        """Return the images at shares of the way; exactly the image at 1."""
        return torch.lerp(self.starts[owners], self.images[owners], shares.to(self.images.dtype)[:, None, None, None])


def _worst_parts(parts: _Parts, room: int) -> Tensor:
    """Mark those parts of each image that hold half of its errors, the first images first, if there is room: (S,)."""
    marked = torch.zeros_like(parts.owners, dtype=torch.bool)
    sizes = parts.errors.abs()
    for image in sorted(set(parts.owners.tolist())):
        own = (parts.owners == image).nonzero()[:, 0]
        own = own[sizes[own].argsort(descending=True)]
        before = sizes[own].cumsum(0) - sizes[own]  # errors of those that are larger
        worst = own[before < 0.5 * sizes[own].sum()]
        room -= len(worst)
        if room < 0 and marked.any():
            break
        marked[worst] = True
    return marked


def _warn_of_errors(errors: Tensor, moves: Tensor, tolerance: float, max_steps: int) -> None:
    """Warn of errors (B,) of sums that steps could mend: where no attribution is other than 0 (B,) they cannot."""
    wrong = (errors > tolerance) & moves
    if wrong.any():
        warnings.warn(
            f"the sum of {int(wrong.sum())} of {len(errors)} maps of integrated gradients is still up to "
            f"{100 * float(errors[wrong].max()):.2g} % off at max_steps={max_steps}, above tolerance={tolerance:g}; "
            "raise max_steps, or use 'occlusion' if the model rounds or has thresholds, which no number of steps mends",
            stacklevel=5,
        )
    still = (errors > tolerance) & ~moves
    if still.any() and moves.any():  # attribute warns where all are 0
        warnings.warn(
            f"{int(still.sum())} of {len(errors)} maps of integrated gradients are 0 although the logit changes: the "
            "gradient is 0 all along the way (rounding or thresholds in the model?); use 'occlusion'",
            stacklevel=5,
        )
