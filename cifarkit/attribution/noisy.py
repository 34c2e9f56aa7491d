"""Attributions averaged over random samples, drawn from a seed.

Each sample of each image has its fixed place in one stream of numbers, so neither max_batch nor the device changes what
it gets. The streams are those of Captum's NoiseTunnel and GradientShap with all images in one pass on a CPU, after
``torch.manual_seed(seed)`` and ``numpy.random.seed(seed)``. Captum draws anew for each pass, so the means are taken
here; the maps of the samples are Captum's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifarkit.attribution.normal_stream import NormalStream
from cifarkit.attribution.question import Question
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
    from captum.attr import IntegratedGradients, Saliency

    samples, stdev = check_integer("samples", samples, 1), check_number("stdev", stdev, 0)
    steps_taken = check_integer("steps", 20 if steps is None else steps, 1)
    if base not in ("integrated_gradients", "saliency"):
        raise ValueError(f"base={base!r} is unknown; use 'integrated_gradients' or 'saliency'")
    integrates = base == "integrated_gradients"
    if not integrates and not (baselines is None and steps is None):
        raise ValueError("baselines and steps belong to base='integrated_gradients'; base='saliency' has neither")
    starts, total = question.baselines(baselines), question.zeros()
    method: Any = (IntegratedGradients if integrates else Saliency)(question.forward)
    for noisy, owners in _noisy_copies(question, samples, stdev):
        settings = {"n_steps": steps_taken, "internal_batch_size": question.max_batch, "baselines": starts[owners]}
        found = method.attribute(
            noisy.requires_grad_(), target=question.targets[owners], **(settings if integrates else {})
        )
        total.index_add_(0, owners, found.detach().to(total).square())
    return total / samples


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
    from captum.attr import Saliency

    samples, stdev = check_integer("samples", samples, 1), check_number("stdev", stdev, 0)
    pool, method, total = _baseline_pool(question, baselines), Saliency(question.forward), question.zeros()
    draw, count = np.random.RandomState(question.seed % 2**32), len(total) * samples
    drawn = draw.choice(len(pool), count), draw.uniform(size=count)  # in Captum's order
    choices, shares = (torch.split(torch.from_numpy(one).to(pool.device), question.max_batch) for one in drawn)
    for (noisy, owners), choice, part in zip(_noisy_copies(question, samples, stdev), choices, shares, strict=True):
        start, share = pool[choice], part.to(pool.dtype)[:, None, None, None]
        points = (share * noisy + (1 - share) * start).requires_grad_()
        gradient = method.attribute(points, target=question.targets[owners], abs=False)
        total.index_add_(0, owners, ((noisy - start) * gradient.detach()).to(total))
    return total / samples


def _noisy_copies(question: Question, samples: int, stdev: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield so many noisy copies of each image, at most max_batch together, and whose they are: (P, C, H, W), (P,)."""
    images = question.images
    whose = torch.arange(len(images), device=images.device).repeat_interleave(samples)
    noise = NormalStream(question.seed, len(whose) * images[0].numel())
    for owners in torch.split(whose, question.max_batch):
        copies = images[owners]
        if stdev > 0:
            copies = copies + (stdev * noise.take(*copies.shape)).to(copies)
        yield copies, owners


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
