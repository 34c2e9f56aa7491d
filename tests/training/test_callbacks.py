"""Callbacks: when they stop a run and what they say, and that they act in the documented order."""

import csv
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.training import (
    Callback,
    ClassificationTask,
    CSVLogger,
    EarlyStopping,
    ExponentialMovingAverage,
    LearningRateMonitor,
    Logger,
    ModelCheckpoint,
    Run,
    TimeLimit,
    Trainer,
)
from cifarkit.training.meters import NonFiniteLossError

BATCHES = [(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1])) for _ in range(3)]


def make_task(groups: int = 1) -> ClassificationTask:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    parameters = [{"params": layer.parameters(), "lr": 0.1 * (index + 1)} for index, layer in enumerate(model[1:])]
    return ClassificationTask(model, torch.optim.SGD(parameters if groups == 2 else model.parameters(), 0.1))


def fit(*callbacks: Callback, epochs: int = 2, groups: int = 1, resume: str | None = None, **options: Any) -> Run:
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False, **options)
    return trainer.fit(make_task(groups), BATCHES, BATCHES, resume=resume)


def epochs_until_stop(callback: EarlyStopping, values: list[float]) -> tuple[int | None, str]:
    """Play an epoch for each value; return the first epoch that stops and the reason."""
    run: Any = SimpleNamespace(epoch=0, batches=0, metrics={}, reasons=[], callbacks=[callback])
    run.stop = run.reasons.append
    callback.on_fit_start(run)
    for epoch, value in enumerate(values):
        run.epoch, run.metrics = epoch + 1, {callback.monitor: value}
        callback.on_epoch_end(run)
        if run.reasons:
            return epoch, run.reasons[0]
    return None, ""


@pytest.mark.parametrize(
    ("options", "values", "stop"),
    [
        ({"patience": 0}, [3, 2, 2.5, 1], 2),
        ({"patience": 1}, [3, 2, 2.5, 1], 2),
        ({"patience": 2}, [3, 2, 2.5, 1, 1, 1], 5),
        ({"patience": 3}, [3, 2, 2.5, 2.5, 2.5, 1], 4),
        ({"patience": 3}, [3, 2, 2.5, 2.5, 1.9, 2, 2, 2], 7),
        ({"patience": 3}, [5, 4, 3, 2, 1], None),
        ({"patience": 1, "mode": "max"}, [1, 2, 3, 2], 3),
        ({"patience": 1, "mode": "max"}, [1, 2, 3, 4], None),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.4, 2.0, 1], 2),
        ({"patience": 1, "min_delta": -0.5}, [3, 2.4, 2.0, 1], 2),  # the sign of min_delta does not matter
        ({"patience": 1, "mode": "max", "min_delta": 0.5}, [1, 1.4, 3], 1),
        ({"patience": 5}, [3, math.nan, 1], 1),
        ({"patience": 5, "mode": "max"}, [math.nan], 0),
    ],
)
def test_early_stopping(options: dict[str, Any], values: list[float], stop: int | None) -> None:
    assert epochs_until_stop(EarlyStopping("val_loss", **options), values)[0] == stop


def test_early_stopping_says_why() -> None:
    reason = epochs_until_stop(EarlyStopping("val_loss", patience=2), [3, 2, 2.5, 2.25])[1]
    assert reason == "val_loss has not improved on 2 (epoch 1) for 2 epochs"
    assert epochs_until_stop(EarlyStopping("val_loss"), [3, math.nan])[1] == "val_loss is NaN in epoch 1"


def test_early_stopping_ends_a_run() -> None:
    run = fit(EarlyStopping("val_acc", "max", patience=2), epochs=9)  # constant images teach nothing
    assert len(run.history) == 3
    assert run.epoch == 3
    assert run.stopped_because == "val_acc has not improved on 0.5 (epoch 0) for 2 epochs"


def test_early_stopping_remembers_its_best_over_a_resume() -> None:
    first, second = EarlyStopping("val_loss", patience=3), EarlyStopping("val_loss", patience=3)
    epochs_until_stop(first, [3, 1, 2, 2])
    run: Any = SimpleNamespace(epoch=4, batches=0, metrics={"val_loss": 1.5}, reasons=[])
    run.stop = run.reasons.append
    second.on_fit_start(run)
    second.load_state_dict(first.state_dict())
    run.epoch = 5
    second.on_epoch_end(run)
    assert run.reasons == ["val_loss has not improved on 1 (epoch 1) for 3 epochs"]


def test_early_stopping_on_another_metric_begins_anew() -> None:
    first, second = EarlyStopping("val_acc", "max"), EarlyStopping("val_loss")
    epochs_until_stop(first, [0.5, 0.9])
    run: Any = SimpleNamespace(epoch=2)
    second.on_fit_start(run)
    with pytest.warns(UserWarning, match=r"EarlyStopping begins anew: .*'val_acc', 'mode': 'max'.* 'val_loss'"):
        second.load_state_dict(first.state_dict())
    assert (second.best, second.best_epoch) == (math.inf, 1)
    second.load_state_dict({"best": 0.25, "best_epoch": 0})  # of an older version
    assert (second.best, second.best_epoch) == (0.25, 0)


class Scores(Callback):
    """Records a value an epoch; kills the run after an epoch, if told to."""

    def __init__(self, values: list[float | None], killed_after: int | None = None) -> None:
        self.values, self.killed_after = values, killed_after

    def will_record(self, metric: str) -> bool:
        return metric == "score"

    def on_epoch_end(self, run: Run) -> None:
        value = self.values[run.epoch - 1]
        if value is not None:
            run.record({"score": value})

    def on_epoch_start(self, run: Run) -> None:
        if self.killed_after is not None and run.epoch > self.killed_after:
            raise KeyboardInterrupt


def fit_with_scores(folder: Path, scores: Scores, *others: Callback) -> Run:
    return fit(scores, *others, ModelCheckpoint(folder), epochs=6, resume="auto")


def test_early_stopping_by_nan_stays_stopped_at_a_resume(tmp_path: Path) -> None:
    values: list[float | None] = [1.0, math.nan, 0.5, 0.4, 0.3, 0.2]
    for _ in range(2):
        run = fit_with_scores(tmp_path, Scores(values), EarlyStopping("score"))
        assert (run.epoch, run.stopped_because) == (2, "score is NaN in epoch 1")


def test_early_stopping_lets_half_an_epoch_of_nan_go_on(tmp_path: Path) -> None:
    for steps in (4, 6):  # of three an epoch
        callbacks = [Scores([1.0, math.nan] if steps == 4 else [1.0, 0.5]), EarlyStopping("score")]
        run = fit(*callbacks, ModelCheckpoint(tmp_path), epochs=9, max_steps=steps, resume="auto")
        assert (run.step, run.stopped_because) == (steps, None)


def test_early_stopping_judges_a_best_that_is_infinite() -> None:
    assert epochs_until_stop(EarlyStopping("psnr", "max", patience=2), [math.inf, 9.0, 8.0, 7.0])[0] == 2


def test_early_stopping_does_not_miss_what_is_not_recorded_yet(tmp_path: Path) -> None:
    values: list[float | None] = [None, None, None, None, None, 0.5]
    with pytest.raises(KeyboardInterrupt):
        fit_with_scores(tmp_path, Scores(values, killed_after=1))
    with pytest.raises(KeyboardInterrupt):
        fit_with_scores(tmp_path, Scores(values, killed_after=4), EarlyStopping("score", patience=2))
    run = fit_with_scores(tmp_path, Scores(values), EarlyStopping("score", patience=2))
    assert (run.epoch, run.stopped_because) == (6, None)


def test_early_stopping_does_not_judge_half_an_epoch() -> None:
    callback = EarlyStopping("val_loss")
    run: Any = SimpleNamespace(epoch=1, batches=2, metrics={"val_loss": 0.0})
    callback.on_epoch_end(run)
    assert callback.best == math.inf


class RecordF1(Callback):
    def on_epoch_end(self, run: Run) -> None:
        run.record({"f1": 0.5})


def test_early_stopping_on_a_metric_recorded_before_it() -> None:
    assert fit(RecordF1(), EarlyStopping("f1", patience=1), epochs=5).epoch == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping("val_loss", mode="minimum"), "mode='minimum' is unknown; use 'min' for a loss or 'max'"),
        (lambda: EarlyStopping("val_loss", patience=-1), "patience=-1 must be at least 0"),
        (lambda: TimeLimit(0), "seconds=0 must be above 0"),
        (lambda: fit(EarlyStopping("loss")), "monitor='loss' is not among the metrics of this run: .*train_loss"),
        (lambda: fit(EarlyStopping("f1"), RecordF1()), "val_loss; a callback that records it must stand before Early"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Time.


class Clock(Callback):
    """A clock that moves by one second an update."""

    order = -100

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("cifarkit.training.callbacks.time.monotonic", lambda: self.now)

    def on_step_end(self, run: Run) -> None:
        self.now += 1


def test_time_limit_stops_after_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(Clock(monkeypatch), TimeLimit(4), epochs=5)
    assert run.step == 4
    assert run.stopped_because == "the time limit of 4 seconds is used up"
    assert "val_loss" in run.history[-1]  # the validation still ran
    assert [row["epoch"] for row in run.history] == [0, 1]


def test_time_counts_over_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(monkeypatch)
    fit(clock, TimeLimit(4), ModelCheckpoint(tmp_path), epochs=5)
    clock.now += 1000  # time between two runs is free
    trainer = Trainer(max_epochs=5, callbacks=[clock, TimeLimit(6)], progress=False)
    assert trainer.fit(make_task(), BATCHES, BATCHES, resume=tmp_path).step == 6


def test_a_time_that_was_over_when_the_run_was_killed_still_ends_its_epoch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Kill(Callback):
        order = 120  # after the save

        def on_step_end(self, run: Run) -> None:
            if run.step == 4:
                raise KeyError("killed")

    clock = Clock(monkeypatch)
    with pytest.raises(KeyError, match="killed"):
        fit(clock, TimeLimit(4), ModelCheckpoint(tmp_path, every_n_steps=1), Kill(), epochs=5)
    trainer = Trainer(max_epochs=5, callbacks=[clock, TimeLimit(4)], progress=False)
    run = trainer.fit(make_task(), BATCHES, BATCHES, resume=tmp_path)
    assert (run.step, [row["step"] for row in run.history]) == (4, [3, 4])
    assert "val_loss" in run.history[-1]


def test_a_used_callback_starts_afresh_in_another_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, limit, monitor = Clock(monkeypatch), TimeLimit(4), LearningRateMonitor()
    patience = EarlyStopping("val_acc", "max", patience=1)
    for _ in range(2):
        run = fit(clock, limit, monitor, patience, epochs=9)
        assert run.step == 4
        assert len(monitor.history["lr"]) == 4


# Rates, order, and what a callback may be.


def test_learning_rate_monitor_keeps_every_rate() -> None:
    monitor = LearningRateMonitor()
    fit(monitor, groups=2, schedule=lambda progress: 1 - progress)
    expected = [0.1 * (1 - step / 6) for step in range(6)]
    assert monitor.history == {"lr": pytest.approx(expected), "lr_1": pytest.approx([2 * rate for rate in expected])}
    assert monitor.state_dict() == {"history": monitor.history}


class Unfreeze(Callback):
    """Give the optimizer the first layer, too, when an epoch has ended."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_epoch_end(self, run: Run) -> None:
        optimizer = run.task.optimizers["model"]
        if run.epoch == self.after and len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": run.task.get_submodule("model.1").parameters(), "lr": 0.5})


def fit_the_last_layer(*callbacks: Callback, resume: Path | None = None, thawed: bool = False) -> Run:
    torch.manual_seed(0)
    task = make_task(groups=2)
    last, first = (group["params"] for group in task.optimizers["model"].param_groups[::-1])
    task.optimizers["model"] = torch.optim.SGD(last, 0.1)
    if thawed:
        task.optimizers["model"].add_param_group({"params": first, "lr": 0.5})
    trainer = Trainer(max_epochs=2, callbacks=callbacks, progress=False, schedule=lambda progress: 1 - progress)
    return trainer.fit(task, [(torch.ones(2, 3, 2, 2), torch.tensor([0, 1]))] * 3, resume=resume)


@pytest.mark.parametrize("after", [1, 2])  # before other updates, and after the last
def test_a_group_added_by_a_callback_is_scheduled_like_the_others(after: int) -> None:
    monitor = LearningRateMonitor()
    run = fit_the_last_layer(Unfreeze(after), monitor)
    assert monitor.history["lr"] == pytest.approx([0.1 * (1 - step / 6) for step in range(6)])
    added = [0.5 * (1 - step / 6) for step in range(3 * after, 6)]
    assert monitor.history.get("lr_1", []) == pytest.approx(added)
    groups = run.task.optimizers["model"].param_groups
    assert [(group["lr"], "base_rate" in group) for group in groups] == [(0.1, False), (0.5, False)]


def test_a_run_saved_when_a_group_was_added_resumes(tmp_path: Path) -> None:
    class KeepTheFirst(Callback):
        order = 100

        def on_save(self, run: Run) -> None:
            if run.epoch == 1:
                torch.save(run.state_dict(), tmp_path / "first.pt")

    whole = fit_the_last_layer(Unfreeze(1), KeepTheFirst())
    resumed = fit_the_last_layer(resume=tmp_path / "first.pt", thawed=True)
    assert resumed.step == whole.step == 6
    for name, weight in whole.task.state_dict().items():
        assert torch.equal(weight, resumed.task.state_dict()[name])


def test_learning_rates_of_several_groups_reach_the_log() -> None:
    logged: list[set[str]] = []

    class Recorder(Logger):
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            logged.append(set(metrics))

    fit(LearningRateMonitor(), groups=2, epochs=1, loggers=[Recorder()], log_every_n_steps=1)
    assert ["lr_1" in names for names in logged] == [False, True, True]  # each at the log step after


def test_what_waits_for_the_log_survives_a_kill(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 2 and not run.resumed:
                raise KeyboardInterrupt

    def logged(folder: Path, *others: Callback) -> list[str]:
        callbacks = [LearningRateMonitor(), ModelCheckpoint(folder, every_n_steps=1), *others]
        fit(*callbacks, groups=2, log_every_n_steps=3, loggers=[CSVLogger(folder)], resume="auto")
        rows = csv.DictReader((folder / "steps.csv").read_text().splitlines())
        return [row["lr_1"] for row in rows]

    whole = logged(tmp_path / "whole")
    assert whole == ["0.2", "0.2"]
    kill = Kill()
    kill.order = 99  # after the checkpoint
    with pytest.raises(KeyboardInterrupt):
        logged(tmp_path / "killed", kill)
    assert logged(tmp_path / "killed", kill) == whole


class Recording(Callback):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_fit_start(self, run: Run) -> None:
        self.calls.append("fit_start")

    def on_epoch_start(self, run: Run) -> None:
        self.calls.append(f"epoch_start {run.epoch}")

    def on_step_end(self, run: Run) -> None:
        self.calls.append(f"step_end {run.step}")

    def on_epoch_end(self, run: Run) -> None:
        self.calls.append(f"epoch_end {run.epoch} {run.history[-1]['epoch']} {'val_loss' in run.metrics}")

    def on_fit_end(self, run: Run) -> None:
        self.calls.append("fit_end")


def test_hooks_fire_in_the_documented_order() -> None:
    calls: list[str] = []
    fit(Recording(calls))
    first = ["epoch_start 0", "step_end 1", "step_end 2", "step_end 3", "epoch_end 1 0 True"]
    second = ["epoch_start 1", "step_end 4", "step_end 5", "step_end 6", "epoch_end 2 1 True"]
    assert calls == ["fit_start", *first, *second, "fit_end"]


def test_averages_act_first_and_saving_last(tmp_path: Path) -> None:
    given = [ModelCheckpoint(tmp_path), Recording([]), EarlyStopping("val_acc_ema"), ExponentialMovingAverage(0.5)]
    order = [type(callback).__name__ for callback in fit(*given).callbacks]
    assert order == ["ExponentialMovingAverage", "Recording", "EarlyStopping", "ModelCheckpoint"]
    best = ModelCheckpoint(tmp_path, "val_acc_ema")  # may monitor what an average reported
    fit(best, ExponentialMovingAverage(0.5))
    assert best.best_path.exists()


def test_the_base_callback_does_nothing() -> None:
    callback = Callback()
    run: Any = fit(callback)
    assert callback.on_non_finite(run, NonFiniteLossError("train_loss is nan", 0)) is False
    for hook in (name for name in dir(callback) if re.match("on_(?!non)", name)):
        getattr(callback, hook)(run)
    assert callback.state_dict() == {}
    callback.load_state_dict({})
    assert callback.bend_schedule(run.schedule, run) is run.schedule


def test_a_hook_may_be_set_on_the_object() -> None:
    callback, steps = Callback(), list[int]()
    callback.on_step_end = lambda run: steps.append(run.step)  # type: ignore[method-assign]
    fit(callback, max_steps=2)
    assert steps == [1, 2]


def test_something_else_is_no_callback() -> None:
    wrong: Any = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"callbacks must be a list of Callback objects; got .*Identity"):
        fit(wrong)


def test_the_first_reason_to_stop_is_kept() -> None:
    class Impatient(Callback):
        def __init__(self, reason: str) -> None:
            self.reason = reason

        def on_step_end(self, run: Run) -> None:
            run.stop(self.reason)

    run = fit(Impatient("hunger"), Impatient("thirst"))
    assert run.stopped_because == "hunger"
    assert run.step == 1
    weights: Tensor = next(run.task.parameters())
    assert weights.isfinite().all()


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss", "val_generator_loss", "val_loss_ema"])
def test_a_mode_that_prefers_the_worst_is_warned_about(monitor: str) -> None:
    with pytest.warns(UserWarning, match=f"monitor='{monitor}' with mode='max' prefers the worst; give mode='min'"):
        EarlyStopping(monitor, "max")
    with pytest.warns(UserWarning, match="monitor='val_acc' with mode='min' prefers the worst; give mode='max'"):
        EarlyStopping("val_acc")


def test_a_checkpoint_warns_of_the_wrong_mode_and_not_of_the_right_one(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="give mode='min'"):
        ModelCheckpoint(tmp_path, "val_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelCheckpoint(tmp_path, "val_acc")
        ModelCheckpoint(tmp_path)
        EarlyStopping("sharpness", "max")


def test_a_callback_may_promise_a_metric_of_validation(tmp_path: Path) -> None:
    class Distance(Callback):
        def will_record(self, metric: str) -> bool:
            return metric == "val_distance"

        def on_epoch_end(self, run: Run) -> None:
            if run.epoch == 2:
                run.record({"val_distance": 1.0})

    save = ModelCheckpoint(tmp_path, "val_distance", "min")
    fit(Distance(), save, epochs=2)
    assert save.best == [(1.0, "best.pt")]


@pytest.mark.parametrize("monitor", ["val_acc_gap", "val_loss_acc_x", "acc_drop"])
def test_a_mode_of_other_figures_is_not_questioned(monitor: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyStopping(monitor, "min")
        EarlyStopping(monitor, "max")
