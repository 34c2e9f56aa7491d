"""FastConvolution: equal to the convolution it stands for, with a shift, in parts, and enlarged."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifarkit.models import winograd
from cifarkit.models.winograd import FastConvolution

WEIGHT, BIAS, SHIFT = torch.randn(5, 4, 3, 3), torch.randn(5), torch.randn(3, 5)


def images() -> Tensor:
    return torch.randn(3, 4, 6, 8).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("enlarge", [False, True])
def test_it_is_the_convolution(enlarge: bool) -> None:
    x = images()
    found = FastConvolution(WEIGHT, BIAS, torch.float32, enlarge=enlarge)(x, SHIFT)
    seen = F.interpolate(x, scale_factor=2.0, mode="nearest") if enlarge else x
    expected = F.conv2d(seen, WEIGHT, BIAS, padding=1) + SHIFT[:, :, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_parts_of_a_batch_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, fast = images(), FastConvolution(WEIGHT, BIAS, torch.float32)
    whole = fast(x)
    monkeypatch.setattr(winograd, "_TRANSFORMED", 1)
    torch.testing.assert_close(fast(x), whole)


def test_bf16_stays_near() -> None:
    x = images()
    found = FastConvolution(WEIGHT, BIAS, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), F.conv2d(x, WEIGHT, BIAS, padding=1), rtol=0.1, atol=0.2)
