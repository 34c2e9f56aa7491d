"""Learning-rate schedules: pure functions from progress in [0, 1] to a factor on each optimizer's own rate.

The Trainer multiplies the rate that every parameter group was built with by ``schedule(updates done / updates in
all)``. Nothing is remembered, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real

from torch.optim import Optimizer

from cifarkit.checks import check_number

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Keep the rate as it is."""
    return lambda progress: 1.0


def cosine(warmup: float = 0.0) -> Schedule:
    """Rise linearly from 0 over the fraction ``warmup``, then fall to 0 along half a cosine.

    With a warmup above 0 the first update is made at the rate 0, and changes no weight.

    Raises:
        ValueError: if warmup is not in [0, 1).
    Source: Loshchilov and Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    _require_fraction("warmup", warmup)

    def schedule(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return schedule


def one_cycle(warmup: float = 0.3, start: float = 1 / 25, end: float = 1 / 250_000) -> Schedule:
    """Rise from ``start`` to 1 over the fraction ``warmup`` and fall to ``end``, both along half a cosine.

    The optimizer's own rate is the peak. The defaults give the curve of ``torch.optim.lr_scheduler.OneCycleLR``, with
    two differences: PyTorch cycles the momentum, too, which stays as it is here; and its rise is an update shorter, so
    that it is at its peak and all that follows an update sooner, and makes its last update at ``end``.

    Raises:
        ValueError: if warmup is not in [0, 1).
    Source: Smith and Topin 2018, "Super-convergence".
    """
    _require_fraction("warmup", warmup)

    def schedule(progress: float) -> float:
        if progress < warmup:
            return _cosine_between(start, 1.0, progress / warmup)
        return _cosine_between(1.0, end, (progress - warmup) / (1 - warmup))

    return schedule


def triangle(peak: float = 0.25, start: float = 0.2, end: float = 0.05) -> Schedule:
    """Go linearly from ``start`` to 1 at progress ``peak``, then linearly to ``end``.

    Raises:
        ValueError: if peak is not strictly between 0 and 1.
    Source: the triangular schedule of Page 2018, "How to train your ResNet".
    """
    if not 0 < peak < 1:
        raise ValueError(f"peak={peak} must lie strictly between 0 and 1: the progress at which the rate is highest")

    def schedule(progress: float) -> float:
        if progress < peak:
            return start + (1 - start) * progress / peak
        return 1 + (end - 1) * (progress - peak) / (1 - peak)

    return schedule


def multistep(milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Multiply the rate by ``gamma`` at each milestone, given in fractions of the run: ``(0.5, 0.75)``.

    Raises:
        TypeError, ValueError: if milestones is no sequence, or one is not strictly between 0 and 1.
    """
    if isinstance(milestones, (int, float)):
        raise TypeError(f"milestones={milestones} must be a sequence, such as ({milestones},)")
    for milestone in milestones:
        if not 0 < milestone < 1:
            raise ValueError(
                f"milestones={tuple(milestones)}: {milestone} must lie strictly between 0 and 1, "
                "a fraction of the run and not an epoch number"
            )
    return lambda progress: gamma ** sum(progress >= milestone for milestone in milestones)


@contextmanager
def scheduled_rates(optimizers: Mapping[str, Optimizer]) -> Iterator[None]:
    """Remember each group's own rate as ``base_rate`` while a schedule bends it, and put it back afterwards."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["base_rate"] = group["lr"]
    try:
        yield
    finally:
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:  # not the groups of before: loading a checkpoint replaces them
                group["lr"] = group.pop("base_rate", group["lr"])


def remember_new_rates(optimizer: Optimizer) -> None:
    """Remember the own rate of groups that ``add_param_group`` has added while a schedule bends the others."""
    if any("base_rate" in group for group in optimizer.param_groups):
        for group in optimizer.param_groups:
            group.setdefault("base_rate", group["lr"])


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group to its initial rate times a schedule's factor."""
    remember_new_rates(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * float(factor)


def check_schedule(schedule: Schedule) -> Schedule:
    """Return the schedule if it maps progress to a number.

    Raises:
        TypeError: if it does not; schedules.cosine without brackets is the likely reason.
    """
    factor = schedule(0.0) if callable(schedule) else None
    if not isinstance(factor, Real):
        raise TypeError(f"schedule={schedule!r} must map progress to a number, as schedules.cosine() does")
    return schedule


def _cosine_between(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * fraction))


def _require_fraction(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must be at least 0 and below 1: a fraction of the run")
