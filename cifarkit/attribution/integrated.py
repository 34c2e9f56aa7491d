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


def integrated_gradients(
    question: Question,
    *,
    baselines: Any = None,
    steps: int | None = None,
    tolerance: float = 0.01,
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
        tolerance: the most the sum may be off, as a share of the change of the logit (or of 1 % of the largest logit).
        max_steps: nodes of an image at which refining ends, with a warning.
    Source: Sundararajan et al. 2017, arXiv 1703.01365, section 3; Captum's IntegratedGradients.
    """
    from captum.attr import IntegratedGradients

    tolerance = check_number("tolerance", tolerance, 0, above=True)
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

    @property
    def errors(self) -> Tensor:
        return self.maps.double().sum((1, 2, 3)) - (self.logits_right - self.logits_left)

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
        """Integrate a few images at a time, since the maps of all their parts are held."""
        pieces = (torch.split(x, max(1, self.question.max_batch // _NODES)) for x in (self.images, self.starts))
        groups = zip(*pieces, torch.split(self.targets, max(1, self.question.max_batch // _NODES)), strict=True)
        return torch.cat([_Lines(self.question, self.method, *group)._refine(tolerance, max_steps) for group in groups])

    def _refine(self, tolerance: float, max_steps: int) -> Tensor:
        _, size = self.question.changes(self.images, self.starts, self.targets)
        allowed = tolerance * size.clamp(min=1e-12)
        count, device = len(self.images), self.images.device
        edges = torch.linspace(0, 1, _FIRST_PARTS + 1, dtype=torch.float64, device=device)
        owners = torch.arange(count, device=device)
        logits = self._logits_at(owners.repeat_interleave(len(edges)), edges.repeat(count)).view(count, -1)
        left, right = edges[:-1].repeat(count), edges[1:].repeat(count)
        owners = owners.repeat_interleave(_FIRST_PARTS)
        parts = self._integrate(owners, left, right, logits[:, :-1].flatten(), logits[:, 1:].flatten())
        while True:
            errors = torch.zeros_like(allowed).index_add(0, parts.owners, parts.errors).abs()
            full = torch.bincount(parts.owners, minlength=count) * _NODES >= max_steps
            split = _worst_parts(parts, (errors > allowed) & ~full)
            if not split.any():
                break
            old = parts.chosen(split)
            middle = (old.left + old.right) / 2
            logits = self._logits_at(old.owners, middle)
            first = self._integrate(old.owners, old.left, middle, old.logits_left, logits)
            second = self._integrate(old.owners, middle, old.right, logits, old.logits_right)
            parts = parts.chosen(~split).joined(first).joined(second)
        _warn_of_errors(errors / size.clamp(min=1e-12), tolerance, max_steps)
        return torch.zeros_like(self.images).index_add(0, parts.owners, parts.maps)

    def _integrate(self, owners: Tensor, left: Tensor, right: Tensor, at_left: Tensor, at_right: Tensor) -> _Parts:
        maps = self.sums(_NODES, self._at(owners, right), self._at(owners, left), self.targets[owners])
        return _Parts(owners, left, right, at_left, at_right, maps)

    def _logits_at(self, owners: Tensor, shares: Tensor) -> Tensor:
        return self.question.scores(self._at(owners, shares), self.targets[owners])

    def _at(self, owners: Tensor, shares: Tensor) -> Tensor:
        """Return the images at shares of the way; exactly the image at 1."""
        return torch.lerp(self.starts[owners], self.images[owners], shares.to(self.images.dtype)[:, None, None, None])


def _worst_parts(parts: _Parts, pending: Tensor) -> Tensor:
    """Mark those parts of each pending image that hold half of its errors, the largest first: bool (S,)."""
    marked = torch.zeros_like(parts.owners, dtype=torch.bool)
    sizes = parts.errors.abs()
    for image in pending.nonzero()[:, 0]:
        own = (parts.owners == image).nonzero()[:, 0]
        own = own[sizes[own].argsort(descending=True)]
        before = sizes[own].cumsum(0) - sizes[own]  # errors of those that are larger
        marked[own[before < 0.5 * sizes[own].sum()]] = True
    return marked


def _warn_of_errors(errors: Tensor, tolerance: float, max_steps: int) -> None:
    wrong = errors > tolerance
    if wrong.any():
        warnings.warn(
            f"the sum of {int(wrong.sum())} of {len(errors)} maps of integrated gradients is still up to "
            f"{100 * float(errors.max()):.2g} % off at max_steps={max_steps}, above tolerance={tolerance:g}; raise "
            "max_steps",
            stacklevel=5,
        )
