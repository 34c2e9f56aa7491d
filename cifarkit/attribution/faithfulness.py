"""How faithful an explanation is to its model: what its parts add up to, and what happens when pixels go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cifarkit.attribution.scoring import (
    baseline_images,
    check_attributions,
    check_images,
    check_max_batch,
    check_targets,
    class_scores,
)
from cifarkit.checks import check_integer
from cifarkit.inference import predict

_STEPS = 32
_TIES = 0  # seeds the order of equal pixels


def completeness_error(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    attributions: Tensor,
    baselines: float | str | Tensor | None = None,
    *,
    relative: bool = True,
    max_batch: int | None = None,
) -> Tensor:
    """Return by how much the attributions of each image miss the change of the class logit from its baseline.

    Args:
        model, images, targets: as for ``attribute``; None asks about the predicted class.
        attributions: (B, C, H, W).
        baselines: those the attributions were made with: "mean", "blur", a number or a tensor; None is zero. A tensor
            (B, C, H, W) has one for each image; a pool to draw from, as gradient_shap takes it, is not meant.
        relative: divide by the size of that change: 0.01 is one per cent. False leaves the error in logits.
        max_batch: images at a time.
    Returns:
        ``abs(sum of attributions - change) / abs(change)``, float32 (B,); 0 or infinite where the change is 0.
    Raises:
        TypeError, ValueError: if an argument is of a wrong kind or shape.
    Source: Sundararajan et al. 2017, proposition 1.
    """
    images, size = check_images(images), check_max_batch(max_batch)
    maps = check_attributions(attributions, images, per_channel=True)
    start = baseline_images(0.0 if baselines is None else baselines, images, "baselines")
    classes = check_targets(model, images, targets, size)
    both = torch.cat([images, start])
    batches = zip(torch.split(both, size), torch.split(classes.repeat(2), size), strict=True)
    at_image, at_start = class_scores(model, batches, images, count=len(both), probability=False).double().chunk(2)
    return _missed(maps, at_image - at_start, relative=relative)


def pool_completeness_error(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    attributions: Tensor,
    pool: Tensor,
    *,
    max_batch: int | None = None,
) -> Tensor:
    """Return by how much attributions miss the change of the class logit from its mean over a pool of baselines.

    So they are meant to add up where each sample draws its baseline from the pool, as in gradient_shap. The logit of
    the mean baseline is another.

    Args:
        model, images, targets, attributions, max_batch: as for :func:`completeness_error`.
        pool: (M, C, H, W).
    Returns:
        The error as a share of that change, as there.
    """
    images, size = check_images(images), check_max_batch(max_batch)
    maps = check_attributions(attributions, images, per_channel=True)
    classes = check_targets(model, images, targets, size)
    at_images, at_pool = (predict(model, part, batch_size=size, precision="fp32").double() for part in (images, pool))
    change = (at_images - at_pool.mean(0)).gather(1, classes[:, None])[:, 0]
    return _missed(maps, change, relative=True)


def _missed(maps: Tensor, change: Tensor, *, relative: bool) -> Tensor:
    missed = (maps.double().sum((1, 2, 3)) - change).abs()
    if relative:
        missed = torch.where(missed == 0, missed, missed / change.abs())
    return missed.float()


@dataclass(frozen=True)
class FaithfulnessCurve:
    """How the score of a class changes while pixels are removed or inserted, the most important ones first.

    Attributes:
        kind: "deletion" or "insertion".
        shares: of the pixels that are removed or inserted, float64 (S + 1,), from 0 to 1.
        scores: of the class, float32 (B, S + 1): probabilities, or logits if asked for.
        areas: under each curve, float64 (B,), by the trapezoidal rule: the mean score on the way.
    """

    kind: str
    shares: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    areas: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "areas", torch.trapezoid(self.scores.double(), self.shares, dim=1))

    @property
    def area(self) -> float:
        """The mean area of the images."""
        return float(self.areas.mean())

    def __str__(self) -> str:
        first, last = self.scores[:, 0].mean(), self.scores[:, -1].mean()
        better = "the smaller, the better" if self.kind == "deletion" else "the larger, the better"
        images = "1 image" if len(self.areas) == 1 else f"{len(self.areas)} images"
        return (
            f"{self.kind}: area {self.area:.3f} ({self.areas.min():.3f} to {self.areas.max():.3f}, {images}), "
            f"score {first:.3f} -> {last:.3f}; {better}"
        )


def deletion_curve(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    attributions: Tensor,
    *,
    steps: int | None = None,
    baseline: float | str | Tensor = "mean",
    output: str = "probability",
    max_batch: int | None = None,
    precision: str = "fp32",
) -> FaithfulnessCurve:
    """Remove pixels in equal steps, those of largest attribution first, and watch the score of the class fall.

    Pixels are ranked by the sum of their channels, with sign. Equal ones go in a fixed random order, because reading
    order would take whole rows. Compare areas of one model only.

    Args:
        model, images, targets: as for ``attribute``; None asks about the predicted class.
        attributions: (B, C, H, W), (B, 1, H, W) or (B, H, W).
        steps: from the whole image to none of it, a forward pass each; None takes 32, or one pixel at a time.
        baseline: for removed pixels: "mean" (of the image), "blur", a number or a tensor, in the model's units.
        output: "probability" or "logit".
        max_batch, precision: images at a time, and "fp32", "bf16" or "auto".
    Raises:
        TypeError, ValueError: if an argument is of a wrong kind, shape or value.
    Source: Petsiuk et al. 2018, "RISE", section 4.1.
    """
    request = _Removal(model, images, targets, attributions, steps, baseline, output, max_batch, precision)
    return FaithfulnessCurve("deletion", request.shares, request.scores(keep_first=False))


def insertion_curve(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    attributions: Tensor,
    *,
    steps: int | None = None,
    baseline: float | str | Tensor = "blur",
    output: str = "probability",
    max_batch: int | None = None,
    precision: str = "fp32",
) -> FaithfulnessCurve:
    """Put pixels into a blurred image, those of largest attribution first, and watch the score of the class rise.

    Args:
        model, images, targets, attributions, steps, output, max_batch, precision: as for :func:`deletion_curve`.
        baseline: the image to begin with, as there.
    Raises:
        TypeError, ValueError: if an argument is of a wrong kind, shape or value.
    Source: Petsiuk et al. 2018, "RISE", section 4.1.
    """
    request = _Removal(model, images, targets, attributions, steps, baseline, output, max_batch, precision)
    return FaithfulnessCurve("insertion", request.shares, request.scores(keep_first=True))


class _Removal:
    """A checked request for one of the curves."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: int | Tensor | None,
        attributions: Tensor,
        steps: int | None,
        baseline: float | str | Tensor,
        output: str,
        max_batch: int | None,
        precision: str,
    ) -> None:
        self.model, self.images, self.precision = model, check_images(images), precision
        self.size, pixels = check_max_batch(max_batch), images.shape[2] * images.shape[3]
        steps = min(_STEPS, pixels) if steps is None else check_integer("steps", steps, 1)
        if steps > pixels:
            raise ValueError(f"steps={steps} is more than the {pixels} pixels of an image; give at most {pixels}")
        if output not in ("probability", "logit"):
            raise ValueError(f"output={output!r} is unknown; use 'probability' or 'logit'")
        self.probability = output == "probability"
        self.ranks = _removal_ranks(check_attributions(attributions, self.images)).to(images.device)
        self.filling = baseline_images(baseline, self.images)
        self.targets = check_targets(model, self.images, targets, self.size)
        self.counts = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=images.device)
        self.shares = self.counts.cpu().double() / pixels

    def scores(self, *, keep_first: bool) -> Tensor:
        """Return the scores (B, S + 1) while the first ranks are removed, or while they alone are kept."""
        total = len(self.images) * len(self.counts)
        found = class_scores(
            self.model,
            self._batches(total, keep_first),
            self.images,
            count=total,
            probability=self.probability,
            precision=self.precision,
        )
        return found.view(len(self.images), -1)  # (B * (S + 1),) -> (B, S + 1)

    def _batches(self, total: int, keep_first: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of all steps, one image after the other, so that a batch never exceeds max_batch."""
        height, width = self.images.shape[2:]
        for part in torch.split(torch.arange(total, device=self.images.device), self.size):
            rows, steps = part // len(self.counts), part % len(self.counts)
            first = (self.ranks[rows] < self.counts[steps, None]).view(-1, 1, height, width)
            shown = first if keep_first else ~first
            yield torch.where(shown, self.images[rows], self.filling[rows]), self.targets[rows.cpu()]


def _removal_ranks(maps: Tensor) -> Tensor:
    """Return the place of each pixel in the order of importance, 0 for the first: (B, C, H, W) -> (B, H * W)."""
    importance = maps.sum(1).flatten(1)  # (B, C, H, W) -> (B, H * W)
    shuffled = torch.randperm(importance.shape[1], generator=torch.Generator().manual_seed(_TIES))
    order = shuffled[importance[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1)
