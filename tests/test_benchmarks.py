"""What all benchmarks share: turns, ratios, intervals, and a report that no part of a study replaces."""

import json
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="some benchmarks lock files as POSIX systems do")
# Student's two-sided 95 % quantiles in closed form: of 1, 2 and 4 degrees of freedom.
ONE, TWO = math.tan(0.475 * math.pi), 0.95 / math.sqrt(2 * 0.975 * 0.025)
FOUR = 2 * math.sqrt(math.cos(math.acos(math.sqrt(4 * 0.975 * 0.025)) / 3) / math.sqrt(4 * 0.975 * 0.025) - 1)


@pytest.fixture
def reports(load: Any) -> ModuleType:
    return load("report")


def test_each_round_begins_with_the_next_one(reports: ModuleType) -> None:
    order: list[str] = []

    def contender(name: str) -> Any:
        return lambda: float(order.append(name) or len(order))

    found = reports.take_turns({name: contender(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert found["a"] == [1.0, 6.0, 8.0, 10.0]
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        reports.take_turns({}, 0)


def test_ratios_are_taken_round_by_round(reports: ModuleType) -> None:
    spread = reports.ratios([1.0, 20.0, 3.0], [2.0, 20.0, 1.0])
    assert (spread.median, spread.low, spread.high, spread.count) == (1.0, 0.5, 3.0, 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        reports.ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("values", "quantile"), [([0.1, 0.4], ONE), ([0.1, 0.2, 0.6], TWO), ([1, 2, 4, 5, 9], FOUR)])
def test_intervals_are_students(load: Any, values: list[float], quantile: float) -> None:
    mean, half = load("did_it_help").interval(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert half == pytest.approx(quantile * statistics.stdev(values) / math.sqrt(len(values)), rel=1e-3)


def test_differences_are_paired_by_seed(load: Any) -> None:
    first = {seed: {"val": value} for seed, value in [(0, 0.5), (1, 0.9), (2, 0.7), (7, 0.0)]}
    second = {seed: {"val": value} for seed, value in [(2, 0.5), (1, 0.8), (0, 0.2), (8, 1.0)]}  # 0.3, 0.1, 0.2
    found = load("graph_block").difference(first, second, "val")
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(TWO * 0.1 / math.sqrt(3), rel=1e-3)
    assert found.over == "3 seeds"
    assert load("graph_block").difference({0: first[0]}, {1: second[1]}, "val") is None


def test_a_part_of_a_study_replaces_no_published_report(
    reports: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "DATA", tmp_path)
    path = tmp_path / "study.json"

    def publish(*names: str, claim: str = "fast", **options: Any) -> bool:
        report = reports.Report(
            "study", {}, tables=[reports.Table("figures", ["row", "x"], [[name, "1"] for name in names])]
        )
        report.tables.append(reports.Table(reports.FAILED, ["row"], [[f"failed after {names}"]]))
        report.aim(claim, "1", met=True)
        return bool(report.publish(options.get("path", path)))

    assert publish("a", "b")
    whole = path.read_text()
    assert not publish("a")
    assert "NOT written: " in capsys.readouterr().out
    assert not publish("a", "b", claim="small")
    assert path.read_text() == whole
    assert publish("a", path=tmp_path / "elsewhere" / "study.json")
    assert publish("a", "b", "c")
    assert len(json.loads(path.read_text())["tables"][0]["rows"]) == 3
