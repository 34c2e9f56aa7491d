"""Noise in a fixed order: the pieces in which it is taken, and so max_batch, change no map."""

from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from cifarkit.attribution import attribute
from cifarkit.attribution.normal_stream import NormalStream

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
SMOOTH, SHAP = {"samples": 5, "steps": 3}, {"samples": 6, "stdev": 0.3}


@pytest.mark.parametrize("total", [5, 16, 17, 2700, 50_000])
@pytest.mark.parametrize("piece", [7, 480, 2700, 30_000])
def test_pieces_hold_the_numbers_of_one_draw(total: int, piece: int) -> None:
    torch.manual_seed(3)
    whole = torch.randn(total)
    stream = NormalStream(3, total)
    parts = [stream.take(min(piece, total - start)) for start in range(0, total, piece)]
    assert torch.equal(torch.cat(parts), whole)


def test_seeds_are_taken_as_pytorch_takes_them() -> None:
    torch.manual_seed(-5)
    whole = torch.randn(2, 20)
    assert torch.equal(NormalStream(-5, 40).take(2, 20), whole)
    assert torch.equal(NormalStream(2**64 - 5, 40).take(2, 20), whole)


@pytest.mark.parametrize("side", [30, 33])  # 3 * 30 * 30 and 3 * 33 * 33 are no multiples of 16, PyTorch's stride
@pytest.mark.parametrize(("method", "options"), [("smooth_grad_squared", SMOOTH), ("gradient_shap", SHAP)])
def test_max_batch_changes_no_map_of_any_size(side: int, method: str, options: dict[str, Any]) -> None:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    if method == "gradient_shap":
        options = options | {"baselines": torch.stack([torch.zeros(3, side, side), torch.ones(3, side, side)])}
    whole = attribute(MODEL, images, 1, method, **options)
    for size in (1, 2, 4, 7, 13):
        parts = attribute(MODEL, images, 1, method, max_batch=size, **options)
        assert (parts - whole).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("side", [30, 33])
def test_noise_is_captums_in_one_pass_at_any_size(side: int) -> None:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(MODEL))
    expected = tunnel.attribute(images, nt_type="smoothgrad_sq", nt_samples=5, stdevs=0.3, target=1)
    settings = {"samples": 5, "stdev": 0.3, "base": "saliency", "seed": 7, "max_batch": 4}
    torch.testing.assert_close(attribute(MODEL, images, 1, "smooth_grad_squared", **settings), expected)
    torch.manual_seed(7)
    np.random.seed(7)
    pool = torch.zeros(1, 3, side, side)
    expected = captum.attr.GradientShap(MODEL).attribute(images, pool, n_samples=6, stdevs=0.3, target=1)
    found = attribute(MODEL, images, 1, "gradient_shap", seed=7, max_batch=4, **SHAP)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
