"""Shares, hits and areas of maps whose feature is known, in closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cifarkit.attribution.localization import localization


def corner(count: int = 1) -> Tensor:
    """The upper left quarter of 4 x 4 pixels."""
    inside = torch.zeros(count, 4, 4, dtype=torch.bool)
    inside[:, :2, :2] = True
    return inside


def test_a_map_on_the_feature_is_perfect_and_one_beside_it_worst() -> None:
    inside = corner(2)
    found = localization(torch.stack([inside[0].float(), (~inside[1]).float()]), inside)
    assert found.mass.tolist() == [1, 0]
    assert found.hits.tolist() == [1, 0]
    assert found.auc.tolist() == [1, 0]
    assert found.chance.tolist() == [0.25, 0.25]


def test_a_map_without_preference_is_chance() -> None:
    found = localization(torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]), corner(2))
    assert found.mass.tolist() == found.hits.tolist() == [0.25, 0.25]
    assert found.auc.tolist() == [0.5, 0.5]


def test_channels_add_up_without_their_sign() -> None:
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, :, 0, 0] = torch.tensor([1.0, -1.0, 1.0])
    maps[0, 1, 3, 3] = -1.0
    found = localization(maps, corner())
    assert found.mass.item() == 0.75
    assert found.hits.item() == 1
    assert found.auc.item() == pytest.approx((12 + 3 * (11 / 2)) / (4 * 12))  # three zeros inside, eleven outside
    assert torch.equal(localization(maps.abs().sum(1), corner()).auc, found.auc)


def test_the_area_counts_pairs() -> None:
    maps = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    found, inside = localization(maps, corner(5)), corner(5)
    for row, where, area in zip(maps.abs(), inside, found.auc, strict=True):
        difference = row[where][:, None] - row[~where]
        assert area.item() == pytest.approx(((difference > 0).sum() + 0.5 * (difference == 0).sum()).item() / 48)


def test_it_reads_as_one_line() -> None:
    text = str(localization(corner(2).float(), corner(2)))
    assert "100.0% of the map inside the feature (by chance 25.0%)" in text
    assert "in 100.0% of 2 images, area under the ROC curve 1.000" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("maps", "inside", "error", "message"),
    [
        ([1], corner(), TypeError, "attributions must be a float tensor"),
        (torch.ones(1, 5, 4), corner(), ValueError, r"attributions are \(1, 1, 5, 4\) for images"),
        (torch.full((1, 4, 4), torch.nan), corner(), ValueError, "attributions hold NaN"),
        (torch.ones(1, 4, 4), corner().float(), TypeError, r"inside must be a bool tensor .* got torch.float32"),
        (torch.ones(1, 4, 4), None, TypeError, "inside must be a bool tensor .* got NoneType"),
        (torch.ones(1, 4, 4), corner()[0], ValueError, r"inside must be \(B, H, W\); got shape \(4, 4\)"),
        (torch.ones(1, 4, 4), ~corner() | corner(), ValueError, "true in part of each image"),
        (torch.ones(1, 4, 4), ~corner() & corner(), ValueError, "everywhere or nowhere"),
    ],
)
def test_refuses(maps: Any, inside: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        localization(maps, inside)
