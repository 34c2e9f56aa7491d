"""Gradients bounded before an optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer


def clip_gradients(optimizer: Optimizer, bound: float | None, algorithm: str) -> Tensor:
    """Bound the gradient of an optimizer's parameters, and return its norm as it was before.

    Args:
        bound: of the norm or of every entry; None only measures.
        algorithm: "norm" or "value".
    """
    parameters = [item for group in optimizer.param_groups for item in group["params"] if item.grad is not None]
    if bound is not None and algorithm == "norm":
        return clip_grad_norm_(parameters, bound)  # an infinite norm is left to the scaler
    norm = get_total_norm([item.grad for item in parameters])
    if bound is not None:
        clip_grad_value_([item for item in parameters if not item.is_complex()], bound)
        for item in parameters:
            if item.is_complex():
                torch.view_as_real(item.grad).clamp_(-bound, bound)
    return norm
