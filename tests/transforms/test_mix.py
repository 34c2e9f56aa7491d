"""Mixup and CutMix: pixels and labels mixed by the same share."""

import pytest
import torch
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.transforms import CutMix, Mixup
from cifarkit.transforms.mix import Mix, draw_beta

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])


def photos(channels: int = 3) -> Tensor:
    return torch.rand(6, channels, 8, 11, generator=torch.Generator().manual_seed(0))


def draws(count: int = 6) -> Draws:
    return Draws(0, 0, torch.arange(count))


def test_mixup_averages_images_and_labels() -> None:
    mix = Mixup(1.0)
    share = mix.parameters(draws(), 8, 11)
    images, soft = mix(photos(), LABELS, 4, draws())
    for i in range(6):
        torch.testing.assert_close(images[i], share[i] * photos()[i] + (1 - share[i]) * photos()[i - 1])
        expected = torch.zeros(4)
        expected[LABELS[i]] += share[i]
        expected[LABELS[i - 1]] += 1 - share[i]
        torch.testing.assert_close(soft[i], expected)


def test_cutmix_weighs_labels_by_the_pixels_kept() -> None:
    ids = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 11)
    images, soft = CutMix(1.0)(ids, torch.arange(6), 6, draws())
    for i in range(6):
        assert soft[i, i].item() == pytest.approx((images[i] == i).float().mean().item())
        assert soft[i, i - 1].item() == pytest.approx((images[i] == (i - 1) % 6).float().mean().item())


def test_cutmix_boxes() -> None:
    boxes = CutMix(1.0).parameters(draws(20_000), 20, 32).float()
    top, left, bottom, right = boxes.unbind(1)
    assert top.min() == 0
    assert left.min() == 0
    assert bottom.max() == 20
    assert right.max() == 32
    assert ((bottom >= top) & (right >= left)).all()
    inner = (top > 0) & (left > 0) & (bottom < 20) & (right < 32)
    assert ((bottom - top)[inner] / 20 - (right - left)[inner] / 32).abs().max() <= 1 / 20  # the image's proportions


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = draw_beta(draws(20_000), alpha)
    reference = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((200_000,)).sort().values
    assert shares.isfinite().all()
    assert ((shares >= 0) & (shares <= 1)).all()
    ranks = torch.searchsorted(reference, shares.sort().values, right=True) / len(reference)
    middle = (shares.sort().values > 1e-6) & (shares.sort().values < 1 - 1e-6)  # ties at 0 and 1 have no rank
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    assert (ranks - uniform)[middle].abs().max() < 0.02  # Kolmogorov and Smirnov, 0.014 at the 0.1 % level


@pytest.mark.parametrize("mix", [Mixup(0.3), CutMix(0.3)], ids=repr)
@pytest.mark.parametrize("channels", [1, 4])
def test_bytes_and_floats_agree(mix: Mix, channels: int) -> None:
    images = photos(channels).mul(255).byte()
    from_bytes, soft = mix(images, LABELS, 3, draws())
    from_floats, same = mix(images.float() / 255, LABELS, 3, draws())
    assert from_bytes.dtype == torch.uint8
    assert torch.equal(soft, same)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert (from_bytes.float() / 255 - from_floats).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("mix", [Mixup(0.3), CutMix(0.3)], ids=repr)
def test_small_batches_and_no_draws(mix: Mix) -> None:
    images, soft = mix(photos()[:1], LABELS[:1], 3)
    torch.testing.assert_close(images, photos()[:1])
    assert soft.tolist() == [[1, 0, 0]]
    images, soft = mix(photos()[:0], LABELS[:0], 3)
    assert images.shape == (0, 3, 8, 11)
    assert soft.shape == (0, 3)


@pytest.mark.parametrize("mix", [Mixup(0.3), CutMix(0.3)], ids=repr)
def test_errors(mix: Mix) -> None:
    with pytest.raises(ValueError, match="labels run from 0 to 2, but num_classes=2 allows 0 to 1"):
        mix(photos(), LABELS, 2)
    with pytest.raises(ValueError, match=r"labels is torch.float32 of shape \(6,\); give int64 \(6,\)"):
        mix(photos(), LABELS.float(), 3)
    with pytest.raises(ValueError, match="alpha=0 must be above 0"):
        type(mix)(0)
    with pytest.raises(TypeError, match="alpha='1' is a str; give a number"):
        type(mix)("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"labels is a list; give an int64 tensor \(6,\)"):
        mix(photos(), LABELS.tolist(), 3)  # type: ignore[arg-type]
