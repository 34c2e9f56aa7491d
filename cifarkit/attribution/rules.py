"""DeepLift's rules for non-linearities that Captum has no rule for, or a wrong one.

Half of a batch are images, the other half their baselines, as DeepLift arranges them; in backward each rule puts the
slope between the two in place of the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Pointwise = Callable[[Tensor], Tensor]
Pool = Callable[[Tensor], tuple[Tensor, Tensor]]  # outputs and where they stood in the plane

_CLOSE = 1e-4  # nearer than this, rounding spoils the slope; the derivative half-way is then exact enough


class Rescale(nn.Module):
    """Apply a function to each number by itself; the rescale rule in backward.

    Source: Shrikumar et al. 2017, arXiv 1704.02685, section 3.5.1.
    """

    def __init__(self, function: Pointwise) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        outputs: Tensor = _Rescale.apply(values, self.function)
        return outputs


class MaxPool(nn.Module):
    """Take maxima over windows; the rule for maxima in backward, which also holds where windows overlap.

    Captum's keeps one of the windows that share a maximum. Behind an activation it is passed over, and the gradient
    goes to the pixel that holds the maximum of the image. Where several hold that of the baseline, as on a plain one,
    any of them makes the sums right; ``ties_to_image`` picks the image's, if it is among them, and on a plain baseline
    the maps are Captum's.

    Args:
        pool: returns the maxima and where they stood.
        ties_to_image: False picks the first.
    Source: Shrikumar et al. 2017, and the code of DeepExplain and SHAP, which split the change of a maximum between
        the pixel that holds it in the image and the one that holds it in the baseline.
    """

    def __init__(self, pool: Pool, *, ties_to_image: bool = False) -> None:
        super().__init__()
        self.pool, self.ties_to_image = pool, ties_to_image

    def forward(self, values: Tensor) -> Tensor:
        outputs: Tensor = _MaxPool.apply(values, self.pool, self.ties_to_image)
        return outputs


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, function: Pointwise) -> Tensor:
        outputs = function(values)
        ctx.save_for_backward(values, outputs)
        ctx.function = function  # type: ignore[attr-defined]
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (image, start), (top, bottom) = (tensor.chunk(2) for tensor in ctx.saved_tensors)
        change = image - start
        close = change.abs() < _CLOSE
        with torch.enable_grad():
            middle = (0.5 * (image + start)).detach().requires_grad_()
            (derivative,) = torch.autograd.grad(ctx.function(middle).sum(), middle)
        slope = torch.where(close, derivative, (top - bottom) / change.masked_fill(close, 1))
        return gradient * torch.cat([slope, slope]), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, pool: Pool, ties_to_image: bool) -> Tensor:
        outputs, places = pool(values)
        if ties_to_image:
            (at_image, at_start), start, bottom = places.chunk(2), values.chunk(2)[1], outputs.chunk(2)[1]
            tied = start.flatten(2).gather(2, at_image.flatten(2)).view_as(bottom) == bottom
            places = torch.cat([at_image, torch.where(tied, at_image, at_start)])
        ctx.save_for_backward(values, outputs, places)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, outputs, places = ctx.saved_tensors
        (image, start), (top, bottom) = values.chunk(2), outputs.chunk(2)
        higher = torch.maximum(top, bottom)
        given = gradient * torch.cat([higher - bottom, top - higher])  # what each half of the batch explains

        def spread(numbers: Tensor) -> Tensor:  # (B, C, h, w) -> (B, C, H, W), back to where the maxima stood
            plane = torch.zeros_like(values).flatten(2)
            return plane.scatter_add(2, places.flatten(2), numbers.flatten(2)).view_as(values)

        change = image - start
        still = change == 0
        shares = sum(spread(given).chunk(2)) / change.masked_fill(still, 1)
        still, shares = torch.cat([still, still]), torch.cat([shares, shares])
        return torch.where(still, spread(gradient), shares), None, None
