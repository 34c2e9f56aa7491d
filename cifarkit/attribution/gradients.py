"""Attributions from one gradient of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from cifarkit.attribution.question import Question


def saliency(question: Question, *, absolute: bool = True) -> Tensor:
    """Return the gradient of the logit: how much it changes when a pixel does.

    Args:
        absolute: without its sign, as published.
    Source: Simonyan et al. 2013, arXiv 1312.6034, section 3; Captum's Saliency.
    """
    from captum.attr import Saliency

    method = Saliency(question.forward)
    return torch.cat(
        [
            method.attribute(images.requires_grad_(), target=targets, abs=bool(absolute)).detach()
            for images, targets in question.batches(question.max_batch)
        ]
    )


def input_x_gradient(question: Question) -> Tensor:
    """Return the image times the gradient of the logit.

    Source: Shrikumar et al. 2016, arXiv 1605.01713; Captum's InputXGradient.
    """
    from captum.attr import InputXGradient

    method = InputXGradient(question.forward)
    return torch.cat(
        [
            method.attribute(images.requires_grad_(), target=targets).detach()
            for images, targets in question.batches(question.max_batch)
        ]
    )
