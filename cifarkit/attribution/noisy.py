"""Attributions averaged over random samples, drawn from a seed.

On the CPU the noise is one stream through all images in order, so max_batch does not change it; only gradient_shap
with several baselines, or any method on a GPU, draws other numbers when max_batch cuts the images differently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cifarkit.attribution.question import Question, seeded
from cifarkit.checks import check_integer, check_number


def smooth_grad_squared(
    question: Question,
    *,
    samples: int = 10,
    stdev: float = 0.2,
    base: str = "integrated_gradients",
    baselines: Any = None,
    steps: int | None = None,
) -> Tensor:
    """Return the mean of the squared attributions of noisy copies of each image.

    Args:
        samples: copies of an image.
        stdev: of the Gaussian noise, in the units of the images.
        base: what is squared: "integrated_gradients" or "saliency".
        baselines, steps: of integrated gradients alone; None takes 20 steps. Fewer do than for one image, as the noise
            averages over them: on a ResNet-18, 20 and 100 rank the pixels alike to 0.999.
    Raises:
        ValueError: if a number is out of range, base is unknown, or baselines or steps come with base="saliency".
    Source: Hooker et al. 2019, arXiv 1806.10758, section 3, after Smilkov et al. 2017; Captum's NoiseTunnel.
    """
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency

    samples, stdev = check_integer("samples", samples, 1), check_number("stdev", stdev, 0)
    settings = {
        "n_steps": check_integer("steps", 20 if steps is None else steps, 1),
        "internal_batch_size": question.max_batch,
    }
    if base not in ("integrated_gradients", "saliency"):
        raise ValueError(f"base={base!r} is unknown; use 'integrated_gradients' or 'saliency'")
    integrates = base == "integrated_gradients"
    if not integrates and not (baselines is None and steps is None):
        raise ValueError("baselines and steps belong to base='integrated_gradients'; base='saliency' has neither")
    tunnel = NoiseTunnel((IntegratedGradients if integrates else Saliency)(question.forward))
    maps = []
    with seeded(question.seed):
        for images, targets, starts in question.batches(question.max_batch // samples, question.baselines(baselines)):
            found = tunnel.attribute(
                images,
                nt_type="smoothgrad_sq",
                nt_samples=samples,
                nt_samples_batch_size=min(samples, question.max_batch),
                stdevs=stdev,
                target=targets,
                **(settings | {"baselines": starts} if integrates else {}),
            )
            maps.append(found.detach())
    return torch.cat(maps)


def gradient_shap(question: Question, *, samples: int = 50, stdev: float = 0.0, baselines: Any = None) -> Tensor:
    """Return the mean of (image - baseline) times the gradient at random points between the two.

    Args:
        samples: random points for an image.
        stdev: of Gaussian noise that each sample adds to the image, in the units of the images.
        baselines: a number, a colour (C,), an image, or a tensor (M, C, H, W) out of which each sample draws one;
            None is zero.
    Raises:
        TypeError: if baselines are a word.
        ValueError: if a number is out of range or baselines do not fit the images.
    Source: Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and
        expected gradients", section 2; Captum's GradientShap.
    """
    from captum.attr import GradientShap

    samples, stdev = check_integer("samples", samples, 1), check_number("stdev", stdev, 0)
    pool, method, maps = _baseline_pool(question, baselines), GradientShap(question.forward), []
    with seeded(question.seed):
        for images, targets in question.batches(question.max_batch // samples):
            total = torch.zeros_like(images)
            for first in range(0, samples, question.max_batch):  # Captum would take all samples in one pass
                count = min(question.max_batch, samples - first)
                found = method.attribute(images, baselines=pool, n_samples=count, stdevs=stdev, target=targets)
                total += count * found.detach()
            maps.append(total / samples)
    return torch.cat(maps)


def _baseline_pool(question: Question, baselines: Any) -> Tensor:
    """Return baselines (M, C, H, W) to draw from."""
    if isinstance(baselines, str):
        raise TypeError(f"baselines={baselines!r}: gradient_shap draws from images (M, C, H, W); give a tensor")
    one = tuple(question.images.shape[1:])
    if isinstance(baselines, Tensor) and baselines.dim() == 4:
        if tuple(baselines.shape[1:]) != one or not len(baselines):
            got = tuple(baselines.shape)
            raise ValueError(f"baselines has shape {got}; give (M, C, H, W) with (C, H, W) = {one}, M at least 1")
        return baselines.detach().to(question.images)
    return question.baselines(baselines)[:1].contiguous()
