"""What a task is: frozen parts that stay frozen, names of metrics, and what a subclass must define."""

import pytest
import torch
from torch import nn

from cifarkit.training.task import Task, Update, freeze, is_frozen, metric_name, train_unfrozen, unfreeze


class Transfer(Task):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 10))


def test_a_frozen_part_stays_in_evaluation_mode() -> None:
    task = Transfer()
    freeze(task.backbone)
    task.train()
    assert task.training
    assert not any(part.training for part in task.backbone.modules())
    assert all(part.training for part in task.head.modules())
    task.eval()
    assert not any(part.training for part in task.modules())


def test_a_part_frozen_by_hand_counts_as_frozen() -> None:
    task = Transfer()
    task.backbone[1].requires_grad_(False)
    task.train()
    assert not task.backbone[1].training
    assert task.backbone[2].training


def test_unfreezing_lets_it_learn_again() -> None:
    task = Transfer()
    unfreeze(freeze(task.backbone))
    assert not is_frozen(task.backbone)
    assert all(part.training for part in task.train().modules())


def test_a_part_without_parameters_is_not_frozen() -> None:
    assert not is_frozen(nn.Dropout())
    assert is_frozen(freeze(nn.Linear(1, 1)))
    half = nn.Linear(1, 1)
    half.weight.requires_grad_(False)
    assert not is_frozen(half)


def test_train_unfrozen_works_on_any_module() -> None:
    module = nn.Sequential(freeze(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)).eval()
    train_unfrozen(module)
    assert [part.training for part in module] == [False, True]


@pytest.mark.parametrize(("optimizer", "name"), [("model", "train_loss"), ("generator", "train_generator_loss")])
def test_metric_names(optimizer: str, name: str) -> None:
    assert metric_name(optimizer, "loss", prefix="train_") == name
    assert metric_name("model", "lr") == "lr"


def test_updates_are_for_the_model_unless_said_otherwise() -> None:
    update = Update(torch.zeros(()))
    assert (update.optimizer, update.metrics) == ("model", {})


def test_a_task_must_define_its_losses() -> None:
    with pytest.raises(NotImplementedError, match=r"Transfer must define updates\(batch\)"):
        Transfer().updates([])
    with pytest.raises(NotImplementedError, match=r"Transfer must define evaluate\(batch\) to be validated"):
        Transfer().evaluate([])
