"""Attributions from the differences that each layer passes on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.question import Question, compute_logits
from cifarkit.attribution.rewriting import separate_nonlinearities, without_rule
from cifarkit.attribution.wrappers import unwrapped
from cifarkit.checks import check_number

_ALIKE = 1e-3  # share of the largest logit by which the logits of the rewritten copy may differ


def deep_lift(question: Question, *, baselines: Any = None, tolerance: float = 0.01, rewrite: bool = True) -> Tensor:
    """Return (image - baseline) times multipliers that explain the change of the logit in one backward pass.

    Captum needs each call of an activation to be a module of its own, with an input of its own; a copy of the model is
    rewritten so, in which GELU, SiLU and others, and max-pools, have rules too. The sum of each map is then held
    against the change of the logit. A pass holds images and their baselines, so at least two. All is float32, whatever
    ``precision`` says: quotients of small differences do not bear the rounding of bf16.

    Args:
        baselines: None for zero; "mean" (of the image), "blur", a number, or a tensor.
        tolerance: the most the sum may be off, as a share of the change of the logit (or of 1 % of the largest logit,
            if that is more).
        rewrite: False gives the model to Captum as it is.
    Raises:
        ValueError: if a sum is farther off: the model does something for which DeepLift has no rule; or if its
            weights are bf16 or fp16.
    Source: Shrikumar et al. 2017, arXiv 1704.02685, the rescale rule; Captum's DeepLift.
    """
    from captum.attr import DeepLift

    tolerance = check_number("tolerance", tolerance, 0, above=True)
    if question.images.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"deep_lift cannot explain weights of {question.images.dtype}: its quotients of small differences do not "
            "bear such rounding. Give it copy.deepcopy(model).float()"
        )
    starts = question.baselines(baselines).contiguous()
    with torch.autocast(starts.device.type, enabled=False):
        network, rewritten = _prepare(question, starts, rewrite)
        method, maps = DeepLift(network), []
        for images, targets, start in question.batches(question.max_batch // 2, starts):
            try:
                found = method.attribute(images.requires_grad_(), start, target=targets)
            except RuntimeError as error:
                if "more than once" not in str(error):
                    raise
                raise ValueError(_advice(question, rewritten, "a module is used more than once")) from error
            maps.append(found.detach())
        result = torch.cat(maps)
        _check_sums(question, result, starts, tolerance, rewritten)
    return result


class _Logits(nn.Module):
    """What DeepLift hooks into: a network whose logits are at least float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return compute_logits(self.network, images)


def _prepare(question: Question, starts: Tensor, rewrite: bool) -> tuple[nn.Module, bool]:
    """Return a copy of the model, and whether it could be rewritten; DeepLift leaves things behind in a network."""
    model = unwrapped(question.model)
    network = separate_nonlinearities(model) if rewrite else None
    if network is not None:
        few = torch.cat([question.images[:1], starts[:1]])
        with torch.no_grad():
            expected, found = compute_logits(model, few), compute_logits(network, few)
        if torch.allclose(found, expected, rtol=_ALIKE, atol=_ALIKE * float(expected.abs().max())):
            return _Logits(network), True
    return _Logits(copy.deepcopy(model).eval()), False


def _check_sums(question: Question, maps: Tensor, starts: Tensor, tolerance: float, rewritten: bool) -> None:
    change, size = question.changes(question.images, starts, question.targets)
    sums = maps.double().sum((1, 2, 3))
    errors = (sums - change).abs()
    wrong = (~(errors <= tolerance * size)).nonzero()[:, 0]
    if len(wrong):
        worst = int(wrong[errors[wrong].argmax()])
        found = (
            f"the map of image {worst} sums to {float(sums[worst]):.4g} but the logit changes by "
            f"{float(change[worst]):.4g}, which is beyond tolerance={tolerance:g} ({len(wrong)} of {len(maps)} maps)"
        )
        raise ValueError(_advice(question, rewritten, found))


def _advice(question: Question, rewritten: bool, found: str) -> str:
    suspects = ", ".join(without_rule(question.model)) or "none that stands out"
    if rewritten:
        cause = "the model does something that DeepLift has no rule for"
    else:
        cause = (
            "the model could not be rewritten (torch.fx cannot follow its forward pass, or rewrite=False), so calls "
            "such as F.relu and modules that are used twice have no rule; give each call an nn module of its own, and "
            "let the pass not branch on values"
        )
    advice = f"Modules to suspect: {suspects}. Use 'integrated_gradients', which has no such limits"
    return f"deep_lift cannot explain this model: {found}; {cause}. {advice}"
