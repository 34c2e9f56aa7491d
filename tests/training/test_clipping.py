"""Gradients bounded by norm or by value, real and complex ones."""

import pytest
import torch
from torch import nn

from cifarkit.training.clipping import clip_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_every_number_of_a_gradient_is_bounded(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.zeros(3, dtype=dtype)), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD(parameters, 0.1)
    gradients = [torch.randn(3, dtype=dtype) * 5, torch.tensor([3.0, -0.5])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = clip_gradients(optimizer, 1.0, "value")
    assert norm == pytest.approx(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        numbers, before = (torch.view_as_real(x) if x.is_complex() else x for x in (parameter.grad, gradient))
        assert torch.equal(numbers, before.clamp(-1, 1))
