"""SWA and EMA: equal to torch.optim.swa_utils driven by hand, reported beside the raw weights, which never notice."""

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import Draws
from cifarkit.training import (
    Callback,
    ClassificationTask,
    EarlyStopping,
    ExponentialMovingAverage,
    LearningRateMonitor,
    ModelCheckpoint,
    Run,
    StochasticWeightAveraging,
    Trainer,
    Update,
    freeze,
    load_weights,
    refresh_batchnorm,
)
from cifarkit.training.averaging import WeightAveraging
from cifarkit.training.schedules import constant, cosine


class TinyNet(nn.Sequential):
    def __init__(self) -> None:
        conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        super().__init__(conv, norm, nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(16, 3))


def jitter(images: Tensor, draws: Draws) -> Tensor:
    return images + 0.3 * draws.normal(*images.shape[1:])


def loader(count: int = 20, batch_size: int = 8, shuffle: bool = True) -> Loader:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Loader(ImageDataset(pixels, labels, ("a", "b", "c")), batch_size, transform=jitter, shuffle=shuffle)


def make_task(learning_rate: float = 0.05) -> ClassificationTask:
    torch.manual_seed(0)
    model = TinyNet()
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9))


def fit(*callbacks: Callback, task: ClassificationTask | None = None, epochs: int = 4, **options: Any) -> Run:
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False, schedule=cosine(), **options)
    return trainer.fit(task or make_task(), loader(), loader(9))


def average_of(callback: WeightAveraging) -> nn.Module:
    assert callback.averaged is not None
    return callback.averaged.module.get_submodule("model")


def assert_equal_states(first: nn.Module, second: nn.Module, names: Iterable[str] | None = None) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    for name in names if names is not None else ours:
        assert torch.equal(ours[name], theirs[name]), name


class Scalar(nn.Module):
    """One weight that grows by one an update."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * torch.ones(len(images), 2)


def scalar_run(*callbacks: Callback, epochs: int = 3) -> Run:
    model = Scalar()
    task = ClassificationTask(model, torch.optim.SGD([model.weight], 1.0), loss=lambda logits, _: -logits.mean())
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False)
    return trainer.fit(task, [(torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64))])


def weight_of(callback: WeightAveraging) -> float:
    return float(average_of(callback).state_dict()["weight"])


# Closed forms.


def test_swa_of_weights_1_2_3_is_2() -> None:
    swa = StochasticWeightAveraging(start=0.0)
    scalar_run(swa)
    assert weight_of(swa) == 2
    assert swa.updates == 3


def test_swa_starts_at_its_share_of_the_run() -> None:
    late, early = StochasticWeightAveraging(start=0.75), StochasticWeightAveraging(start=0.3, every_n_steps=2)
    scalar_run(late, early, epochs=8)
    assert weight_of(late) == 7  # of 6, 7, 8
    assert weight_of(early) == 6  # of 4, 6, 8


def test_ema_follows_its_formula() -> None:
    ema = ExponentialMovingAverage(0.9)
    scalar_run(ema, epochs=5)
    expected = 1.0
    for weight in (2, 3, 4, 5):
        expected = 0.9 * expected + 0.1 * weight
    assert weight_of(ema) == pytest.approx(expected, rel=1e-6)


# Against PyTorch's own, driven by hand.


def plain_loop(averages: list[AveragedModel], when: list[str], epochs: int = 4) -> nn.Module:
    """Train like fit() above without the Trainer, and update each average each "step" or each "epoch"."""
    task, batches = make_task(), loader()
    model, optimizer = task.model, task.optimizers["model"]
    for average in averages:
        average.module = copy.deepcopy(model)
    step, total, schedule = 0, epochs * len(batches), cosine()
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            optimizer.param_groups[0]["lr"] = 0.05 * schedule(step / total)
            optimizer.zero_grad()
            F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            for average, moment in zip(averages, when, strict=True):
                if moment == "step":
                    average.update_parameters(model)
        for average, moment in zip(averages, when, strict=True):
            if moment == "epoch" and step / total >= 0.5:
                average.update_parameters(model)
    return model


def test_swa_and_ema_equal_pytorchs() -> None:
    swa, ema = StochasticWeightAveraging(start=0.5), ExponentialMovingAverage(0.8)
    run = fit(swa, ema)
    follow: Any = get_ema_multi_avg_fn(0.8)  # type: ignore[no-untyped-call]
    theirs = [AveragedModel(TinyNet()), AveragedModel(TinyNet(), multi_avg_fn=follow)]
    model = plain_loop(theirs, ["epoch", "step"])
    assert_equal_states(run.task.get_submodule("model"), model)
    names = [name for name, _ in model.named_parameters()]
    for callback, average in zip((swa, ema), theirs, strict=True):
        assert_equal_states(average_of(callback), average.module, names)
        assert callback.updates == int(average.n_averaged)


@pytest.mark.parametrize("samples", [2_000, 9])
def test_batchnorm_statistics_are_those_of_update_bn(samples: int) -> None:
    ema = ExponentialMovingAverage(0.8, batchnorm_samples=samples)
    fit(ema)
    batches = loader()
    batches.epoch = 4  # the images of the epoch that would come next
    batch_count = 3 if samples == 2_000 else 2
    expected = copy.deepcopy(average_of(ema))
    torch.manual_seed(0)
    update_bn([images for images, _ in batches][:batch_count], expected)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(
            average_of(ema).state_dict()[name], expected.state_dict()[name], rtol=1e-6, atol=1e-7
        )
    assert not average_of(ema).training


def test_without_a_refresh_batchnorm_statistics_are_those_of_the_raw_network() -> None:
    ema = ExponentialMovingAverage(0.8, batchnorm_samples=0)
    run = fit(ema)
    names = [name for name, _ in run.task.get_submodule("model").named_buffers()]
    assert_equal_states(average_of(ema), run.task.get_submodule("model"), names)


def test_refresh_batchnorm_equals_update_bn_and_restores_momentum() -> None:
    torch.manual_seed(1)
    ours = TinyNet()
    ours.pop(3)  # dropout draws random numbers
    theirs, batches = copy.deepcopy(ours), [images for images, _ in loader()]
    refresh_batchnorm(ours, iter(batches))
    update_bn(batches, theirs)
    assert_equal_states(ours, theirs)
    assert ours[1].momentum == 0.1
    assert not any(module.training for module in ours.modules())


def test_refresh_batchnorm_leaves_frozen_and_untracked_layers() -> None:
    frozen, untracked = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(freeze(frozen), untracked, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    before = copy.deepcopy(frozen)
    refresh_batchnorm(model, [torch.randn(8, 3, 4, 4) + 5])
    assert_equal_states(frozen, before)
    assert int(model.state_dict()["3.num_batches_tracked"]) == 1
    refresh_batchnorm(nn.Sequential(freeze(frozen)), [torch.randn(8, 3, 4, 4) + 5])
    assert_equal_states(frozen, before)


class TinyGenerator(nn.Module):
    """Batch statistics that show what the network was given: the mean of its first number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.map = nn.BatchNorm1d(1), nn.Linear(1, 3)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        made: Tensor = self.map(self.norm(latents + labels[:, None]))
        return made


class GeneratingTask(ClassificationTask):
    """A task whose network takes latents and labels instead of images."""

    def updates(self, batch: Any) -> Any:
        yield Update(self.model(*self.inputs_of("model", batch)).square().mean())

    def inputs_of(self, network: str, batch: Any) -> tuple[Tensor, Tensor]:
        assert network == "model"
        return torch.full((len(batch[0]), 1), 7.0), batch[1]


def test_a_task_may_say_what_its_network_takes() -> None:
    model, ema = TinyGenerator(), ExponentialMovingAverage(0.9, batchnorm_samples=12)
    task = GeneratingTask(model, torch.optim.SGD(model.parameters(), 0.1))
    Trainer(max_epochs=1, callbacks=[ema], progress=False).fit(task, loader())
    batches = loader()
    batches.epoch = 1  # the labels of the epoch that would come next, two batches of 8 of them
    mean = torch.stack([7 + labels.float().mean() for _, labels in list(batches)[:2]]).mean()
    torch.testing.assert_close(average_of(ema).state_dict()["norm.running_mean"], mean[None])


def test_a_frozen_batchnorm_is_not_refreshed_by_the_callback() -> None:
    task, swa = make_task(), StochasticWeightAveraging(start=0.0)
    freeze(task.model[1])  # type: ignore[index]
    before = copy.deepcopy(task.model[1])  # type: ignore[index]
    fit(swa, task=task)
    assert_equal_states(average_of(swa).get_submodule("1"), before)
    assert_equal_states(task.model.get_submodule("1"), before)


# Beside the raw weights.


def test_raw_weights_do_not_notice() -> None:
    with_averages = fit(StochasticWeightAveraging(start=0.0), ExponentialMovingAverage(0.9))
    without = fit()
    assert_equal_states(with_averages.task, without.task)
    for row, plain in zip(with_averages.history, without.history, strict=True):
        assert {name: row[name] for name in plain if name not in ("seconds", "images_per_second")} == {
            name: value for name, value in plain.items() if name not in ("seconds", "images_per_second")
        }


def test_both_accuracies_are_recorded_in_the_phase() -> None:
    swa, ema = StochasticWeightAveraging(start=0.75), ExponentialMovingAverage(0.9)
    run = fit(swa, ema, EarlyStopping("val_acc_ema", "max", patience=9))
    averaged = [sorted(name for name in row if name.endswith(("_swa", "_ema"))) for row in run.history]
    of_ema, of_swa = ["val_acc_ema", "val_loss_ema"], ["val_acc_swa", "val_loss_swa"]
    assert averaged == [of_ema, of_ema, sorted(of_ema + of_swa), sorted(of_ema + of_swa)]
    with swa.swapped(run.task):
        assert run.task.get_submodule("model") is average_of(swa)
        metrics = run.trainer.evaluate(run.task, loader(9))
    assert run.history[-1]["val_loss_swa"] == metrics["val_loss"]
    assert run.metrics["val_acc_swa"] == metrics["val_acc"]


def test_two_averages_of_a_kind_have_metrics_of_their_own(tmp_path: Path) -> None:
    quick, slow = ExponentialMovingAverage(0.1), ExponentialMovingAverage(0.9)
    run = fit(quick, slow, StochasticWeightAveraging(start=0.0), ModelCheckpoint(tmp_path, "val_loss_ema_2", "min"))
    for callback, name in ((quick, "val_loss_ema"), (slow, "val_loss_ema_2")):
        with callback.swapped(run.task):
            assert run.history[-1][name] == run.trainer.evaluate(run.task, loader(9))["val_loss"]
    assert "val_loss_swa" in run.metrics
    assert_equal_states(load_weights(TinyNet(), tmp_path / "last.pt", average="ema"), average_of(quick))
    assert_equal_states(load_weights(TinyNet(), tmp_path / "last.pt", average="ema_2"), average_of(slow))


def test_swapped_puts_the_raw_network_back_after_an_exception() -> None:
    swa = StochasticWeightAveraging(start=0.0)
    run = fit(swa)
    raw = run.task.get_submodule("model")
    with pytest.raises(ZeroDivisionError), swa.swapped(run.task):
        _ = 1 / 0
    assert run.task.get_submodule("model") is raw
    swa.copy_to(run.task)
    assert_equal_states(raw, average_of(swa))


def test_without_validation_data_the_average_is_still_made() -> None:
    ema = ExponentialMovingAverage(0.9)
    Trainer(max_epochs=1, callbacks=[ema], progress=False).fit(make_task(), loader())
    assert ema.updates == 3


def test_one_network_of_several_can_be_averaged() -> None:
    task, ema = make_task(), ExponentialMovingAverage(0.9, network="judge")
    task.judge = nn.Linear(1, 1)
    fit(ema, task=task, epochs=1)
    assert list(ema.state_dict()["averaged"]) == ["judge.weight", "judge.bias"]
    with pytest.raises(ValueError, match=r"network='judges' is no child of the task; it has \['judge', 'model'\]"):
        fit(ExponentialMovingAverage(0.9, network="judges"), task=task)


def test_swa_lr_bends_the_schedule() -> None:
    monitor = LearningRateMonitor()
    task = make_task()
    task.unused = nn.Parameter(torch.zeros(1))
    task.optimizers["model"].add_param_group({"params": [task.unused], "lr": 0.2})
    fit(StochasticWeightAveraging(swa_lr=0.01, start=0.5), monitor, task=task)
    schedule = [0.05 * cosine()(step / 12) for step in range(6)]
    assert monitor.history["lr"] == pytest.approx(schedule + [0.01] * 6)
    assert monitor.history["lr_1"] == pytest.approx([4 * rate for rate in monitor.history["lr"]])
    assert [group["lr"] for group in task.optimizers["model"].param_groups] == [0.05, 0.2]


def test_swa_with_fp16_and_batchnorm() -> None:
    swa = StochasticWeightAveraging(start=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(swa, precision="fp16-mixed")
    assert all(tensor.isfinite().all() for tensor in average_of(swa).state_dict().values())


def test_an_average_is_not_updated_by_a_step_that_fp16_skipped() -> None:
    ema = ExponentialMovingAverage(0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = make_task()
        task.loss = lambda logits, labels: F.cross_entropy(logits.float(), labels) * 100  # overflows at first
        run = fit(ema, task=task, precision="fp16-mixed")
    assert 0 < run.step < 12
    assert ema.updates == run.step


# Resume.


def test_resumes_inside_the_averaging_phase_bit_for_bit(tmp_path: Path) -> None:
    def averages() -> list[WeightAveraging]:
        return [StochasticWeightAveraging(0.02, start=0.25), ExponentialMovingAverage(0.9), StochasticWeightAveraging()]

    class StopAt(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 8:  # in the third epoch
                run.stop("that will do")

    whole, first, second = averages(), averages(), averages()
    expected = fit(*whole)
    fit(*first, StopAt(), ModelCheckpoint(tmp_path))
    trainer = Trainer(max_epochs=4, callbacks=second, progress=False, schedule=cosine())
    torch.manual_seed(99)
    run = trainer.fit(make_task(), loader(), loader(9), resume=tmp_path / "last.pt")
    assert_equal_states(run.task, expected.task)
    for callback, reference in zip(second, whole, strict=True):
        assert_equal_states(average_of(callback), average_of(reference))
        assert callback.updates == reference.updates
    kept = [
        {name: row[name] for name in row if "second" not in name} for row in (run.history[-1], expected.history[-1])
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StochasticWeightAveraging(start=1.0),
            "start=1.0 must be at least 0 and below 1",
        ),
        (lambda: StochasticWeightAveraging(start=75), "start=75 must be"),
        (lambda: StochasticWeightAveraging(swa_lr=0.0), "swa_lr=0.0 must be above 0"),
        (lambda: ExponentialMovingAverage(1.0), "decay=1.0 must be at least 0 and below 1"),
        (lambda: ExponentialMovingAverage(batchnorm_samples=-1), "batchnorm_samples=-1 must be at least 0"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_schedule_is_kept_without_swa_lr() -> None:
    schedule = constant()
    assert StochasticWeightAveraging().bend_schedule(schedule, None) is schedule  # type: ignore[arg-type]


def test_a_misspelt_metric_of_an_average_is_named_once_it_averages(tmp_path: Path) -> None:
    message = "monitor='val_accuracy_ema' is not among the metrics of this run: .*val_acc_ema"
    with pytest.raises(ValueError, match=message):
        fit(ExponentialMovingAverage(0.5), ModelCheckpoint(tmp_path, "val_accuracy_ema"), epochs=1)
    with pytest.raises(ValueError, match="monitor='val_accuracy_swa' is not among the metrics of this run"):
        fit(StochasticWeightAveraging(start=0.5), ModelCheckpoint(tmp_path / "b", "val_accuracy_swa"))


@pytest.mark.parametrize("use", ["copy_to", "swapped"])
def test_an_average_of_nothing_is_not_put_in_place_of_what_was_learnt(use: str) -> None:
    average, task = StochasticWeightAveraging(start=0.9), make_task()
    fit(average, task=task, max_steps=2)
    before = copy.deepcopy(task)
    uses = {"copy_to": average.copy_to, "swapped": lambda task: average.swapped(task).__enter__()}
    with pytest.raises(ValueError, match="no weights have entered the average 'swa' yet"):
        uses[use](task)
    assert_equal_states(task, before)


def test_a_network_of_two_names_is_swapped_under_both() -> None:
    average, task = ExponentialMovingAverage(0.9), make_task()
    task.net = task.model
    fit(average, task=task)
    raw = task.model
    with average.swapped(task):
        assert task.net is task.model is not raw
    assert task.net is task.model is raw


def test_no_batches_leave_batchnorm_as_it_was() -> None:
    network = TinyNet()
    network(torch.randn(4, 3, 4, 4))
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match="batches hold none; can they be iterated over only once"):
        refresh_batchnorm(network, iter([]))
    assert_equal_states(network, before)
    assert network[1].momentum == before[1].momentum


def test_a_rate_of_0_cannot_be_bent() -> None:
    with pytest.raises(ValueError, match=r"lr of the first parameter group=0\.0 must be above 0"):
        fit(StochasticWeightAveraging(swa_lr=0.1), task=make_task(0.0))


def test_the_average_of_an_unknown_metric_is_named_in_the_first_epoch(tmp_path: Path) -> None:
    for callback in (EarlyStopping("val_accuracy_swa", "max"), ModelCheckpoint(tmp_path, "val_accuracy_swa")):
        with pytest.raises(ValueError, match="monitor='val_accuracy_swa' is not among the metrics"):
            fit(callback, StochasticWeightAveraging(), epochs=100)


def test_batchnorm_statistics_are_measured_without_gradients() -> None:
    task, seen = make_task(), []
    task.model[0].register_forward_hook(lambda layer, *_: seen.append((layer.training, torch.is_grad_enabled())))
    fit(ExponentialMovingAverage(0.9), task=task)
    assert (True, False) in seen  # the copy of the average, in training mode
    average = ExponentialMovingAverage(0.9)
    fit(average, task=make_task())
    assert not any(isinstance(value, Run) for value in vars(average).values())


def test_a_network_whose_name_an_average_cannot_have_is_named() -> None:
    task = make_task()
    task.keys = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="a network of the task is called 'keys', as no average of it can be; rename"):
        fit(ExponentialMovingAverage(0.9), task=task, epochs=1)
