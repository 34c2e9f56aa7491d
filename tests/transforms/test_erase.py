"""Cutout: one clipped square an image, with a uniform centre."""

import pytest
import torch

from cifarkit.seeding import Draws
from cifarkit.transforms import Cutout
from cifarkit.transforms.erase import box_mask


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_square_is_clipped_at_the_border(size: int) -> None:
    images = torch.zeros(3, 2, 10, 12)
    centres = torch.tensor([[0, 0], [5, 6], [9, 11]])
    result = Cutout(size, fill=(0.5, 1.0)).apply(images, centres)
    for i, (row, column) in enumerate(centres.tolist()):
        expected = torch.zeros(2, 10, 12)
        top, left = row - size // 2, column - size // 2
        square = expected[:, max(top, 0) : top + size, max(left, 0) : left + size]
        square.copy_(torch.tensor([0.5, 1.0])[:, None, None].expand_as(square))
        assert torch.equal(result[i], expected)


def test_centres_are_uniform() -> None:
    rows, columns = Cutout(4).parameters(Draws(0, 0, torch.arange(40_000)), 8, 10).unbind(1)
    counts = torch.bincount(rows * 10 + columns, minlength=80).double()
    assert len(counts) == 80
    assert ((counts - 500) ** 2 / 500).sum() / 79 < 1.6


def test_fill_of_bytes() -> None:
    assert Cutout(40)(torch.zeros(1, 3, 6, 6, dtype=torch.uint8)).unique().tolist() == [128]


def test_box_mask_excludes_the_far_sides() -> None:
    mask = box_mask(torch.zeros(1, 1, 5, 5), torch.tensor([[1, 2, 3, 5]]))
    assert mask.nonzero()[:, 2:].tolist() == [[1, 2], [1, 3], [1, 4], [2, 2], [2, 3], [2, 4]]


def test_errors() -> None:
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        Cutout(0)
    with pytest.raises(TypeError, match=r"size=\(4, 8\) is a tuple; give an integer"):
        Cutout((4, 8))  # type: ignore[arg-type]
