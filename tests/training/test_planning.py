"""plan_updates: by epochs or by minutes, kept, and not changed by what is asked for later."""

import json
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.training import ClassificationTask, planning

BATCHES = [(torch.zeros(4, 3, 4, 4), torch.arange(4) % 2)] * 5


def plan(path: Path, **options: Any) -> int:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    return planning.plan_updates(path, task, BATCHES, **{"settings": {}, "epochs": 3} | options)


def test_epochs_are_counted_in_updates_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "plan.json"
    assert plan(path) == 15
    assert json.loads(path.read_text()) == {"updates": 15}
    assert plan(tmp_path / "other.json", settings={"accumulate_grad_batches": 2}) == 9
    assert not capsys.readouterr().out


def test_minutes_become_what_fits_but_for_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "timed_epochs", lambda *_: repeat((5, 0.125)))
    assert plan(tmp_path / "plan.json", minutes=2) == 864
    assert capsys.readouterr().out == "0.125 s an update: 864 updates, 172.8 epochs, are planned\n"
    assert plan(tmp_path / "short.json", minutes=1e-6) == 1


def test_later_epochs_may_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = chain(repeat((5, 0.5), 4), repeat((3, 2.0)))
    monkeypatch.setattr(planning, "timed_epochs", lambda *_: epochs)
    assert plan(tmp_path / "plan.json", minutes=1, share=0.5) == 4 * 5 + 10
    assert capsys.readouterr().out == "1.000 s an update: 30 updates, 7.3 epochs, are planned\n"


def test_updates_are_really_timed(tmp_path: Path) -> None:
    assert plan(tmp_path / "plan.json", minutes=0.01, timed=2) >= 1


def test_a_plan_holds_and_says_so_where_another_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    plan(path)
    (tmp_path / "last.pt").touch()
    assert plan(path) == 15
    assert not capsys.readouterr().out
    for other in ({"epochs": 4}, {"minutes": 1}):
        assert plan(path, **other) == 15
        assert "plan.json plans 15 updates, which hold; epochs and minutes do not change" in capsys.readouterr().out


def test_a_run_that_was_killed_before_its_first_checkpoint_is_planned_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert plan(path) == 15
    assert plan(path, epochs=4) == 20
    assert "plan.json is made anew, as no checkpoint, *.pt, lies beside it" in capsys.readouterr().out
    assert json.loads(path.read_text()) == {"updates": 20}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"updates": 0}', '{"updates": 1.5}'])
def test_a_damaged_plan_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    (tmp_path / "last.pt").touch()
    with pytest.raises(ValueError, match=r"plan\.json holds no plan of a run \(.*\); remove it to plan anew"):
        plan(path)


def test_lengths_out_of_range_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epochs=0 must be at least 1"):
        plan(tmp_path / "plan.json", epochs=0)
    with pytest.raises(ValueError, match="minutes=0 must be above 0"):
        plan(tmp_path / "plan.json", minutes=0)
    with pytest.raises(ValueError, match=r"share=1\.5 must be above 0 and at most 1"):
        plan(tmp_path / "plan.json", share=1.5)
    with pytest.raises(ValueError, match="timed=0 must be at least 1"):
        plan(tmp_path / "plan.json", timed=0)
