"""Running means: weighting, reading in one transfer, and losses that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cifarkit.training.meters import Meters, NonFiniteLossError


def test_means_are_weighted_by_samples() -> None:
    meters = Meters()
    meters.add("train_loss", torch.tensor(1.0), 32, 0)
    meters.add("train_loss", torch.tensor(5.0), 8, 1)
    assert meters.end_interval() == {"train_loss": pytest.approx((32 + 5 * 8) / 40)}
    meters.add("train_loss", torch.tensor(3.0), 40, 2)
    assert meters.end_interval() == {"train_loss": 3.0}
    assert meters.epoch_means() == {"train_loss": pytest.approx(2.4)}
    assert meters.end_interval() == {}


def test_reading_often_changes_nothing() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    often, once = Meters(), Meters()
    for step, value in enumerate(values):
        for meters in (often, once):
            meters.add("train_loss", value, step + 1, step)
        often.flush()
    assert often.epoch_means() == once.epoch_means()


def test_one_transfer_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        reads.append(len(tensor))
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", counted)
    meters = Meters()
    for step in range(10):
        meters.add("train_loss", torch.ones((), dtype=torch.bfloat16, requires_grad=True), 4, step)
        meters.add("train_acc", torch.zeros(()), 4, step)
    assert reads == []
    assert meters.epoch_means() == {"train_loss": 1.0, "train_acc": 0.0}
    assert reads == [20]


def test_an_update_can_be_forgotten() -> None:
    meters = Meters()
    for step in (0, 1, 1):
        meters.add("train_loss", torch.tensor(float(step)), 4, step)
    meters.forget(1)
    assert meters.epoch_means() == {"train_loss": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["train_loss", "train_generator_loss"])
def test_a_loss_that_is_not_finite_is_an_error(name: str, value: float) -> None:
    meters = Meters()
    for step, loss in enumerate([0.5, 0.5, value, math.nan]):
        meters.add(name, torch.tensor(loss), 4, step)
    with pytest.raises(NonFiniteLossError, match=rf"{name} is -?(nan|inf) at step 2") as caught:
        meters.flush()
    assert caught.value.step == 2


def test_other_metrics_may_be_infinite() -> None:
    meters = Meters()
    meters.add("grad_norm", torch.tensor(math.inf), 1, 0)
    assert meters.epoch_means() == {"grad_norm": math.inf}


def test_state_goes_on_where_it_was_saved() -> None:
    first, second, whole = Meters(), Meters(), Meters()
    for step in range(6):
        for meters in (first if step < 3 else second, whole):
            meters.add("train_loss", torch.tensor(float(step)), 8, step)
        if step == 2:
            second.load_state_dict(first.state_dict())
    assert second.epoch_means() == whole.epoch_means()
    assert second.end_interval() == whole.end_interval()


def test_no_state_is_saved_after_a_bad_loss() -> None:
    meters = Meters()
    meters.add("train_loss", torch.tensor(math.nan), 8, 7)
    with pytest.raises(NonFiniteLossError, match="at step 7"):
        meters.state_dict()
