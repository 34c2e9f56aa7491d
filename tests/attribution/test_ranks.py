"""Rank correlation in closed form, with ties and constant maps."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarkit.attribution.ranks import average_ranks, rank_correlation


def test_equal_values_share_their_mean_rank() -> None:
    assert average_ranks(torch.tensor([[3.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).tolist() == [
        [3.5, 1, 3.5, 2],
        [2.5] * 4,
    ]


def test_only_the_order_counts() -> None:
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(maps, maps.exp()).tolist() == pytest.approx([1, 1, 1])
    assert rank_correlation(maps, -(maps**3)).tolist() == pytest.approx([-1, -1, -1])


def test_ties_by_hand() -> None:
    found = rank_correlation(torch.tensor([[1.0, 2.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert found.item() == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_it_is_the_correlation_of_the_ranks_counted_one_by_one(pairs: list[tuple[int, int]]) -> None:
    columns = [[float(value) for value in column] for column in zip(*pairs, strict=True)]
    ranks = [[sum(y < x for y in c) + (sum(y == x for y in c) + 1) / 2 for x in c] for c in columns]
    expected = torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1]
    found = rank_correlation(*(torch.tensor([column]) for column in columns))[0]
    assert expected.isnan() or torch.allclose(found, expected)


def test_constant_maps_are_alike_and_like_nothing_else() -> None:
    flat, slope = torch.ones(1, 2, 2), torch.arange(4.0).view(1, 2, 2)
    assert rank_correlation(flat, 3 * flat).tolist() == [1]
    assert rank_correlation(flat, slope).tolist() == rank_correlation(slope, flat).tolist() == [0]


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        ([1], torch.ones(1, 2), TypeError, r"a is a list; give a tensor of maps \(B, ...\)"),
        (torch.ones(1, 2), torch.ones(2), ValueError, r"b has shape \(2,\); give maps"),
        (torch.ones(0, 2), torch.ones(0, 2), ValueError, r"a has shape \(0, 2\); give maps"),
        (torch.ones(1, 2), torch.ones(1, 3), ValueError, r"a is \(1, 2\) and b \(1, 3\); give maps of one shape"),
        (torch.ones(1, 2), torch.full((1, 2), torch.nan), ValueError, "b holds NaN"),
    ],
)
def test_refuses(a: Any, b: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        rank_correlation(a, b)
