"""The nearest training image of each sample, exact, and a verdict that knows what is usual."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.generation import audit, check_copies, distances, nearest_copies
from cifarkit.generation.audit import Copies, CopyCheck


def pixels(count: int, seed: int = 0, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def table(real: Tensor, fake: Tensor) -> Tensor:
    rows = [(images.flatten(1).double() / 255) for images in (fake, real)]
    return (rows[0][:, None] - rows[1][None]).norm(dim=2)  # (M, N)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 400), st.booleans())
def test_it_is_the_nearest_of_all(real: int, fake: int, block: int, mirror: bool) -> None:
    train, samples = pixels(real), pixels(fake, 1)
    expected = table(train, samples)
    if mirror:
        expected = torch.minimum(expected, table(train.flip(3), samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_BLOCK_VALUES", block)
        patch.setattr(audit, "_FAKES", 4)
        found = nearest_copies(train, samples, mirror=mirror)
    assert torch.allclose(found.distances, expected.min(1).values)
    assert torch.equal(found.indices, expected.argmin(1))


def test_a_copy_is_at_distance_zero() -> None:
    train = pixels(300, side=16)
    found = nearest_copies(train, train[[7, 299, 0]])
    assert found.indices.tolist() == [7, 299, 0]
    assert found.distances.tolist() == [0, 0, 0]


def test_one_grey_level_in_one_pixel_is_seen() -> None:
    train = pixels(1, side=32).expand(3, -1, -1, -1).clone()
    train[:, 0, 0, 0] = torch.tensor([100, 101, 103], dtype=torch.uint8)
    sample = train[:1].clone()
    sample[0, 0, 0, 0] = 102
    sample[0, 0, 0, 1] ^= 1
    found = nearest_copies(train[:2], sample)
    assert found.indices.tolist() == [1]
    assert found.distances.item() == pytest.approx(2**0.5 / 255)


def test_mirror_images_are_found_if_asked_for() -> None:
    train = pixels(20)
    assert nearest_copies(train, train[[5]].flip(3), mirror=True).distances.tolist() == [0]
    assert nearest_copies(train, train[[5]].flip(3)).distances.item() > 1
    assert nearest_copies(train, train[[5]], mirror=True).indices.tolist() == [5]


def test_floats_count_as_they_are() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = nearest_copies(points, torch.tensor([[3.0, 3.0], [-3.0, 4.0]]))
    assert found.indices.tolist() == [1, 0]
    assert found.distances.tolist() == [1, 5]


def test_the_images_are_left_as_they_were() -> None:
    train, samples = pixels(5), pixels(3, 1)
    before = train.clone(), samples.clone()
    nearest_copies(train, samples, mirror=True)
    assert torch.equal(train, before[0])
    assert torch.equal(samples, before[1])


def test_copies_are_told_from_new_images() -> None:
    train, new, other = pixels(200), pixels(100, 1), pixels(100, 2)
    fine = check_copies(train, new, other)
    assert fine.share <= 0.05
    assert torch.equal(fine.usual, nearest_copies(train, other).distances)
    copied = check_copies(train, torch.cat([new[:70], train[:30]]), other)
    assert copied.share == pytest.approx(0.3, abs=0.05)
    assert "30.0% of 100 generated images are as near as the nearest 1% of 100 other real ones: look at" in str(copied)
    assert "no sign of copying" in str(check_copies(train, other, other))


def test_a_few_near_images_of_few_are_chance() -> None:
    copies = Copies(torch.tensor([0.9] * 2 + [3.0] * 38), torch.zeros(40, dtype=torch.int64))
    usual = torch.linspace(0.9, 3, 100)
    assert "no sign of copying" in str(CopyCheck(copies, usual, 2 / 40))
    assert "look at the nearest pairs" in str(CopyCheck(copies, usual, 3 / 40))
    many = Copies(torch.full((10_000,), 3.0), torch.zeros(10_000, dtype=torch.int64))
    assert "no sign of copying" in str(CopyCheck(many, usual, 0.02))
    assert "look at the nearest pairs" in str(CopyCheck(many, usual, 0.021))


def test_a_single_copy_is_seen_and_training_images_among_the_others_hide_none() -> None:
    train, new, other = pixels(200), pixels(100, 1), pixels(100, 2)
    single = check_copies(train, torch.cat([new[:99], train[:1]]), other)
    assert single.share <= 0.02
    assert "look at the nearest pairs" in str(single)
    copied = check_copies(train, train[:50], torch.cat([other[:98], train[:2]]))
    assert len(copied.usual) == 98
    assert copied.share == 1
    with pytest.raises(ValueError, match=r"train has rows of shape .* and other_real \("):
        check_copies(train, new, other[..., :-1])
    with pytest.raises(TypeError, match=r"train is torch\..* and other_real torch\."):
        check_copies(train, new, other.float() if other.dtype == torch.uint8 else other.byte())
    with pytest.raises(ValueError, match="other_real holds only training images; give real images that were not"):
        check_copies(train, new, train[:5])


@pytest.mark.parametrize(
    ("real", "fake", "error", "message"),
    [
        ([1], pixels(2), TypeError, "real must be a uint8 or float tensor of images or features, got list"),
        (pixels(2), pixels(2).long(), TypeError, "fake must be .* got torch.int64"),
        (pixels(2), pixels(2).float(), TypeError, "real is torch.uint8 and fake torch.float32; give both"),
        (pixels(2), pixels(2)[0], ValueError, r"fake has shape \(3, 4, 4\); it must be \(N, C, H, W\)"),
        (pixels(2)[:0], pixels(2), ValueError, r"real has shape \(0, 3, 4, 4\)"),
        (pixels(2), pixels(2, side=5), ValueError, r"real has rows of shape \(3, 4, 4\) and fake \(3, 5, 5\)"),
        (torch.ones(2, 3), torch.full((2, 3), torch.inf), ValueError, "fake holds NaN or infinite values"),
    ],
)
def test_refuses(real: Any, fake: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        nearest_copies(real, fake)


def test_features_have_no_mirror_image() -> None:
    with pytest.raises(ValueError, match="mirror=True needs images"):
        nearest_copies(torch.ones(2, 3), torch.ones(2, 3), mirror=True)
