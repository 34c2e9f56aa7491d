"""Schedules: closed forms, bounds, and rates put back."""

import contextlib
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cifarkit.training.schedules import (
    Schedule,
    check_schedule,
    constant,
    cosine,
    multistep,
    one_cycle,
    scheduled_rates,
    set_rates,
    triangle,
)

fractions = st.floats(0, 1, exclude_max=True)
inner = st.floats(0, 1, exclude_min=True, exclude_max=True)
levels = st.floats(0, 1)
every_schedule = st.one_of(
    st.builds(constant),
    st.builds(cosine, fractions),
    st.builds(one_cycle, fractions, levels, levels),
    st.builds(triangle, inner, levels, levels),
    st.builds(multistep, st.lists(inner, max_size=4), levels),
)


@given(every_schedule, st.floats(0, 1))
def test_every_schedule_stays_within_bounds(schedule: Schedule, progress: float) -> None:
    assert -1e-12 <= schedule(progress) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(), {0: 1, 0.5: 1, 1: 1}),
        (cosine(), {0: 1, 1 / 3: 0.75, 0.5: 0.5, 1: 0}),
        (cosine(warmup=0.2), {0: 0, 0.05: 0.25, 0.2: 1, 0.6: 0.5, 1: 0}),
        (one_cycle(), {0: 1 / 25, 0.15: (1 + 1 / 25) / 2, 0.3: 1, 1: 1 / 250_000}),
        (one_cycle(warmup=0.0, end=0.5), {0: 1, 0.5: 0.75, 1: 0.5}),
        (triangle(), {0: 0.2, 0.125: 0.6, 0.25: 1, 0.625: 0.525, 1: 0.05}),
        (multistep((0.5, 0.75)), {0: 1, 0.499: 1, 0.5: 0.1, 0.75: 0.01, 1: 0.01}),
        (multistep((), gamma=0.5), {0: 1, 1: 1}),
    ],
)
def test_closed_forms(schedule: Schedule, values: dict[float, float]) -> None:
    assert {progress: schedule(progress) for progress in values} == pytest.approx(values, abs=1e-12)


def test_one_cycle_is_the_one_of_pytorch() -> None:
    """OneCycleLR peaks at step pct_start * total - 1 and ends at total - 1; both halves agree point by point."""
    total, warmup, peak = 40, 0.25, 0.3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants optimizer.step() before scheduler.step()
        reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total, pct_start=warmup, cycle_momentum=False)
        top = warmup * total - 1
        for step in range(total):
            rising = step / top * warmup
            falling = warmup + (step - top) / (total - 1 - top) * (1 - warmup)
            ours = peak * one_cycle(warmup)(rising if step < top else min(falling, 1.0))
            assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
            if step < total - 1:
                reference.step()


def test_end_is_reached_after_the_last_update() -> None:
    assert one_cycle(end=0.5)(9 / 10) > 0.5 == one_cycle(end=0.5)(1.0)
    assert (cosine(warmup=0.1)(0.0), cosine()(0.0)) == (0.0, 1.0)


def test_cosine_is_the_one_of_pytorch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert 0.3 * cosine()(step / 20) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cosine(1.0), r"warmup=1.0 must be at least 0 and below 1: a fraction"),
        (lambda: cosine(-0.1), r"warmup=-0.1 must be"),
        (lambda: one_cycle(5), r"warmup=5 must be"),
        (lambda: one_cycle(math.nan), r"warmup=nan must be"),
        (lambda: triangle(0.0), r"peak=0.0 must lie strictly between 0 and 1"),
        (lambda: triangle(1.0), r"peak=1.0 must"),
        (lambda: multistep((0.5, 30)), r"milestones=\(0.5, 30\): 30 must lie .* and not an epoch number"),
        (lambda: multistep([0.0]), r"milestones=\(0.0,\): 0.0 must"),
    ],
)
def test_refused(build: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_rates_keep_the_ratio_of_the_groups_and_are_put_back() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.02)]
    optimizer = torch.optim.SGD(groups)
    with contextlib.suppress(KeyError), scheduled_rates({"model": optimizer}):
        for _ in range(2):  # half of the initial rate, not of the present one
            set_rates(optimizer, 0.5)
            assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.01]
        raise KeyError
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_a_number_of_numpy_is_a_number() -> None:
    schedule = check_schedule(lambda progress: np.float32(0.5))
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}])
    with scheduled_rates({"model": optimizer}):
        set_rates(optimizer, schedule(0.0))
        assert type(optimizer.param_groups[0]["lr"]) is float


def test_text_is_no_fraction() -> None:
    with pytest.raises(TypeError, match="warmup"):
        cosine("0.1")  # type: ignore[arg-type]
