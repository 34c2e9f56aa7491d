"""SpeedNet: shapes, size, gradients and messages."""

import pytest
import torch
from torch import nn

from cifarkit.models import SpeedNet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("side", [9, 20, 28, 32, 47, 64])
def test_any_small_image_gives_one_row_of_logits(side: int, depth: int, channels: int) -> None:
    model = SpeedNet(num_classes=7, widths=(8, 16, 16), depth=depth, channels=channels).eval()
    assert model(torch.rand(3, channels, side, side)).shape == (3, 7)


def test_default_has_two_million_parameters_and_reaches_each() -> None:
    model = SpeedNet()
    assert sum(p.numel() for p in model.parameters()) == 1_972_792
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 6
    assert all(p.eq(1).all() for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("depth", [2, 3])
def test_kernels_start_as_the_identity_on_their_first_channels(depth: int) -> None:
    for layer in SpeedNet(widths=(32, 64, 64), depth=depth).groups.modules():
        if isinstance(layer, nn.Conv2d):
            images = torch.rand(2, layer.in_channels, 6, 6)
            torch.testing.assert_close(layer(images)[:, : layer.in_channels], images)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_whitened_stem_gives_uncorrelated_channels_of_unit_variance_and_their_negatives(channels: int) -> None:
    images = torch.randn(64, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    images[:, -1] = 0.9 * images[:, 0] + 0.1 * images[:, -1]
    model, half = SpeedNet(channels=channels), 4 * channels
    model.whiten(images, epsilon=0.0)
    directions = model.stem[0](images).transpose(0, 1).flatten(1)  # (8C, patches)
    assert len(directions) == 2 * half
    covariance = directions[:half] @ directions[:half].T / directions.shape[1]
    torch.testing.assert_close(covariance, torch.eye(half), atol=1e-4, rtol=0)
    torch.testing.assert_close(directions[half:], -directions[:half])
    assert not model.stem[0].weight.requires_grad
    assert model.stem[0].bias.requires_grad


def test_whitening_in_pieces_is_whitening_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, stems = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for count in (3, 10):
        monkeypatch.setattr("cifarkit.models.speednet._WHITENED_AT_A_TIME", count)
        model = SpeedNet()
        model.whiten(images)
        stems.append(model.stem[0].weight.flatten(1))
    # Directions of like variances may turn into each other, but what all of them make of a patch stays.
    torch.testing.assert_close(*(stem.T @ stem for stem in stems))


def test_strongest_direction_comes_first() -> None:
    model = SpeedNet()
    model.whiten(torch.full((4, 3, 6, 6), 2.0))  # every patch is 2 * (1, ..., 1): one direction, length 2 * sqrt(12)
    first = model.stem[0].weight[0].flatten()
    torch.testing.assert_close(first.abs(), torch.full((12,), 12**-0.5 / 48.0005**0.5), atol=1e-6, rtol=0)


def test_three_convolutions_have_a_residual_connection_around_the_last_two() -> None:
    group = SpeedNet(widths=(8, 8, 8), depth=3).eval().groups[1]
    for layer in group.rest:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    images = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(group(images), nn.functional.gelu(group.first(images)))


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
    with pytest.raises(ValueError, match="depth=4 is not offered; use 2, or 3"):
        SpeedNet(depth=4)
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\).*got \(2, 1, 8, 8\)"):
        SpeedNet().whiten(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\).*got \(2, 3, 8, 8\)"):
        SpeedNet(channels=1).whiten(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match=r"images must be a float tensor, normalised as in training; got torch\.uint8"):
        SpeedNet().whiten(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    for images in (torch.rand(0, 3, 8, 8), torch.full((2, 3, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match=f"images must be finite, and at least one; got {len(images)}"):
            SpeedNet().whiten(images)
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        SpeedNet(channels=0)
    for widths in [(64, 256), 64]:
        with pytest.raises(ValueError, match=r"widths=.*must be three positive integers"):
            SpeedNet(widths=widths)  # type: ignore[arg-type]
