"""The benchmarks of generators: their work files, what a stop or a failing row does to them, and what decides."""

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import cifarkit
from cifarkit.training.archive import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmarks lock files as POSIX systems do")
STUDY: dict[str, Any] = {"tiny": False, "data": "CIFAR-10", "few": 500, "samples": 5000, "test_images": 5000}


@pytest.fixture
def shared(load: Any) -> ModuleType:
    return load("generators_shared")


def test_only_a_writer_takes_a_broken_line_off(tmp_path: Path, shared: ModuleType) -> None:
    work = tmp_path / "work.jsonl"
    shared.append(work, {"study": 1, "row": "a"})
    with work.open("a") as file:
        file.write('{"study": 1, "row"')
    before = work.read_text()
    assert [row["row"] for row in shared.read(work, 1)] == ["a"]
    assert work.read_text() == before  # another process may be about to write the rest
    shared.append(work, {"study": 1, "row": "b"})
    assert [row["row"] for row in shared.read(work, 1)] == ["a", "b"]
    assert shared.read(work, 2) == shared.read(tmp_path / "none.jsonl", 1) == []


def test_two_drivers_do_not_share_a_work_file(tmp_path: Path, shared: ModuleType) -> None:
    with (
        shared.locked(tmp_path / "lock"),
        pytest.raises(SystemExit, match="another process is at work here"),
        shared.locked(tmp_path / "lock"),
    ):
        pass
    with shared.locked(tmp_path / "lock"):
        pass


def test_a_stop_is_handed_on_and_waited_for(tmp_path: Path, shared: ModuleType) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5); pathlib.Path('saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path('ready').touch(); time.sleep(60)"
    )

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"]
    with shared.locked(tmp_path / "lock") as lock, pytest.raises(SystemExit) as caught:
        shared.run_child(command, os.environ, lock)
    assert caught.value.code == 143
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_fails_is_no_stop(tmp_path: Path, shared: ModuleType) -> None:
    with shared.locked(tmp_path / "lock") as lock, pytest.raises(shared.subprocess.CalledProcessError):
        shared.run_child([sys.executable, "-c", "raise SystemExit(2)"], os.environ, lock)


def test_what_decides_comes_first_and_the_longest_last(load: Any) -> None:
    rows = load("generators").rows(True)
    assert rows[:2] == ["train/ddpm", "train/peer"]
    assert len(rows) == len({*rows}) == 38
    assert max(map(rows.index, ("classifier/ddpm", "score/peer/ddim/20"))) < rows.index("train/dcgan-plain")
    assert all(row.endswith("/1000") for row in rows[-4:])
    assert not any("peer" in row for row in load("generators").rows(False))


def test_a_name_stands_for_all_rows_below_it_and_for_no_other_generator(load: Any) -> None:
    generators = load("generators")
    below = [row for row in generators.rows(True) if generators.is_among(row, ["score/ddpm"])]
    assert len(below) == 12
    assert not any("guided" in row for row in below)
    assert generators.is_among("classifier/ddpm", ["train", "classifier/"])
    assert not generators.is_among("classifier/ddpm-guided", ["train", "classifier/ddpm"])


def test_a_row_that_fails_is_noted_and_the_others_are_made(
    tmp_path: Path, load: Any, shared: ModuleType, capsys: Any
) -> None:
    def run(row: str) -> dict[str, Any]:
        if row == "train/dcgan-plain":
            raise RuntimeError("no luck")
        end = {"planned": 10, "stopped_because": None}
        return {"row": row, "study": STUDY, "parameters": 1e6, "updates": 10, "seconds": 60.0} | end

    work = tmp_path / "work.jsonl"
    study = SimpleNamespace(run=run, settings=STUDY, work=work)
    study.settings_of, study.rows = lambda row: STUDY, lambda: shared.read(work, STUDY)
    failed = load("generators").make_rows(study, ["train/dcgan-plain", "train/ddpm"], tmp_path / "out.json")
    assert failed == ["train/dcgan-plain"]
    rows, why = load("generators_report").latest(study.rows())
    assert [*rows] == ["train/ddpm"]
    assert why == {"train/dcgan-plain": "RuntimeError: no luck"}
    assert json.loads((tmp_path / "out.json").read_text())["figures"]["failed"] == why
    assert "no luck" in capsys.readouterr().err


def test_a_ddpm_that_took_longer_is_refused(
    tmp_path: Path, load: Any, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = load("generators")
    monkeypatch.setattr(shared, "read_end", lambda path: {"seconds": 7500.0})
    monkeypatch.setattr(sys, "argv", ["generators.py", "--tiny"])
    args = argparse.Namespace(**vars(generators.parse()) | {"ddpm": Path(__file__), "minutes": 120.0})
    with pytest.raises(SystemExit, match=r"trained for 125\.0 minutes, more than --minutes 120"):
        generators.Study(args, tmp_path / "work.jsonl")


def test_another_way_to_score_trains_nothing_anew(
    tmp_path: Path, load: Any, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = load("generators")
    monkeypatch.setattr(sys, "argv", ["generators.py", "--tiny"])
    args, work = generators.parse(), tmp_path / "work.jsonl"
    study = generators.Study(args, work)
    for row in ("train/ddpm", "score/ddpm/ddim/20"):
        shared.append(work, {"row": row, "study": study.settings_of(row)})
    shared.append(work, {"row": "train/dcgan-plain", "study": study.settings_of("train/dcgan-plain")})
    others = {"scored": {"classifier_steps": 7}, "trained": {"minutes": 7.0}, "peer": {"peer_objective": "pred_noise"}}
    others = {name: generators.Study(argparse.Namespace(**vars(args) | more), work) for name, more in others.items()}
    every = ["train/ddpm", "score/ddpm/ddim/20", "train/dcgan-plain"]
    assert [row["row"] for row in study.rows()] == [row["row"] for row in others["peer"].rows()] == every
    assert [row["row"] for row in others["scored"].rows()] == ["train/ddpm", "train/dcgan-plain"]
    assert [row["row"] for row in others["trained"].rows()] == ["train/dcgan-plain"]
    folders = {name: [item.folder(f"train/{part}") for part in ("ddpm", "peer")] for name, item in others.items()}
    assert folders["scored"] == [study.folder("train/ddpm"), study.folder("train/peer")]
    assert folders["trained"][0] != folders["scored"][0] == folders["peer"][0]
    assert folders["peer"][1] != folders["scored"][1] != folders["trained"][1]


def test_another_recipe_is_another_training(
    tmp_path: Path, load: Any, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = load("generators")
    monkeypatch.setattr(sys, "argv", ["generators.py", "--tiny"])
    before = generators.Study(generators.parse(), tmp_path / "work.jsonl")
    monkeypatch.setattr(shared, "RECIPE", dataclasses.replace(shared.RECIPE, lr=0.001))
    after = generators.Study(generators.parse(), tmp_path / "work.jsonl")
    assert before.folder("train/ddpm") != after.folder("train/ddpm")
    assert before.folder("train/dcgan-plain") == after.folder("train/dcgan-plain")


def test_a_model_that_predicts_something_else_is_refused(
    tmp_path: Path, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"target": "noise", "schedule": "NoiseSchedule.cosine(1000)"}
    monkeypatch.setattr(shared.cifarkit, "load_checkpoint", lambda path: {"config": {"task": task}})
    with pytest.raises(SystemExit, match=r"last\.pt predicts noise on NoiseSchedule\.cosine\(1000\), not velocity on"):
        shared.read_ddpm(tmp_path / "last.pt", 10, True)


def score(row: str, frechet: float, images: int = 5000) -> dict[str, Any]:
    figures = dict.fromkeys(("frechet", "kernel", "precision", "recall", "density", "coverage"), frechet)
    few = {"frechet_few": 2 * frechet, "floor_few": 1.0, "seen_as_labelled": 0.5}
    classes = {"per_class": {"cat": 1.0}, "floor_per_class": {}, "worst_class": "cat", "protocol": f"{images} images"}
    return {"row": row, "figures": figures, "floor": figures, "images": images} | few | classes


def test_equal_samplers_decide(load: Any) -> None:
    found = [score("score/ddpm/ddim/20", 5.0), score("score/ddpm/dpm-solver/20", 1.0)]
    found += [score("score/peer/ddim/20", 4.0), score("score/peer/ddpm/1000", 9.0, 500)]
    report = load("generators_report").summarize(found, STUDY)
    (claim,) = (item for item in report.targets if "Fréchet" in item["claim"])
    assert claim == {
        "claim": "Fréchet distance below the peer's, ddim, 20 steps",
        "found": "5 and 4, 5,000 images",
        "met": False,
    }
    titles = [table.title for table in report.tables if table.title.startswith("Scores")]
    assert [title.rpartition("Protocol: ")[2] for title in titles] == ["5000 images", "500 images"]


@pytest.mark.parametrize(
    ("diversity", "classes", "lost", "words"),
    [
        (0.9, [], False, ""),
        (0.1, [], False, "diversity 0.1"),
        (None, [], False, "diversity None"),
        (float("nan"), [], False, "diversity nan"),
        (0.9, [3], False, "labels [3]"),
        (0.9, [], True, "weights were lost"),
    ],
)
def test_collapse_is_also_that_of_a_class_and_of_lost_weights(
    load: Any, diversity: Any, classes: list[int], lost: bool, words: str
) -> None:
    item = {"diversity": diversity, "collapsed_classes": classes, "lost": lost}
    assert load("generators_report").collapse_of(item) == words


@pytest.mark.parametrize("average", [None, "ema"])
def test_kept_weights_are_those_of_the_run_in_bf16(tmp_path: Path, load: Any, average: str | None) -> None:
    recipe = cifarkit.recipes.TINY
    images = cifarkit.data.shapes(100)
    task = dataclasses.replace(recipe, keep=0.5).task(images)
    callbacks = [cifarkit.training.ExponentialMovingAverage(0.9), cifarkit.ModelCheckpoint(tmp_path)]
    recipe.trainer(max_epochs=1, progress=False, callbacks=callbacks).fit(task, recipe.loader(images))
    run, small = cifarkit.load_checkpoint(tmp_path / "last.pt"), tmp_path / "small.pt"
    write_checkpoint(load("keep_weights").keep(run, average), small)
    whole, kept = (
        cifarkit.load_weights(cifarkit.models.SpeedNet(10, widths=recipe.widths), path, average=average).state_dict()
        for path in (tmp_path / "last.pt", small)
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(kept[name], tensor, rtol=2**-8, atol=0)
    assert load("generators_shared").read_end(small)["updates"] == run["run"]["step"]
    assert small.stat().st_size < (tmp_path / "last.pt").stat().st_size / 3


def test_an_average_that_is_not_there_is_named(load: Any) -> None:
    with pytest.raises(SystemExit, match="--average swa"):
        load("keep_weights").keep({"format_version": 1, "run": {}, "config": {}, "callbacks": []}, "swa")
    with pytest.raises(SystemExit, match="say --average ema"):
        load("keep_weights").keep({"format_version": 1, "run": {}, "config": {}, "task": {}}, None)


def test_the_first_of_each_class_are_as_many(load: Any) -> None:
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 2, 2])
    assert load("generators").first_indices(labels, 6).tolist() == [0, 1, 2, 4, 6, 7]
