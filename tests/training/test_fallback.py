"""compile=True: networks compiled in place, and a fit that goes on without a compiler."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from cifarkit.training import ClassificationTask, Trainer
from cifarkit.training.fallback import compile_networks, fall_back_to_eager

BATCHES = [(torch.randn(8, 3, 4, 4), torch.randint(10, (8,))) for _ in range(3)]


class NoCompilerError(TorchDynamoException):
    """What PyTorch raises where g++ is missing."""


def tiny_task(model: nn.Module) -> ClassificationTask:
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.1))


def compile_as(call: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``module.compile()`` put a callable of ours in the place of the compiled one."""
    monkeypatch.setattr(nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", call))


def test_each_network_is_compiled_in_place() -> None:
    task = tiny_task(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)))
    names = list(task.state_dict())
    compile_networks(task)
    assert task.model._compiled_call_impl is not None
    assert list(task.state_dict()) == names


def test_a_failing_compiler_warns_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Tensor:
        raise NoCompilerError("\n  g++ not found\ndetails")

    compile_as(fail, monkeypatch)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    compiled = copy.deepcopy(plain)
    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2, "progress": False}
    expected = Trainer(**settings).fit(tiny_task(plain), BATCHES)
    with pytest.warns(
        UserWarning, match=r"compile=True does not work here \(NoCompilerError: g\+\+ not found\)"
    ) as seen:
        run = Trainer(**settings, compile=True).fit(tiny_task(compiled), BATCHES)
    assert len(seen) == 1
    assert run.step == expected.step == 4
    assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in expected.history]
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, compiled.state_dict()[name])


def test_a_window_that_fails_half_way_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    compiled = copy.deepcopy(plain)

    def fail_at_small_batches(images: Tensor) -> Tensor:
        if len(images) < 8:
            raise NoCompilerError("another shape")
        return compiled.forward(images)  # type: ignore[no-any-return, no-untyped-call]

    compile_as(fail_at_small_batches, monkeypatch)
    batches = [*BATCHES, (torch.randn(5, 3, 4, 4), torch.randint(10, (5,)))]
    settings: dict[str, Any] = {"max_epochs": 1, "accumulate_grad_batches": 4, "progress": False}
    expected = Trainer(**settings).fit(tiny_task(plain), batches)
    with pytest.warns(UserWarning, match="another shape"):
        run = Trainer(**settings, compile=True).fit(tiny_task(compiled), batches)
    for name in ("train_loss", "train_acc", "grad_norm"):
        assert run.history[0][name] == expected.history[0][name]
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_other_errors_of_a_compiled_network_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Tensor:
        raise MemoryError("full")

    compile_as(fail, monkeypatch)
    with pytest.raises(MemoryError, match="full"):
        Trainer(max_epochs=1, compile=True, progress=False).fit(tiny_task(nn.Linear(1, 1)), BATCHES)


def test_without_compilation_every_error_is_raised_again() -> None:
    error = NoCompilerError("not from here")
    with pytest.raises(NoCompilerError, match="not from here"):
        fall_back_to_eager(tiny_task(nn.Linear(1, 1)), error)
