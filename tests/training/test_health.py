"""GANHealth: its words, its numbers, the way back from weights that are not finite, and resume."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.data import ImageDataset, Loader
from cifarkit.training import Callback, ClassificationTask, ExponentialMovingAverage, ModelCheckpoint, Run, Trainer
from cifarkit.training.health import GANHealth, collapsed_classes, describe_health, nearest_distances
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.task import Batch, Update
from cifarkit.training.tasks.gan import GANTask
from cifarkit.transforms import Normalize


class Maker(nn.Module):
    """Make flat images; ``spread`` says how much they depend on the latents."""

    latent_dim = 3

    def __init__(self, spread: float = 1.0) -> None:
        super().__init__()
        self.shift, self.spread = nn.Parameter(torch.zeros(3)), spread

    def forward(self, latents: Tensor) -> Tensor:
        return (self.shift + self.spread * latents)[:, :, None, None].expand(-1, -1, 4, 4).tanh()


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight


class PoisonedTask(GANTask):
    """A GAN whose discriminator's loss is NaN in some updates, counted from 1."""

    bad: tuple[int, ...] = ()
    count = 0

    def updates(self, batch: Batch) -> Iterator[Update]:
        self.count += 1
        for update in super().updates(batch):
            poison = torch.nan if self.count in self.bad and update.optimizer == "discriminator" else 1.0
            yield Update(update.loss * poison, update.optimizer, update.metrics)


def make_task(bad: tuple[int, ...] = (), spread: float = 1.0) -> PoisonedTask:
    torch.manual_seed(0)
    maker, judge = Maker(spread), Judge()
    optimizers = [torch.optim.Adam(item.parameters(), 0.01) for item in (maker, judge)]
    task = PoisonedTask(maker, judge, *optimizers)
    task.bad = bad
    return task


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 16, 3, 1, 1, generator=generator).expand(-1, -1, -1, 4, 4).tanh()
    return [(item, torch.arange(16) % 2) for item in images]


def fit(task: GANTask, *callbacks: Callback, epochs: int = 2, log: int = 100, resume: Any = None) -> Run:
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False, log_every_n_steps=log)
    return trainer.fit(task, batches(), resume=resume)


# Numbers and words.


def test_distances_are_to_the_nearest_other_image() -> None:
    images = torch.tensor([0.0, 1.0, 1.5, 4.0])[:, None, None, None].expand(-1, 1, 8, 8)
    torch.testing.assert_close(nearest_distances(images), 8 * torch.tensor([1.0, 0.5, 0.5, 2.5]))
    assert nearest_distances(images[:1].expand(5, -1, -1, -1)).eq(0).all()


def test_real_images_that_come_twice_hide_no_collapse() -> None:
    task, health = make_task(spread=0.0), GANHealth(32)
    once = batches(1)
    Trainer(max_epochs=1, callbacks=[health], progress=False).fit(task, once * 2)
    assert health.verdict.startswith("collapse: generated images are nearly the same, diversity 0.00")
    assert health.collapsed == [0, 1]


def test_real_images_that_are_all_the_same_are_named() -> None:
    with pytest.raises(ValueError, match="the first 16 real images are all the same, so nothing tells a collapse"):
        Trainer(max_epochs=1, callbacks=[GANHealth(16)], progress=False).fit(
            make_task(), [(torch.full((16, 3, 4, 4), -0.5), torch.zeros(16, dtype=torch.int64))]
        )


def test_noise_from_pixel_to_pixel_is_no_diversity() -> None:
    noise = torch.randn(20, 3, 32, 32)
    coarse = torch.randn(20, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert nearest_distances(noise).mean() < 0.5 * nearest_distances(coarse).mean()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.9, 0.8, 0.7), "healthy: diversity 0.90 of real images, the discriminator is right on 80% of real and 70%"),
        ((0.1, 0.8, 0.7), "collapse: generated images are nearly the same, diversity 0.10 of real ones"),
        ((float("nan"), 0.8, 0.7), "collapse: "),
        ((0.4, 0.8, 0.7), "generated images are much alike, diversity 0.40"),
        ((0.9, 0.99, 0.98), "saturated: the discriminator is right on 99% of real and 98% of generated images, so"),
        ((0.9, 0.99, 0.6), "healthy"),
        ((0.9, 0.8, 0.7, [3]), r"collapse in some classes: generated images of labels [3] are nearly the same"),
    ],
)
def test_numbers_become_words(numbers: Any, words: str) -> None:
    assert describe_health(*numbers).startswith(words)


def test_collapse_and_saturation_are_said_together() -> None:
    line = describe_health(0.1, 0.99, 0.99)
    assert "collapse" in line
    assert "saturated" in line


def test_a_collapsed_class_is_found_if_it_has_images_enough() -> None:
    labels, real = torch.arange(24) % 3, torch.ones(24)
    made = torch.where(labels == 1, 0.1, 0.9)
    assert collapsed_classes(made, real, labels) == [1]
    assert collapsed_classes(made[:15], real[:15], labels[:15]) == []


def test_the_line_tells_a_collapsed_generator_from_a_varied_one() -> None:
    varied, collapsed = GANHealth(), GANHealth()
    run = fit(make_task(), varied)
    assert varied.verdict.startswith("healthy")
    assert 0.7 < run.history[-1]["sample_diversity"] < 1.4
    assert fit(make_task(spread=0.01), collapsed).metrics["sample_diversity"] < 0.1
    assert collapsed.verdict.startswith("collapse")


def test_the_line_is_printed_with_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(max_epochs=1, callbacks=[GANHealth()]).fit(make_task(), batches())
    assert "epoch 0: healthy: diversity" in capsys.readouterr().out
    fit(make_task(), GANHealth())
    assert "healthy" not in capsys.readouterr().out


def test_training_does_not_notice_that_it_is_watched() -> None:
    watched, alone = fit(make_task(), GANHealth()), fit(make_task())
    for name, tensor in alone.task.state_dict().items():
        assert torch.equal(watched.task.state_dict()[name], tensor)
    assert watched.history[-1]["train_generator_loss"] == alone.history[-1]["train_generator_loss"]


# The way back.


def test_a_nan_goes_back_to_the_last_epoch_and_training_goes_on() -> None:
    class Watch(Callback):
        def on_step_end(self, run: Run) -> None:
            steps = [item["step"].item() for item in run.task.optimizers["generator"].state.values()]
            states.append((run.step, run.task.get_parameter("generator.shift")[0].item(), steps))

    states: list[tuple[int, float, list[float]]] = []
    health, average = GANHealth(), ExponentialMovingAverage(0.5, network="generator", batchnorm_samples=0)
    run = fit(make_task(bad=(6,)), health, average, Watch(), epochs=3)
    assert run.step == 12
    assert health.returned == 1
    assert states[5][1:] == states[3][1:]  # the sixth update was undone, and with it all of the second epoch
    assert states[6][2] == [5.0]
    assert health.verdict.endswith("returned 1 of 3 times from weights that were not finite")
    assert all(tensor.isfinite().all() for tensor in average.state_dict()["averaged"].values())
    assert all(value == value for row in run.history for value in row.values())


@pytest.mark.parametrize("log", [1, 2, 3])
def test_it_goes_back_also_where_a_log_step_finds_it(log: int) -> None:
    health, average = GANHealth(), ExponentialMovingAverage(0.5, network="generator", batchnorm_samples=0)
    run = fit(make_task(bad=(6, 8)), health, average, epochs=3, log=log)  # the eighth ends the second epoch
    assert (run.step, health.returned) == (12, 2)
    assert all(tensor.isfinite().all() for tensor in average.state_dict()["averaged"].values())
    assert all(value == value for row in run.history for value in row.values())


def test_in_the_first_epoch_it_goes_back_to_the_start() -> None:
    health = GANHealth()
    run = fit(make_task(bad=(1, 2)), health)
    assert health.returned == 2
    assert run.step == 8
    assert all(tensor.isfinite().all() for tensor in run.task.state_dict().values())


@pytest.mark.parametrize(("blown", "lost"), [(5, 7), (1, 3), (2, 2)])
def test_an_average_forgets_the_updates_that_led_to_the_loss(blown: int, lost: int) -> None:
    class Exploding(PoisonedTask):
        def updates(self, batch: Batch) -> Iterator[Update]:
            if self.count + 1 == blown:
                with torch.no_grad():
                    self.generator.shift.fill_(1e20)
            yield from super().updates(batch)

    task = make_task(bad=(lost,))
    task.__class__ = Exploding
    health, average = GANHealth(), ExponentialMovingAverage(0.999, network="generator", batchnorm_samples=0)
    run = fit(task, health, average, epochs=3)
    assert (run.step, health.returned) == (12, 1)
    assert all(tensor.abs().max() < 10 for tensor in average.state_dict()["averaged"].values())


@pytest.mark.parametrize("log", [1, 3, 100])
def test_a_loss_that_is_lost_while_the_weights_are_not_is_passed_over(log: int, tmp_path: Path) -> None:
    class Overflowing(PoisonedTask):
        def updates(self, batch: Batch) -> Iterator[Update]:
            for update in super().updates(batch):
                yield Update(update.loss + (torch.inf if self.count == 6 else 0.0), update.optimizer, update.metrics)

    task, health = make_task(), GANHealth()
    task.__class__ = Overflowing
    run = fit(task, health, ModelCheckpoint(tmp_path, every_n_steps=2), epochs=3, log=log)
    assert (run.step, health.returned) == (12, 0)
    assert health.verdict.endswith("1 time a loss was not finite while the weights were, which is passed over")
    assert all(value == value and abs(value) < 1e9 for row in run.history for value in row.values())


def test_a_lost_loss_just_before_the_run_is_stopped_is_passed_over_too() -> None:
    class Stop(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 6:
                run.stop("enough")

    class Overflowing(PoisonedTask):
        def updates(self, batch: Batch) -> Iterator[Update]:
            for update in super().updates(batch):
                yield Update(update.loss + (torch.inf if self.count == 6 else 0.0), update.optimizer, update.metrics)

    task = make_task()
    task.__class__ = Overflowing
    assert fit(task, GANHealth(), Stop(), epochs=3).stopped_because == "enough"


def test_a_second_fit_does_not_go_back_to_the_first() -> None:
    health = GANHealth()
    fit(make_task(), health)
    lost = make_task()
    with torch.no_grad():
        lost.generator.shift.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError):
        fit(lost, health)
    assert health.returned == 0


@pytest.mark.parametrize("returns", [0, 2])
def test_after_so_many_returns_the_run_ends_as_it_would_without(returns: int) -> None:
    health = GANHealth(returns=returns)
    with pytest.raises(
        NonFiniteLossError, match=r"train_discriminator_loss is nan at step \d.*last good checkpoint: none"
    ):
        fit(make_task(bad=tuple(range(1, 9))), health)
    assert health.returned == returns


def test_a_resumed_run_counts_on_and_compares_with_the_same_images(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 6:
                run.stop("far enough")

    whole, first, second = GANHealth(40), GANHealth(40), GANHealth(40)
    expected = fit(make_task(bad=(2,)), whole, epochs=3)
    fit(make_task(bad=(2,)), first, Stop(), ModelCheckpoint(tmp_path), epochs=3)
    run = fit(make_task(), second, epochs=3, resume=tmp_path)
    assert (first.returned, second.returned) == (1, 1)
    diversities = [[row["sample_diversity"] for row in item.history] for item in (run, expected)]
    assert diversities[0] == diversities[1]
    assert second.verdict == whole.verdict


def test_a_run_that_had_ended_still_knows_its_last_line(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 6:
                run.stop("far enough")

        def on_resume(self, run: Run) -> None:
            self.on_step_end(run)

    first, second = GANHealth(40), GANHealth(40)
    fit(make_task(spread=0.01), first, Stop(), ModelCheckpoint(tmp_path), epochs=3)
    run = fit(make_task(spread=0.01), second, Stop(), epochs=3, resume=tmp_path)
    assert (run.step, len(run.history)) == (6, 2)  # no update more
    assert second.verdict.startswith("collapse")
    assert (second.verdict, second.diversity) == (first.verdict, first.diversity)
    assert second.collapsed == first.collapsed == [0, 1]


def test_lost_statistics_are_found_where_all_weights_are_finite() -> None:
    class Lose(Callback):
        order = -30  # before GANHealth looks

        def on_step_end(self, run: Run) -> None:
            if run.step in (4, 6):  # the fourth update ends an epoch, whose state must not count as good
                run.task.get_buffer("generator.mean").fill_(torch.inf)

    task, health = make_task(), GANHealth()
    task.generator.register_buffer("mean", torch.zeros(3))
    run = fit(task, Lose(), health)
    assert health.returned == 2
    assert run.task.get_buffer("generator.mean").eq(0).all()


def test_a_run_saved_at_the_last_batch_of_an_epoch_goes_on(tmp_path: Path) -> None:
    class Kill(Callback):
        order = 120  # after the save

        def on_step_end(self, run: Run) -> None:
            raise KeyError("killed")

    images = torch.randint(0, 256, (16, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    loader = Loader(ImageDataset(images, torch.arange(16) % 2, ("a", "b")), 16, transform=Normalize(0.5, 0.5))
    saver = ModelCheckpoint(tmp_path, every_n_steps=1)
    with pytest.raises(KeyError, match="killed"):
        Trainer(max_epochs=2, callbacks=[GANHealth(), saver, Kill()], progress=False).fit(make_task(), loader)
    run = Trainer(max_epochs=2, callbacks=[GANHealth()], progress=False).fit(make_task(), loader, resume=tmp_path)
    assert [row["epoch"] for row in run.history] == [0, 1]


def test_a_mask_that_is_infinite_from_the_start_is_no_loss() -> None:
    task, health = make_task(bad=(6,)), GANHealth()
    task.generator.register_buffer("mask", torch.full((3,), -torch.inf))
    fit(task, health)
    assert health.returned == 1  # for the loss that is NaN


def test_large_statistics_are_finite() -> None:
    task, health = make_task(), GANHealth()
    task.generator.register_buffer("mean", torch.full((3,), 1e30))
    fit(task, health)
    assert health.returned == 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="samples=1 must be at least 2"):
        GANHealth(1)
    with pytest.raises(ValueError, match="returns=-1 must be at least 0"):
        GANHealth(returns=-1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match="GANHealth watches a GANTask; the task of this run is a ClassificationTask"):
        Trainer(max_epochs=1, callbacks=[GANHealth()], progress=False).fit(task, batches())
