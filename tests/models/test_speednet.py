"""SpeedNet: shapes, size, gradients and messages."""

import pytest
import torch
from torch import nn

from cifarkit.models import SpeedNet


@pytest.mark.parametrize("side", [28, 32, 47, 64])
def test_any_small_image_gives_one_row_of_logits(side: int) -> None:
    model = SpeedNet(num_classes=7, widths=(8, 16, 16)).eval()
    assert model(torch.rand(3, 3, side, side)).shape == (3, 7)


def test_default_has_two_million_parameters_and_reaches_each() -> None:
    model = SpeedNet()
    assert sum(p.numel() for p in model.parameters()) == 1_972_802
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_convolutions_before_batchnorm_have_no_bias() -> None:
    layers = [layer for layer in SpeedNet().modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is None for layer in layers] == [False] + [True] * 6


def test_it_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    model, images, labels = SpeedNet(4, widths=(16, 32, 32)), torch.rand(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        SpeedNet(num_classes=0)
    with pytest.raises(TypeError, match="num_classes='ten' is a str; give an integer"):
        SpeedNet(num_classes="ten")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"widths\[1\]=0 must be at least 1"):
        SpeedNet(widths=(64, 0, 256))
    for widths in [(64, 256), 64]:
        with pytest.raises(ValueError, match=r"widths=.*must be three positive integers"):
            SpeedNet(widths=widths)  # type: ignore[arg-type]
