"""The loop: equal to a plain loop and to the big batch, in program order, and clear about what stopped it."""

import copy
import importlib.util
import itertools
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from cifarkit import data, models, seed_everything, transforms
from cifarkit.training import (
    Callback,
    ClassificationTask,
    EarlyStopping,
    Logger,
    ModelCheckpoint,
    NonFiniteLossError,
    Run,
    Task,
    TimeLimit,
    Trainer,
    Update,
    freeze,
    load_checkpoint,
    schedules,
)
from cifarkit.training.evaluation import to_device
from cifarkit.training.snapshot import untouched
from cifarkit.training.task import Batch

Batches = list[tuple[Tensor, Tensor]]


def batches_of(*sizes: int) -> Batches:
    """Batches that hold the same samples in the same order whatever their sizes."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(256, 3, 8, 8, generator=generator), torch.randint(10, (256,), generator=generator)
    ends = itertools.accumulate(sizes)
    return [(images[end - size : end], labels[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def tiny_task(*, lr: float = 0.05, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> ClassificationTask:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 10))
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), loss=loss)


def fit(batches: Any, task: Task | None = None, val_batches: Any = None, **settings: Any) -> Run:
    return Trainer(**{"progress": False, **settings}).fit(task or tiny_task(), batches, val_batches)


def assert_same_weights(one: Run | nn.Module, other: Run | nn.Module, *, within: float = 1e-6) -> None:
    pairs = [item.task if isinstance(item, Run) else item for item in (one, other)]
    torch.testing.assert_close(pairs[0].state_dict(), pairs[1].state_dict(), rtol=0, atol=within)


class Recorder(Callback):
    """Write down the rate of each update, and the name, epoch and step of each hook."""

    def __init__(self, events: list[Any] | None = None, name: str = "", order: int = 0) -> None:
        self.events, self.name, self.order = events if events is not None else [], name, order
        self.rates: list[float] = []

    def on_fit_start(self, run: Run) -> None:
        self.note("fit_start", run)

    def on_epoch_start(self, run: Run) -> None:
        self.note("epoch_start", run)

    def on_step_end(self, run: Run) -> None:
        self.note("step_end", run)
        self.rates += run.learning_rates().values()

    def on_epoch_end(self, run: Run) -> None:
        self.note("epoch_end", run)

    def on_fit_end(self, run: Run) -> None:
        self.note("fit_end", run)

    def note(self, hook: str, run: Run) -> None:
        self.events.append((self.name + hook, run.epoch, run.step))


class TwoStages(Task):
    """Two weights with gradients of 1 and 1, the second loss reaching both; notes the first one at each stage."""

    def __init__(self, factors: Sequence[float] = ()) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.optimizers = {"first": torch.optim.SGD([self.first], 0.25), "second": torch.optim.SGD([self.second], 0.5)}
        self.factors, self.seen = iter(factors), list[tuple[str, float]]()

    def updates(self, batch: Batch) -> Iterator[Update]:
        self.seen.append(("first", self.first.item()))
        yield Update(self.first * next(self.factors, 1.0), "first")
        self.seen.append(("second", self.first.item()))
        yield Update(self.first + self.second, "second", {"sum": (self.first + self.second).detach()})


class Slope(Task):
    """One pair of weights whose gradient is (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.optimizers = {"model": torch.optim.SGD([self.weight], lr=1.0)}

    def updates(self, batch: Batch) -> Iterator[Update]:
        yield Update((self.weight * torch.tensor([3.0, 4.0])).sum())


# Equal to what one would write by hand.


def load_plain_loop() -> Any:
    path = Path(__file__).parents[2] / "examples" / "plain_loop.py"
    spec = importlib.util.spec_from_file_location("plain_loop", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_trainer_equals_the_plain_loop() -> None:
    def parts() -> tuple[nn.Module, data.Loader]:
        seed_everything(0)
        augment = transforms.Compose([transforms.RandomCrop(32), transforms.RandomHorizontalFlip()])
        loader = data.Loader(data.shapes(80), 32, shuffle=True, transform=augment)
        return models.SpeedNet(10, widths=(8, 16, 16)), loader

    plain, loader = parts()
    history = load_plain_loop().train(plain, loader, epochs=2, lr=0.1)
    model, loader = parts()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    run = fit(loader, ClassificationTask(model, optimizer), max_epochs=2, schedule=schedules.one_cycle())
    assert_same_weights(plain, model)
    for name in ("train_loss", "train_acc"):
        assert [row[name] for row in run.history] == pytest.approx([row[name] for row in history], abs=1e-6)


def test_four_micro_batches_equal_one_batch() -> None:
    small = fit(batches_of(*[8] * 12), max_epochs=2, accumulate_grad_batches=4, gradient_clip_val=0.5)
    big = fit(batches_of(*[32] * 3), max_epochs=2, gradient_clip_val=0.5)
    assert small.step == big.step == 6
    assert_same_weights(small, big)
    for name in ("train_loss", "train_acc", "grad_norm"):
        assert small.history[-1][name] == pytest.approx(big.history[-1][name], rel=1e-5)


@pytest.mark.parametrize("last", [8, 5, 1])
def test_the_short_last_window_equals_the_big_batch(last: int) -> None:
    small = fit(batches_of(*[8] * 6, last), max_epochs=2, accumulate_grad_batches=4)
    assert small.step == 4
    assert_same_weights(small, fit(batches_of(32, 16 + last), max_epochs=2))


def test_the_accumulation_schedule() -> None:
    recorder = Recorder()
    run = fit(
        batches_of(*[8] * 7),
        max_epochs=4,
        accumulate_grad_batches={0: 4, 2: 1},
        schedule=schedules.cosine(),
        callbacks=[recorder],
    )
    assert [row["step"] for row in run.history] == [2, 4, 11, 18]
    assert run.total_steps == 18
    assert recorder.rates == pytest.approx([0.05 * schedules.cosine()(step / 18) for step in range(18)])


@pytest.mark.parametrize("kind", ["list", "DataLoader", "workers"])
def test_any_loader_with_a_length_will_do(kind: str) -> None:
    batches = batches_of(8, 8, 4)
    dataset = TensorDataset(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    loaders = {"list": batches, "DataLoader": DataLoader(dataset, 8), "workers": DataLoader(dataset, 8, num_workers=1)}
    run = fit(loaders[kind], val_batches=loaders[kind], max_epochs=1)
    assert_same_weights(run, fit(batches, max_epochs=1), within=0)


def test_gradients_left_by_the_caller_are_dropped() -> None:
    task = tiny_task()
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert_same_weights(fit(batches_of(8), task, max_epochs=1), fit(batches_of(8), max_epochs=1), within=0)


# When to end.


@pytest.mark.parametrize(
    ("limits", "steps", "epochs", "rows"),
    [
        ({"max_epochs": 2}, 10, 2, 2),
        ({"max_steps": 7}, 7, 1, 2),  # the row of the second epoch is that of a part of it
        ({"max_steps": 5}, 5, 1, 1),
        ({"max_epochs": 3, "max_steps": 7}, 7, 1, 2),
        ({"max_epochs": 2, "max_steps": 70}, 10, 2, 2),
        ({"max_epochs": 0}, 0, 0, 0),
        ({"max_steps": 0}, 0, 0, 0),
    ],
)
def test_limits(limits: dict[str, Any], steps: int, epochs: int, rows: int) -> None:
    recorder = Recorder()
    run = fit(batches_of(*[4] * 5), schedule=schedules.triangle(), callbacks=[recorder], **limits)
    assert (run.step, run.epoch, len(run.history), run.total_steps) == (steps, epochs, rows, steps)
    assert recorder.rates == pytest.approx([0.05 * schedules.triangle()(step / steps) for step in range(steps)])
    assert run.stopped_because is None


def test_callbacks_may_stop_a_run_and_say_why() -> None:
    run = fit(batches_of(8, 8, 8), max_epochs=9, callbacks=[TimeLimit(1e-9)])
    assert (run.step, run.epoch) == (1, 0)
    assert run.stopped_because == "the time limit of 1e-09 seconds is used up"
    run = fit(batches_of(8, 8), max_epochs=9, callbacks=[EarlyStopping("train_loss", mode="max", patience=2)])
    assert (run.step, run.epoch) == (6, 3)
    assert str(run.stopped_because).startswith("train_loss has not improved on")


# Order.


def test_hooks_come_in_the_documented_order() -> None:
    recorder = Recorder()
    run = fit(batches_of(4, 4), max_epochs=2, callbacks=[recorder])
    assert recorder.events == [
        ("fit_start", 0, 0),
        *[("epoch_start", 0, 0), ("step_end", 0, 1), ("step_end", 0, 2), ("epoch_end", 1, 2)],
        *[("epoch_start", 1, 2), ("step_end", 1, 3), ("step_end", 1, 4), ("epoch_end", 2, 4)],
        ("fit_end", 2, 4),
    ]
    assert run.epoch == 2


def test_callbacks_of_lower_order_act_first() -> None:
    events: list[tuple[str, int, int]] = []
    callbacks = [Recorder(events, "late ", order=5), Recorder(events, "b "), Recorder(events, "c ")]
    fit(batches_of(4), max_epochs=1, callbacks=callbacks)
    assert [name for name, *_ in events if name.endswith("step_end")] == ["b step_end", "c step_end", "late step_end"]


def test_the_epochs_row_is_there_when_its_end_is_told() -> None:
    class Look(Callback):
        def on_epoch_end(self, run: Run) -> None:
            assert run.history[-1]["epoch"] == run.epoch - 1
            assert {"train_loss", "val_acc"} <= run.history[-1].keys() & run.metrics.keys()

    fit(batches_of(4), val_batches=batches_of(4), max_epochs=2, callbacks=[Look()])


def test_a_later_stage_sees_the_new_weights() -> None:
    task = TwoStages()
    run = fit(batches_of(4, 4), task, max_epochs=1)
    assert task.seen == [("first", 1.0), ("second", 0.75), ("first", 0.75), ("second", 0.5)]
    assert (task.first.item(), task.second.item()) == (0.5, 0.0)  # the second loss never moves the first weight
    assert run.history[0]["train_second_sum"] == pytest.approx(((0.75 + 1) + (0.5 + 0.5)) / 2)
    assert {"train_first_loss", "train_second_loss", "first_grad_norm", "second_grad_norm"} <= run.history[0].keys()


def test_accumulated_stages_advance_together() -> None:
    task = TwoStages()
    run = fit(batches_of(4, 4, 4, 1), task, max_epochs=1, accumulate_grad_batches=3)
    window = [("first", 1.0)] * 3 + [("second", 0.75)] * 3
    assert task.seen == [*window, ("first", 0.75), ("second", 0.5)]
    assert (run.step, task.first.item(), task.second.item()) == (2, 0.5, 0.0)


def test_micro_batches_must_agree_on_the_optimizer() -> None:
    class Fickle(TwoStages):
        def updates(self, batch: Batch) -> Iterator[Update]:
            yield Update(self.first + self.second, "first" if len(batch[0]) == 4 else "second")

    with pytest.raises(RuntimeError, match="the micro-batches of one window disagree on the next optimizer"):
        fit(batches_of(4, 2), Fickle(), max_epochs=1, accumulate_grad_batches=2)


# Clipping and 16 bits.


@pytest.mark.filterwarnings("ignore:fp16-mixed is meant for GPUs")
@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed"])
@pytest.mark.parametrize(
    ("bound", "algorithm", "step"),
    [(None, "norm", (3.0, 4.0)), (1.0, "norm", (0.6, 0.8)), (9.0, "norm", (3.0, 4.0)), (3.5, "value", (3.0, 3.5))],
)
def test_clipping(bound: float | None, algorithm: str, step: tuple[float, float], precision: str) -> None:
    task, settings = Slope(), {"gradient_clip_val": bound, "gradient_clip_algorithm": algorithm, "precision": precision}
    run = fit(batches_of(4), task, max_epochs=1, **settings)
    torch.testing.assert_close(-task.weight.detach(), torch.tensor(step))
    assert run.history[0]["grad_norm"] == pytest.approx(5.0)  # before clipping, after unscaling


def test_bf16_is_near_fp32() -> None:
    exact, rounded = (fit(batches_of(8, 8), max_epochs=2, precision=name) for name in ("fp32", "bf16-mixed"))
    assert_same_weights(exact, rounded, within=5e-3)
    assert all(parameter.dtype is torch.float32 for parameter in rounded.parameters)


@pytest.mark.filterwarnings("ignore:fp16-mixed is meant for GPUs")
def test_a_skipped_fp16_step_does_not_count() -> None:
    factors = iter([1.0, 1.0, 1e36, 1.0, 1.0, 1e36])  # finite, but not after scaling
    task = tiny_task(loss=lambda logits, labels: F.cross_entropy(logits, labels) * next(factors))
    recorder, schedule, logged = Recorder(), schedules.triangle(), list[int]()

    class Steps(Logger):
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            logged.append(step)

    settings: dict[str, Any] = {"precision": "fp16-mixed", "schedule": schedule, "callbacks": [recorder]}
    run = fit(batches_of(*[4] * 6), task, max_epochs=1, log_every_n_steps=1, loggers=[Steps()], **settings)
    assert run.step == 4
    assert logged == [1, 2, 3, 4]  # no step twice
    factors = iter([1.0, 1.0, 1e36])
    fit(batches_of(4, 4, 4), task, max_epochs=1, log_every_n_steps=50, loggers=[Steps()], precision="fp16-mixed")
    assert logged[4:] == [2]  # at the end of the epoch, though its last update was passed over
    assert [step for hook, _, step in recorder.events if hook == "step_end"] == [1, 2, 3, 4]
    assert recorder.rates == pytest.approx([0.05 * schedule(step / 6) for step in range(4)])
    assert run.scalers["model"].get_scale() == 2.0**14
    assert math.isfinite(run.history[0]["grad_norm"])


@pytest.mark.filterwarnings("ignore:fp16-mixed is meant for GPUs")
def test_each_optimizer_has_its_own_scale() -> None:
    task = TwoStages(factors=[1e36])
    run = fit(batches_of(4), task, max_epochs=1, precision="fp16-mixed")
    assert {name: scaler.get_scale() for name, scaler in run.scalers.items()} == {"first": 2.0**15, "second": 2.0**16}
    assert (run.step, task.first.item(), task.second.item()) == (1, 1.0, 0.5)


@pytest.mark.filterwarnings("ignore:fp16-mixed is meant for GPUs")
def test_a_gradient_that_overflows_at_every_scale_ends_the_run() -> None:
    task = tiny_task(loss=lambda logits, labels: (logits * 0).sqrt().sum())  # 0, with a gradient of 0 * infinity
    with pytest.raises(NonFiniteLossError, match=r"the gradient of 'model' is not finite at step 0 \(learning rate"):
        fit(batches_of(4), task, max_steps=5, precision="fp16-mixed")


# What is measured, and when.


def test_history_rows() -> None:
    batches, task = batches_of(8, 8, 4), tiny_task(lr=0.0)
    run = fit(batches, task, batches, max_epochs=2, accumulate_grad_batches=2)
    names = "epoch step train_loss train_acc grad_norm val_loss val_acc lr images_per_second seconds"
    assert [list(row) for row in run.history] == [names.split()] * 2
    assert [(row["epoch"], row["step"]) for row in run.history] == [(0, 2), (1, 4)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = task.model(images)
    loss, accuracy = F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
    for kind, row in itertools.product(("train", "val"), run.history):
        assert [row[f"{kind}_loss"], row[f"{kind}_acc"]] == pytest.approx([loss, accuracy], rel=1e-5)
    assert run.metrics == {name: value for name, value in run.history[-1].items() if name not in ("epoch", "step")}
    assert run.images == 40


class Recording(Callback):
    def __init__(self, value: Any) -> None:
        self.value = value

    def on_epoch_end(self, run: Run) -> None:
        run.record({"val_f1": self.value})


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5), np.array([0.5]), 0.5])
def test_a_recorded_metric_becomes_a_plain_number(value: Any, tmp_path: Path) -> None:
    def train(epochs: int) -> Run:
        trainer = Trainer(max_epochs=epochs, callbacks=[Recording(value), ModelCheckpoint(tmp_path)], progress=False)
        return trainer.fit(tiny_task(), batches_of(4), resume="auto")

    train(1)
    run = train(2)
    assert [row["val_f1"] for row in run.history] == [0.5, 0.5]
    assert type(run.metrics["val_f1"]) is float


class RecordingSteps(Callback):
    def on_step_end(self, run: Run) -> None:
        if run.step % 3 == 1:
            run.record({"noise_scale": run.step, "val_f1": run.step / 10, "train_loss": -1.0})


def test_what_is_recorded_within_an_epoch_belongs_to_its_row(tmp_path: Path) -> None:
    def train(steps: int, resume: Path | None = None) -> list[tuple[Any, Any]]:
        callbacks = [RecordingSteps(), ModelCheckpoint(tmp_path / f"{steps}")]
        trainer = Trainer(max_epochs=2, max_steps=steps, callbacks=callbacks, progress=False)
        rows = trainer.fit(tiny_task(), batches_of(4, 4, 4), resume=resume).history
        assert all(row["train_loss"] > 0 for row in rows)  # what was measured wins
        return [(row.get("noise_scale"), row.get("val_f1")) for row in rows]

    whole = [(1, 0.1), (4, 0.4)]
    assert train(6) == whole
    assert train(2) == whole[:1]
    state = load_checkpoint(tmp_path / "2" / "last.pt")
    assert state["run"]["recorded"] == {"noise_scale": 1, "val_f1": 0.1, "train_loss": -1.0}
    assert train(6, tmp_path / "2" / "last.pt") == whole
    for wrong, message in (("much", r"'recorded'\] is 'much'"), ({"val_f1": "high"}, r"\['val_f1'\] is 'high'")):
        state["run"]["recorded"] = wrong
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match=message):
            train(6, tmp_path / "wrong.pt")


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(2), "high", None, True])
def test_what_no_checkpoint_could_bring_back_is_not_recorded(value: Any) -> None:
    with pytest.raises(ValueError, match=r"metrics\['val_f1'\] is .*; it must be a number"):
        fit(batches_of(4), max_epochs=1, callbacks=[Recording(value)])


def test_a_run_shorter_than_a_log_interval_has_its_metrics() -> None:
    run = fit(batches_of(*[4] * 10), tiny_task(), max_steps=3)
    assert {"train_loss", "train_acc", "grad_norm", "lr"} <= run.metrics.keys() & run.history[-1].keys()


def test_nothing_is_read_off_the_device_between_log_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batches, reads = tiny_task(), batches_of(*[4] * 10), list[str]()
    fit(batches, task, max_steps=1)  # the labels of the first batch are looked at

    def count(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            reads.append(name)
            return read(*args)

        return counted

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(Tensor, name, count(name, getattr(Tensor, name)))
    fit(batches, task, max_epochs=1, log_every_n_steps=5, gradient_clip_val=1.0, callbacks=[Recorder()])
    assert reads == ["tolist"] * 2


def test_evaluate_changes_nothing_but_measures() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout().eval(), nn.Linear(3 * 32 * 32, 10))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters()))
    loader = data.Loader(data.shapes(30), 8, shuffle=True)
    before = loader.state_dict()
    metrics = Trainer(max_epochs=1).evaluate(task, loader)
    assert metrics.keys() == {"val_loss", "val_acc"}
    assert Trainer(max_epochs=1).evaluate(task, loader) == metrics
    assert loader.state_dict() == before
    assert [part.training for part in model] == [True, False, True]


def test_a_table_that_a_model_keeps_in_validation_serves_in_training() -> None:
    class Positions(nn.Module):
        """Weigh pixels by a table, made once for each size of image."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.tables = nn.Parameter(torch.ones(3, 1, 1)), dict[int, Tensor]()

        def forward(self, images: Tensor) -> Tensor:
            size = images.shape[-1]
            if size not in self.tables:
                self.tables[size] = torch.linspace(-1, 1, size)
            return (images * self.scale * self.tables[size]).flatten(1)

    model = Positions()
    task, batches = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1)), batches_of(4)
    Trainer(max_epochs=1).evaluate(task, batches)
    assert fit(batches, task, max_epochs=1).step == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_leaves_evaluation_mode_and_the_old_rate(fails: bool) -> None:
    task, batches = tiny_task(), batches_of(4, 4)
    if fails:
        batches[1][0].fill_(math.nan)
        with pytest.raises(NonFiniteLossError):
            fit(batches, task, max_epochs=1, schedule=schedules.cosine())
    else:
        fit(batches, task, max_epochs=1, schedule=schedules.cosine())
    assert not any(part.training for part in task.modules())
    assert task.optimizers["model"].param_groups[0]["lr"] == 0.05


def test_a_frozen_part_stands_still() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model = nn.Sequential(freeze(backbone), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    before, outputs = copy.deepcopy(model), list[Tensor]()
    backbone.register_forward_hook(lambda module, images, output: outputs.append(output))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    fit(batches_of(8), ClassificationTask(model, optimizer), max_epochs=2)
    assert_same_weights(model[0], before[0], within=0)  # its BatchNorm statistics too
    assert torch.equal(outputs[0], outputs[1])  # its dropout is off
    assert not torch.equal(model[1].get_buffer("running_mean"), before[1].get_buffer("running_mean"))


# Losses that are not finite.


def broken_batches(bad: int) -> Batches:
    batches = batches_of(*[4] * 6)
    batches[bad][0].fill_(math.nan)
    return batches


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_bad_loss_names_step_rate_and_checkpoint(log_every: int, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_steps=1)
    message = r"train_loss is nan at step 3 \(learning rate 0.025\); last good checkpoint: .*last\.pt\. A lower"
    settings: dict[str, Any] = {"schedule": schedules.cosine(), "log_every_n_steps": log_every, "callbacks": [saver]}
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        fit(broken_batches(3), max_epochs=1, **settings)
    assert caught.value.step == 3
    assert load_checkpoint(tmp_path / "last.pt")["run"]["step"] == 3


def test_a_bad_loss_is_found_before_a_save(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"at step 1 .*last good checkpoint: none"):
        fit(broken_batches(1), max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, every_n_steps=2)])
    assert not (tmp_path / "last.pt").exists()


def test_a_bad_loss_is_told_even_if_the_run_was_to_stop() -> None:
    task = tiny_task(loss=lambda logits, labels: math.nan * logits.sum())
    with pytest.raises(NonFiniteLossError, match="train_loss is nan at step 0"):
        fit(batches_of(4, 4), task, max_epochs=1, callbacks=[TimeLimit(1e-9)])


# What a person sees.


def test_elsewhere_than_on_a_terminal_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fit(batches_of(4, 4), val_batches=batches_of(4), max_epochs=3, progress=True)
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split()[:3] for line in lines] == [["epoch", f"{epoch}:", "train_loss"] for epoch in (0, 1, 2)]
    assert all("val_acc" in line and "images/s" in line for line in lines)
    assert output.err == ""


def test_on_a_terminal_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(batches_of(4, 4), max_epochs=2, progress=True)
    output = capsys.readouterr().out
    assert "4/4" in output
    assert "lr 0.05" in output
    assert output.count("epoch ") == 2


def test_without_progress_not_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    fit(batches_of(4), val_batches=batches_of(4), max_epochs=2, callbacks=[TimeLimit(1e-9)])
    assert capsys.readouterr() == ("", "")


# What is refused.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_epochs": None}, ValueError, "max_epochs and max_steps are both None: give at least one"),
        ({"max_epochs": -1}, ValueError, "max_epochs=-1 must be at least 0"),
        ({"max_steps": -1}, ValueError, "max_steps=-1 must be at least 0"),
        ({"log_every_n_steps": 0}, ValueError, "log_every_n_steps=0 must be at least 1"),
        ({"precision": "fp8"}, ValueError, "precision='fp8' is unknown; choose one of 'auto', 'fp32'"),
        ({"device": "abacus"}, ValueError, "device='abacus' cannot be used here; 'auto' and 'cpu' can"),
        (
            {"accumulate_grad_batches": 0},
            ValueError,
            "accumulate_grad_batches=0 must be at least 1",
        ),
        (
            {"accumulate_grad_batches": {-2: 4}},
            ValueError,
            "first epoch in accumulate_grad_batches=-2 must be at least 0",
        ),
        ({"gradient_clip_algorithm": "nrom"}, ValueError, "gradient_clip_algorithm='nrom' is unknown; use 'norm' or"),
        ({"gradient_clip_val": 0.0}, ValueError, "gradient_clip_val=0.0 must be above 0"),
        ({"gradient_clip_val": math.nan}, ValueError, "gradient_clip_val=nan must be above 0"),
        (
            {"callbacks": ["early stopping"]},
            TypeError,
            r"callbacks must be a list of Callback .* \['str'\]",
        ),
        (
            {"callbacks": [TimeLimit]},
            TypeError,
            r"callbacks must be a list of Callback .* \['type'\]",
        ),
        ({"callbacks": TimeLimit(1)}, TypeError, "callbacks must be a list of Callback objects; got TimeLimit"),
        ({"loggers": ["csv"]}, TypeError, r"loggers must be a list of Logger objects; got list of \['str'\]"),
        ({"max_epochs": "3"}, TypeError, "max_epochs='3' is a str; give an integer"),
        ({"max_epochs": 2.5}, TypeError, "max_epochs=2.5 is a float; give an integer"),
        ({"gradient_clip_val": "1"}, TypeError, "gradient_clip_val='1' is a str; give a number"),
        ({"accumulate_grad_batches": {"0": 2}}, TypeError, "first epoch in accumulate_grad_batches='0' is a str"),
        (
            {"schedule": "cosine"},
            TypeError,
            r"schedule='cosine' must map progress to a number",
        ),
        ({"schedule": schedules.cosine}, TypeError, r"must map progress to a number, as schedules\.cosine\(\) does"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trainer(**{"max_epochs": 1, **settings})


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return itertools.repeat(torch.zeros(3))


@pytest.mark.parametrize("loader", [iter([]), 5, DataLoader(Endless())], ids=["iterator", "number", "endless"])
def test_loaders_without_a_length_are_refused(loader: Any) -> None:
    kind = type(loader).__name__
    for fails, name in (
        (lambda: fit(loader, max_epochs=1), "train_loader"),
        (lambda: fit(batches_of(4), val_batches=loader, max_epochs=1), "val_loader"),
        (lambda: Trainer(max_epochs=1).evaluate(tiny_task(), loader), "loader"),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be an iterable of batches with a length; got {kind}"):
            fails()


def test_empty_loaders_are_refused() -> None:
    with pytest.raises(ValueError, match="train_loader has no batches: the dataset is empty, or drop_last dropped"):
        fit(data.Loader(data.shapes(7), 8, drop_last=True), max_epochs=1)
    with pytest.raises(ValueError, match="val_loader has no batches"):
        fit(batches_of(4), val_batches=[], max_epochs=1)


def test_labels_that_do_not_fit_are_refused_at_the_first_batch() -> None:
    images, labels = batches_of(4)[0]
    with pytest.raises(ValueError, match=r"labels run from 10 to 10, but the model tells 10 classes apart; .*=11"):
        fit([(images, torch.full_like(labels, 10))], max_epochs=1)
    with pytest.raises(TypeError, match=r"labels must be int64 \(B,\); got torch.float32"):
        fit([(images, labels.float())], max_epochs=1)


def test_an_optimizer_of_another_network_is_refused() -> None:
    task = tiny_task()
    task.optimizers["model"] = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'model' holds 2 parameters that are not the task's"):
        fit(batches_of(8), task, max_epochs=1)


def test_a_bare_tensor_is_no_batch() -> None:
    with pytest.raises(TypeError, match=r"a batch must be a tuple of tensors such as \(images, labels\); got Tensor"):
        to_device(torch.zeros(4, 3), torch.device("cpu"), torch.channels_last)  # type: ignore[arg-type]


# What a task may get wrong.


class Wrong(Task):
    def __init__(self, yielded: Any) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)
        self.optimizers = {"model": torch.optim.SGD(self.parameters(), lr=0.1)}
        self.yielded = yielded

    def updates(self, batch: Batch) -> Iterator[Update]:
        loss = self.model(batch[0]).sum()
        yield self.yielded(loss)


@pytest.mark.parametrize(
    ("yielded", "error", "message"),
    [
        (lambda loss: loss, TypeError, "updates must yield Update objects; got Tensor"),
        (lambda loss: Update(loss, "net"), ValueError, r"names the optimizer 'net'; the task has \['model'\]"),
        (lambda loss: Update(loss[None]), ValueError, r"a loss must be a scalar, .* got shape \(1,\)"),
        (lambda loss: Update(loss.item()), TypeError, r"a loss must be a tensor, before \.item\(\); got float"),
        (
            lambda loss: Update(loss.detach()),
            ValueError,
            r"the optimizer 'model' has no gradient: .* detached",
        ),
        (lambda loss: Update(loss, metrics={"x": 0.5}), TypeError, "'train_x' must be a scalar tensor, .* got float"),
    ],
)
def test_what_a_task_must_not_yield(yielded: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit([[torch.ones(3, 2)]], Wrong(yielded), max_epochs=1)


class Returning(Wrong):
    """Return a loss in place of yielding it, and results of one's own."""

    def __init__(self, returned: Any = None, results: Any = None) -> None:
        super().__init__(Update)
        self.returned, self.results = returned, results

    def updates(self, batch: Batch) -> Any:
        return super().updates(batch) if self.returned is None else self.returned(self.model(batch[0]).sum())

    def evaluate(self, batch: Batch) -> Any:
        return self.results


@pytest.mark.parametrize(
    ("returned", "what"), [(lambda loss: loss, "Tensor"), (Update, "Update"), (lambda loss: loss.item(), "float")]
)
def test_a_task_that_returns_its_loss_is_told_to_yield(returned: Any, what: str) -> None:
    message = rf"Returning.updates must yield Update objects; it returned {what}: write 'yield Update\(loss\)' in place"
    with pytest.raises(TypeError, match=message):
        fit([[torch.ones(3, 2)]], Returning(returned), max_epochs=1)


def test_a_task_may_return_a_list_of_updates() -> None:
    assert fit([[torch.ones(3, 2)]], Returning(lambda loss: [Update(loss)]), max_epochs=1).step == 1


@pytest.mark.parametrize(
    ("results", "got"),
    [
        (torch.zeros(()), "a tensor of torch.float32 and shape"),
        (None, "None of type NoneType"),
        ({"loss": torch.zeros(())}, "'loss': a tensor of"),
        ({"loss": 0.5}, "'loss': 0.5 of type float"),
        ({"loss": (torch.zeros(3), 3)}, r"'loss': \(tensor"),
        ({"loss": (0.5, 3, 1)}, r"'loss': \(0.5, 3, 1\) of type tuple"),
    ],
)
def test_what_evaluate_must_not_return(results: Any, got: str) -> None:
    message = rf"Returning.evaluate must return a sum over the batch .* as in \{{'loss': \(loss .*; got {got}"
    with pytest.raises(TypeError, match=message):
        fit([[torch.ones(3, 2)]], Returning(results=results), [[torch.ones(3, 2)]], max_epochs=1)


@pytest.mark.parametrize("total", [1.5, np.float32(1.5), torch.tensor(1.5)])
def test_the_sum_of_a_metric_may_be_a_number(total: Any) -> None:
    run = fit([[torch.ones(3, 2)]], Returning(results={"loss": (total, 3)}), [[torch.ones(3, 2)]] * 2, max_epochs=1)
    assert run.metrics["val_loss"] == 0.5


def test_a_network_is_no_task() -> None:
    network: Any = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"task must be a Task; got Linear: wrap a network, as in ClassificationTask"):
        fit(batches_of(4), network, max_epochs=1)


def test_an_optimizer_that_needs_a_closure_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    task = ClassificationTask(model, torch.optim.LBFGS(model.parameters()))
    assert Trainer(max_epochs=1, progress=False).evaluate(task, batches_of(4))  # where nothing is stepped
    with pytest.raises(TypeError, match=r"the optimizer 'model' is a LBFGS, whose step needs a closure.*use another"):
        fit(batches_of(4), task, max_epochs=1)


def test_nan_weights_are_never_saved(tmp_path: Path) -> None:
    class Poison(Callback):
        order = -20

        def on_step_end(self, run: Run) -> None:
            if run.step == 3:
                next(run.task.parameters()).data.fill_(math.nan)

    callbacks = [Poison(), ModelCheckpoint(tmp_path, every_n_steps=1)]
    with pytest.raises(NonFiniteLossError, match=r"a weight is not finite after step 2.*checkpoint: .*last\.pt"):
        fit(batches_of(4, 4, 4, 4), max_epochs=1, callbacks=callbacks)
    assert load_checkpoint(tmp_path / "last.pt")["run"]["step"] == 2


def test_a_validation_loss_that_is_nan_ends_the_run() -> None:
    task = tiny_task()
    task.evaluate = lambda batch: {"loss": (torch.tensor(math.nan), 1)}
    with pytest.raises(NonFiniteLossError, match="val_loss is nan after step 0"):
        fit(batches_of(4), task, batches_of(4), max_epochs=1)


def test_a_signal_after_the_last_update_is_not_lost() -> None:
    class Terminate(Callback):
        def on_fit_end(self, run: Run) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        fit(batches_of(4), max_epochs=1, callbacks=[Terminate()])
    assert left.value.code == 143


def test_a_look_at_example_images_does_not_move_a_resumed_run(tmp_path: Path) -> None:
    class Look(Callback):
        def on_epoch_start(self, run: Run) -> None:
            assert run.example_images.shape == (1, 3, 32, 32)

    def task() -> ClassificationTask:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        return ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.01))

    def loader() -> data.Loader:
        return data.Loader(data.shapes(40), 10, shuffle=True)

    fit(loader(), task(), max_steps=2, callbacks=[ModelCheckpoint(tmp_path)])
    run = Trainer(max_epochs=1, progress=False, callbacks=[Look()]).fit(task(), loader(), resume=tmp_path)
    assert (run.step, run.epoch) == (4, 1)


def test_an_early_stopped_run_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    def again() -> Run:
        callbacks = [EarlyStopping("val_loss", patience=1, min_delta=9), ModelCheckpoint(tmp_path)]
        return Trainer(max_epochs=9, progress=False, callbacks=callbacks).fit(
            tiny_task(), batches_of(4), batches_of(4), resume="auto"
        )

    assert [again().epoch for _ in range(3)] == [2, 2, 2]


class ShuffledBatches:
    """A sampler of batches with a generator of its own."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        yield from (part.tolist() for part in torch.randperm(40, generator=self.generator).split(10))


@pytest.mark.parametrize("owner", ["loader", "batch sampler", "its sampler"])
def test_a_generator_of_the_loader_is_part_of_the_state(owner: str, tmp_path: Path) -> None:
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(images, torch.arange(40) % 10)

    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3)
        if owner == "loader":
            return DataLoader(dataset, 10, shuffle=True, generator=generator)
        shuffled = BatchSampler(RandomSampler(dataset, generator=generator), 10, False)
        batches: Any = shuffled if owner == "its sampler" else ShuffledBatches(generator)
        return DataLoader(dataset, batch_sampler=batches)

    straight = fit(loader(), max_epochs=3)
    for steps in (2, 4, 6, 12):
        folder = tmp_path / str(steps)
        fit(loader(), max_steps=steps, callbacks=[ModelCheckpoint(folder)])
        resumed = Trainer(max_epochs=3, progress=False).fit(tiny_task(), loader(), resume=folder)
        assert_same_weights(straight, resumed, within=0)


def test_counts_of_samples_may_be_tensors_and_must_not_all_be_0() -> None:
    task = tiny_task()
    task.evaluate = lambda batch: {"acc": ((batch[1] > 0).sum(), (batch[1] >= 0).sum()), "loss": (1.5, 3)}
    metrics = Trainer(max_epochs=1).evaluate(task, batches_of(8, 4))
    assert metrics["val_loss"] == 0.5
    assert type(metrics["val_acc"]) is float
    assert 0 <= metrics["val_acc"] <= 1
    task.evaluate = lambda batch: {"acc": (0.0, torch.tensor(0))}
    with pytest.raises(ValueError, match="evaluate counted no samples for 'acc' in the whole loader"):
        Trainer(max_epochs=1).evaluate(task, batches_of(8, 4))


def test_a_loader_that_is_used_up_is_named() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter(batches_of(8, 8))

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Any]:
            return self.batches

    with pytest.raises(ValueError, match="train_loader gives no batch in epoch 1; can it be iterated over only once"):
        fit(Once(), max_steps=10)
    with pytest.raises(ValueError, match="the loader to evaluate on gives no batch"):
        fit(batches_of(8, 8), val_batches=Once(), max_epochs=2)


def test_what_is_recorded_as_an_epoch_starts_belongs_to_its_row() -> None:
    class Crop(Callback):
        def on_epoch_start(self, run: Run) -> None:
            run.record({"crop": 10 + run.epoch})

    run = fit(batches_of(8, 8), max_epochs=3, callbacks=[Crop()])
    assert [row["crop"] for row in run.history] == [10, 11, 12]


@pytest.mark.parametrize("value", [[0.9, 0.8], {"cat": 0.9}])
def test_what_is_no_number_flag_or_text_is_not_recorded(value: Any) -> None:
    class Lists(Callback):
        def on_epoch_end(self, run: Run) -> None:
            run.record({"recall_by_class": value})

    with pytest.raises(ValueError, match=r"metrics\['recall_by_class'\] is .*; it must be"):
        fit(batches_of(8), max_epochs=1, callbacks=[Lists()])


def test_a_text_among_the_accuracies_is_left_out_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Words(Callback):
        def on_epoch_end(self, run: Run) -> None:
            run.record({"best_acc": None, "acc_verdict": "fine"})

    fit(batches_of(8), max_epochs=1, callbacks=[Words()], progress=True)
    assert "epoch 0: train_loss" in capsys.readouterr().out


def test_state_that_no_checkpoint_holds_is_named_at_the_start(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    model = nn.Sequential(nn.Flatten(), Extra(192, 10))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    fit(batches_of(8), task, max_epochs=1)
    with untouched(task):  # as lr_find does
        task.model[1].weight.data.zero_()
    assert task.model[1].weight.abs().sum() > 0
    with pytest.raises(TypeError, match=r"model\.1 of the task keeps a dict by get_extra_state, and a checkpoint"):
        fit(batches_of(8), task, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path)])


def test_another_batch_size_within_an_epoch_of_a_foreign_loader_is_refused(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path)
    fit(batches_of(8, 8, 8, 8), max_epochs=2, max_steps=3, callbacks=[save])
    again = {"max_epochs": 2, "callbacks": [save], "progress": False}
    with pytest.raises(
        ValueError, match=r"within an epoch of 4 batches, and train_loader has 8: .* as many batches as"
    ):
        Trainer(**again).fit(tiny_task(), batches_of(*[4] * 8), resume=tmp_path)
    assert Trainer(**again).fit(tiny_task(), batches_of(8, 8, 8, 8), resume=tmp_path).step == 8


def test_a_fit_of_any_length_is_planned_at_once() -> None:
    assert fit(batches_of(8, 8, 8), max_epochs=10**12, max_steps=1, accumulate_grad_batches={0: 1, 2: 2}).step == 1


def test_a_task_may_have_no_metric_of_a_validation() -> None:
    class Silent(ClassificationTask):
        def evaluate(self, batch: Batch) -> dict[str, Any]:
            return {}

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    task = Silent(model, torch.optim.SGD(model.parameters(), 0.1))
    assert not any(name.startswith("val_") for name in fit(batches_of(8), task, batches_of(8), max_epochs=1).metrics)
