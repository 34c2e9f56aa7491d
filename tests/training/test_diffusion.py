"""The diffusion task: its loss by hand, labels dropped one by one, a repeatable validation, and what it refuses."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarkit.data import ImageDataset, Loader
from cifarkit.diffusion import NoiseSchedule, as_denoiser
from cifarkit.diffusion.noise_levels import fixed_noise
from cifarkit.models import UNet
from cifarkit.training import ExponentialMovingAverage, ModelCheckpoint, Run, Trainer, load_checkpoint
from cifarkit.training.tasks.diffusion import DiffusionTask
from cifarkit.transforms import Normalize

SCHEDULE = NoiseSchedule.linear()
IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 2, 3, 0, 3])


class TinyNet(nn.Module):
    """One convolution and one number a class; it notes the labels and the steps it is given."""

    def __init__(self, num_classes: int | None = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.shift = nn.Parameter(torch.zeros(1 if num_classes is None else num_classes + 1))
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append((x.detach(), t, labels))
        shift = 0 if labels is None else self.shift[labels].reshape(-1, 1, 1, 1)
        return self.conv(x) * (t.reshape(-1, 1, 1, 1) / 500) + shift


def tiny_task(num_classes: int | None = 4, schedule: NoiseSchedule = SCHEDULE, **options: Any) -> DiffusionTask:
    torch.manual_seed(0)
    model = TinyNet(num_classes)
    return DiffusionTask(model, torch.optim.SGD(model.parameters(), lr=0.05), schedule, **options)


def loss_of(task: DiffusionTask, seed: int = 0, images: Tensor = IMAGES, labels: Tensor = LABELS) -> Tensor:
    torch.manual_seed(seed)
    updates = list(task.updates([images, labels]))
    assert [update.optimizer for update in updates] == ["model"]
    return updates[0].loss


def ingredients(task: DiffusionTask, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Run an update; return what the model predicted, the noise recovered from what it saw, and alpha_bar."""
    loss_of(task, seed)
    x, t, labels = task.model.seen[-1]
    left = task.schedule.alpha_bar[t].reshape(-1, 1, 1, 1).float()
    noise = (x - left.sqrt() * IMAGES) / (1 - left).sqrt()
    return task.model(x, t, labels), noise, left


def test_the_loss_is_the_mean_square_of_what_is_missed_of_the_noise() -> None:
    task = tiny_task()
    predicted, noise, _ = ingredients(task)
    torch.testing.assert_close(loss_of(task), (predicted - noise).square().mean(), rtol=1e-4, atol=0)
    assert len(set(task.model.seen[-1][1].tolist())) > 1  # a step for each image


def test_the_velocity_may_be_the_target() -> None:
    task = tiny_task(target="velocity")
    predicted, noise, left = ingredients(task)
    velocity = left.sqrt() * noise - (1 - left).sqrt() * IMAGES
    torch.testing.assert_close(loss_of(task), (predicted - velocity).square().mean(), rtol=1e-4, atol=0)


def test_steps_follow_a_normal_distribution_of_log_snr_and_are_spread_over_the_batch() -> None:
    task = tiny_task(log_snr=(2.4, 2.4))
    loss_of(task, images=IMAGES[:1].expand(400, -1, -1, -1), labels=LABELS[:1].expand(400))
    left = SCHEDULE.alpha_bar[task.model.seen[-1][1]]
    places = torch.special.ndtr(((left / (1 - left)).log() - 2.4) / 2.4)
    assert not torch.equal(places, places.sort().values)
    # The end of the table cuts off the last three places in a thousand.
    torch.testing.assert_close(places.sort().values, (torch.arange(400).double() + 0.5) / 400, rtol=0, atol=0.005)


@pytest.mark.parametrize("target", ["noise", "velocity"])
def test_min_snr_bounds_the_weight_that_the_clean_image_gets(target: str) -> None:
    """Seen as an error of the clean image, the loss weighs it min(snr, 5), whatever the target."""
    task = tiny_task(target=target, min_snr=5)
    predicted, _, left = ingredients(task)
    x = task.model.seen[-1][0]
    if target == "noise":
        clean = (x - (1 - left).sqrt() * predicted) / left.sqrt()
    else:
        clean = left.sqrt() * x - (1 - left).sqrt() * predicted
    weights = (left / (1 - left)).clamp(max=5)
    torch.testing.assert_close(loss_of(task), (weights * (clean - IMAGES).square()).mean(), rtol=1e-3, atol=0)


def test_labels_are_dropped_one_by_one() -> None:
    task, labels = tiny_task(label_dropout=0.3), torch.arange(4).repeat(500)
    loss_of(task, images=IMAGES[:1].expand(2000, -1, -1, -1), labels=labels)
    seen = task.model.seen[-1][2]
    dropped = seen == 4
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(seen[~dropped], labels[~dropped])
    assert labels.max() == 3  # the loader's own are left alone


@pytest.mark.parametrize(("share", "expected"), [(0.0, LABELS.tolist()), (1.0, [4] * 6)])
def test_no_or_all_labels_are_dropped(share: float, expected: list[int]) -> None:
    task = tiny_task(label_dropout=share)
    loss_of(task)
    assert task.model.seen[-1][2].tolist() == expected


def test_an_unconditional_model_is_trained_without_labels() -> None:
    task = tiny_task(None)
    with_labels = loss_of(task)
    assert task.model.seen[-1][2] is None
    torch.manual_seed(0)
    assert torch.equal(next(task.updates([IMAGES])).loss, with_labels)
    assert task.evaluate([IMAGES])["loss"][1] == 6


def test_the_training_loss_does_not_depend_on_the_batch_size() -> None:
    task = tiny_task()
    many = IMAGES.repeat(200, 1, 1, 1)
    whole = loss_of(task, images=many, labels=LABELS.repeat(200))
    part = loss_of(task, images=many[:300], labels=LABELS.repeat(50))
    assert whole.item() == pytest.approx(part.item(), rel=0.1)


def test_validation_is_the_same_from_call_to_call_and_leaves_the_random_states_alone() -> None:
    task = tiny_task(label_dropout=1.0)
    state = torch.get_rng_state()
    first, second = (task.evaluate([IMAGES, LABELS])["loss"] for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(state, torch.get_rng_state())
    assert task.model.seen[-1][2].tolist() == LABELS.tolist()


def test_validation_does_not_depend_on_batches_and_their_order() -> None:
    task, whole = tiny_task(), tiny_task().evaluate([IMAGES, LABELS])["loss"][0]
    parts = [task.evaluate([IMAGES[part], LABELS[part]])["loss"] for part in (slice(4, 6), slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(total for total, _ in parts), whole)
    assert [count for _, count in parts] == [2, 1, 3]
    channels_last = IMAGES.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(task.evaluate([channels_last, LABELS])["loss"][0], whole)


def test_validation_meets_all_steps_and_noise_that_is_normal() -> None:
    task, images = tiny_task(), torch.randn(2000, 3, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    task.evaluate([images, torch.zeros(2000, dtype=torch.int64)])
    x, t, _ = task.model.seen[-1]
    left = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1).float()
    noise = ((x - left.sqrt() * images) / (1 - left).sqrt())[t > 10]
    assert t.float().mean().item() == pytest.approx(499.5, abs=25)
    assert [noise.mean().item(), noise.std().item()] == pytest.approx([0, 1], abs=0.01)


def test_validation_draws_for_images_of_black_and_white_alone() -> None:
    images = torch.randint(2, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    _, t = fixed_noise(images, 1000)
    assert len(t.unique()) > 55  # their bits differ by 2^31 only, and generators heed 32 of 64


def loader(count: int = 24) -> Loader:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return Loader(ImageDataset(pixels, labels, tuple("abcd")), 8, transform=Normalize(0.5, 0.5), shuffle=True)


def fit(task: DiffusionTask, **options: Any) -> Run:
    return Trainer(progress=False, device="cpu", **options).fit(task, loader(), loader(9))


def test_training_lowers_the_loss_and_an_average_leaves_the_table_alone() -> None:
    schedule = NoiseSchedule.cosine()
    before, task = schedule.alpha_bar.clone(), tiny_task(schedule=schedule)
    run = fit(task, max_epochs=10, callbacks=[ExponentialMovingAverage(0.5)])
    assert run.history[-1]["val_loss"] < run.history[0]["val_loss"]
    assert {"train_loss", "val_loss_ema"} <= {*run.history[-1]}
    assert torch.equal(task.schedule.alpha_bar, before)
    assert {name.split(".")[0] for name in task.state_dict()} == {"model"}


def test_tables_stay_bit_equal_in_an_average_of_the_task_and_in_a_cast() -> None:
    task = tiny_task()
    averaged = AveragedModel(task, multi_avg_fn=None, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(task)
    for table in (averaged.module.schedule.alpha_bar, copy.deepcopy(task).bfloat16().schedule.alpha_bar):
        assert torch.equal(table, SCHEDULE.alpha_bar)
        assert table.dtype == torch.float64


@pytest.mark.parametrize("num_classes", [4, None])
def test_an_average_of_a_network_with_batchnorm_measures_it_on_noisy_images(num_classes: int | None) -> None:
    task = tiny_task(num_classes)
    task.model.conv = nn.Sequential(task.model.conv, nn.BatchNorm2d(3))
    average = ExponentialMovingAverage(0.5)
    fit(task, max_epochs=1, callbacks=[average])
    assert average.averaged is not None
    network = average.averaged.module.get_submodule("model")
    assert network.conv[1].num_batches_tracked > 0
    x, t, labels = network.seen[0]  # the first that it saw, when its statistics were measured
    assert x.abs().max() > 1.5  # with noise, which no clean image has
    assert t.float().std() > 0
    assert (labels is None) == (num_classes is None)


def test_a_weight_is_finite_where_nothing_is_left_of_the_image() -> None:
    task = tiny_task(schedule=NoiseSchedule.linear(1000, beta_end=0.2), min_snr=5.0)
    weights = task._weights(IMAGES[:2], torch.tensor([0, 999]))
    torch.testing.assert_close(weights, torch.tensor([5.0 * 1e-4 / (1 - 1e-4), 1.0]))


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    straight, halves = tiny_task(), tiny_task()
    torch.manual_seed(1)
    fit(straight, max_steps=6)
    torch.manual_seed(1)
    fit(halves, max_steps=4, callbacks=[ModelCheckpoint(tmp_path, every_n_steps=4)])
    resumed = tiny_task()
    Trainer(progress=False, device="cpu", max_steps=6).fit(resumed, loader(), loader(9), resume=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    settings = load_checkpoint(tmp_path / "last.pt")["config"]["task"]
    assert settings["schedule"] == "NoiseSchedule.linear(1000)"
    assert settings["label_dropout"] == 0.1


def test_bf16_is_close_to_fp32() -> None:
    losses = [fit(tiny_task(), max_epochs=1, precision=precision).metrics for precision in ("fp32", "bf16-mixed")]
    assert losses[1]["val_loss"] == pytest.approx(losses[0]["val_loss"], rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_trains_on_images_of_any(dtype: torch.dtype) -> None:
    model = UNet(base_channels=8, multipliers=(1,), num_classes=4).to(dtype)
    task = DiffusionTask(model, torch.optim.Adam(model.parameters()), SCHEDULE)
    for images in (IMAGES, IMAGES.to(dtype)):
        next(task.updates([images, LABELS])).loss.backward()
        assert task.evaluate([images, LABELS])["loss"][0].isfinite()
        assert task.inputs_of("model", [images, LABELS])[0].dtype == dtype


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES * 2, LABELS, ValueError, r"images run from -2 to 1\.99 .* not in \[-1, 1\]: give transform"),
        (IMAGES.byte(), LABELS, TypeError, r"images must be float in \[-1, 1\]; got torch\.uint8: give transform=Norm"),
        (IMAGES * torch.nan, LABELS, ValueError, "images hold NaN or infinite values in the first batch"),
        (IMAGES, LABELS + 1, ValueError, "labels run from 1 to 4; for num_classes=4 they must be 0 to 3"),
        (IMAGES, LABELS - 1, ValueError, "labels run from -1 to 2"),
        (IMAGES, LABELS.float(), TypeError, r"labels must be an int64 tensor \(6,\); got torch.float32"),
    ],
)
def test_a_first_batch_that_does_not_fit_is_named(
    images: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loss_of(tiny_task(), images=images, labels=labels)
    with pytest.raises(error, match=message):
        tiny_task().evaluate([images, labels])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"images": IMAGES}, TypeError, r"a batch must be \(images, labels\), a tuple of tensors; got dict"),
        ((IMAGES, LABELS.tolist()), TypeError, r"got tuple of \['Tensor', 'list'\]"),
        ((IMAGES.numpy(), LABELS), TypeError, r"got tuple of \['ndarray', 'Tensor'\]"),
        (IMAGES, TypeError, "got Tensor"),
        ((IMAGES[:0], LABELS[:0]), ValueError, r"images must be \(B, C, H, W\), B at least 1; got shape \(0, "),
        ((IMAGES[0], LABELS), ValueError, r"images must be \(B, C, H, W\)"),
    ],
)
def test_what_is_no_batch_of_images_is_named(batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        next(tiny_task().updates(batch))


def test_a_network_may_answer_as_those_of_diffusers_do() -> None:
    task = tiny_task()
    bare, forward = loss_of(task), task.model.forward
    task.model.forward = lambda *inputs: SimpleNamespace(sample=forward(*inputs))
    assert torch.equal(loss_of(task), bare)


def test_images_that_were_never_shifted_are_noticed() -> None:
    with pytest.warns(UserWarning, match=r"images run from 0\.\d+ to .* as if in \[0, 1\]; diffusion wants \[-1, 1\]"):
        loss_of(tiny_task(), images=IMAGES.abs())


def test_a_batch_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"a batch must be \(images, labels\); got 1 tensors"):
        next(tiny_task().updates([IMAGES]))
    with pytest.raises(ValueError, match="got 3 tensors"):
        next(tiny_task(None).updates([IMAGES, LABELS, LABELS]))


def test_a_model_that_returns_something_else_is_named() -> None:
    task = tiny_task()
    task.model.conv = nn.Conv2d(3, 6, 1)
    with pytest.raises(ValueError, match=r"the model must return .* it returned \(6, 6, 4, 4\) for images of \(6, 3,"):
        loss_of(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "image"}, "target='image' is unknown; use 'noise' or 'velocity'"),
        ({"label_dropout": 1.5}, r"label_dropout=1\.5 must be at least 0 and at most 1"),
        ({"min_snr": 0}, "min_snr=0 must be above 0"),
        ({"log_snr": (1, 0)}, r"log_snr\[1\]=0 must be above 0"),
        ({"log_snr": 2.4}, r"log_snr=2.4 must be \(mean, deviation\)"),
    ],
)
def test_settings_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_task(**options)


def test_arguments_in_the_wrong_place_are_named() -> None:
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(TypeError, match=r"give DiffusionTask a network and its optimizer, .*; got SGD and TinyNet"):
        DiffusionTask(optimizer, model, SCHEDULE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule is a int; give NoiseSchedule\.linear\(\) or \.cosine\(\)"):
        DiffusionTask(model, optimizer, 1000)  # type: ignore[arg-type]


def test_a_model_that_takes_labels_but_says_no_number_of_classes_is_noticed() -> None:
    model = TinyNet()
    del model.num_classes
    with pytest.warns(UserWarning, match="takes labels but has no attribute num_classes, so it is trained without"):
        DiffusionTask(model, torch.optim.SGD(model.parameters()), SCHEDULE)


@pytest.mark.parametrize("target", ["noise", "velocity"])
def test_its_denoiser_knows_target_and_schedule(target: str) -> None:
    task = tiny_task(target=target)
    t = torch.full((6,), 500)
    expected = as_denoiser(task.model, LABELS, guidance=0.5, target=target, schedule=SCHEDULE)
    found = task.denoiser(LABELS, guidance=0.5)
    assert torch.equal(found(IMAGES, t), expected(IMAGES, t))
