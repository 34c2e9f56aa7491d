"""How many micro-batches make an update."""

import json

import numpy as np
import pytest

from cifarkit.training.accumulation import AccumulationPlan


def test_a_number_holds_for_every_epoch() -> None:
    plan = AccumulationPlan(4)
    assert [plan.factor(epoch) for epoch in (0, 1, 100)] == [4, 4, 4]


def test_a_schedule_changes_at_the_named_epochs() -> None:
    assert [AccumulationPlan({0: 4, 2: 1}).factor(epoch) for epoch in range(4)] == [4, 4, 1, 1]
    assert [AccumulationPlan({3: 8, 1: 2}).factor(epoch) for epoch in range(5)] == [1, 2, 2, 8, 8]
    assert AccumulationPlan({}).factor(0) == 1


def test_the_plan_is_kept_in_plain_numbers() -> None:
    assert json.dumps(AccumulationPlan({np.int64(0): np.int64(4)}).factors) == '{"0": 4}'


@pytest.mark.parametrize(("batches", "updates"), [(0, 0), (1, 1), (4, 1), (7, 2), (8, 2), (9, 3)])
def test_a_short_last_window_makes_an_update(batches: int, updates: int) -> None:
    assert AccumulationPlan(4).updates(batches, 0) == updates


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "total"), [(3, None, 2 + 2 + 7), (3, 5, 5), (3, 50, 11), (None, 50, 50), (0, None, 0)]
)
def test_updates_of_a_whole_fit(max_epochs: int | None, max_steps: int | None, total: int) -> None:
    assert AccumulationPlan({0: 4, 2: 1}).total_updates(7, max_epochs, max_steps) == total


@pytest.mark.parametrize("plan", [0, -1, {0: 4, 2: 0}])
def test_fewer_than_one_micro_batch_is_refused(plan: int | dict[int, int]) -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches.*=(0|-1) must be at least 1"):
        AccumulationPlan(plan)


def test_a_negative_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="first epoch in accumulate_grad_batches=-1 must be at least 0"):
        AccumulationPlan({-1: 2})


@pytest.mark.parametrize("plan", [2.5, "4", {0: None}])
def test_a_broken_number_is_refused(plan: object) -> None:
    with pytest.raises(TypeError, match=r"accumulate_grad_batches.*; give an integer"):
        AccumulationPlan(plan)  # type: ignore[arg-type]
