"""tune_cpu: what it chooses, and the line it says."""

from collections.abc import Iterator

import pytest
import torch

from cifarkit import Trainer, cpu, tune_cpu


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_precision_is_the_trainers_own_choice(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = Trainer(max_steps=1, precision="auto").precision
    assert tune_cpu() == chosen.name
    line = capsys.readouterr().out
    assert line.startswith(f"{chosen.reason}; ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(("cores", "left"), [(1, 1), (64, 2)])
def test_there_are_no_more_threads_than_cores(cores: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(cpu, "available_cores", lambda: cores)
    tune_cpu()
    assert torch.get_num_threads() == left


def test_available_cores_are_at_least_one() -> None:
    assert cpu.available_cores() >= 1
