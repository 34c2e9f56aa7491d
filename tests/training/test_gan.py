"""The GAN task: its losses, the order of its updates, accumulation, resume, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from cifarkit.data import ImageDataset, Loader
from cifarkit.models.dcgan import Discriminator, Generator
from cifarkit.seeding import Draws, RngState
from cifarkit.training import Callback, ExponentialMovingAverage, ModelCheckpoint, Run, Trainer, load_weights
from cifarkit.training.tasks.gan import GANTask, frozen
from cifarkit.training.tasks.gan_augment import DifferentiableAugmentation

pytestmark = pytest.mark.filterwarnings("ignore:this processor has no bf16")

IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(12) % 3


class TinyGenerator(nn.Module):
    """A linear map, without BatchNorm, whose class adds a shade."""

    latent_dim, num_classes = 16, 3

    def __init__(self) -> None:
        super().__init__()
        self.map, self.shade = nn.Linear(16, 3 * 8 * 8), nn.Embedding(3, 1)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (self.map(latents) + self.shade(labels)).tanh().view(-1, 3, 8, 8)


def make_task(generator: Any = None, discriminator: Any = None, lr: float = 0.02, **options: Any) -> GANTask:
    torch.manual_seed(0)
    generator = generator or TinyGenerator()
    discriminator = discriminator or Discriminator(base_channels=4, num_classes=3, spectral_norm=True, image_size=8)
    optimizers = [torch.optim.Adam(item.parameters(), lr, betas=(0.5, 0.999)) for item in (generator, discriminator)]
    return GANTask(generator, discriminator, *optimizers, **options)


def dcgan(**options: Any) -> GANTask:
    shape: dict[str, Any] = {"base_channels": 4, "image_size": 8, "num_classes": 3}
    torch.manual_seed(0)
    return make_task(Generator(**shape), Discriminator(**shape, spectral_norm=True), **options)


def signed(images: Tensor) -> Tensor:
    return images * 2 - 1


def loader(batch_size: int = 4, count: int = 24) -> Loader:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    dataset = ImageDataset(pixels, torch.arange(count) % 3, ("a", "b", "c"))
    return Loader(dataset, batch_size, transform=signed, shuffle=True)


def fit(
    task: GANTask, *callbacks: Callback, batch_size: int = 4, epochs: int = 2, resume: Any = None, **options: Any
) -> Run:
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, progress=False, **options)
    return trainer.fit(task, loader(batch_size), loader(5, 10), resume=resume)


# Losses.


def logits_of(task: GANTask) -> tuple[Tensor, Tensor]:
    """Return the logits on real and made images of the first update from seed 7."""
    torch.manual_seed(7)
    seeds = torch.randint(0, 2**62, (12,))
    fake = task.generator(Draws(0, 0, seeds).normal(16), LABELS)
    return task.discriminator(IMAGES, LABELS), task.discriminator(fake, LABELS)


@pytest.mark.parametrize(
    ("loss", "of_discriminator", "of_generator"),
    [
        ("hinge", lambda real, fake: (1 - real).clamp(min=0) + (1 + fake).clamp(min=0), lambda fake: -fake),
        (
            "non_saturating",
            lambda real, fake: -real.sigmoid().log() - (1 - fake.sigmoid()).log(),
            lambda fake: -fake.sigmoid().log(),
        ),
    ],
)
def test_losses_have_their_closed_form(
    loss: str, of_discriminator: Callable[..., Tensor], of_generator: Callable[..., Tensor]
) -> None:
    task = make_task(loss=loss)
    on_real, on_fake = logits_of(task)
    torch.manual_seed(7)
    first, second = list(task.updates([IMAGES, LABELS]))
    assert [first.optimizer, second.optimizer] == ["discriminator", "generator"]
    torch.testing.assert_close(first.loss, of_discriminator(on_real, on_fake).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        second.loss, of_generator(on_fake).mean(), rtol=1e-4, atol=1e-4
    )  # nothing has been stepped in between
    assert first.metrics["real_acc"] == (on_real > 0).float().mean()
    assert first.metrics["fake_acc"] == (on_fake < 0).float().mean()


def test_evaluate_returns_sums_and_counts() -> None:
    task = make_task(loss="hinge").eval()
    on_real, on_fake = logits_of(task)
    torch.manual_seed(7)
    results = task.evaluate([IMAGES, LABELS])
    torch.testing.assert_close(results["discriminator_loss"][0], (F.relu(1 - on_real) + F.relu(1 + on_fake)).sum())
    torch.testing.assert_close(results["generator_loss"][0], -on_fake.sum())
    torch.testing.assert_close(results["discriminator_real_acc"], ((on_real > 0).sum(), 12))
    torch.testing.assert_close(results["discriminator_fake_acc"], ((on_fake < 0).sum(), 12))


def test_one_augmentation_is_used_for_real_and_made_images_in_training_alone() -> None:
    shown: list[Tensor] = []

    def record(images: Tensor, draws: Draws) -> Tensor:
        shown.append(images)
        return images * 0.5

    task, judged = make_task(augment=record), []
    task.discriminator.register_forward_pre_hook(lambda layer, inputs: judged.append(inputs[0]))
    list(task.updates([IMAGES, LABELS]))
    assert torch.equal(shown[0], IMAGES)
    assert torch.equal(shown[1], shown[2])
    assert [item.requires_grad for item in shown] == [False, False, True]
    assert all(torch.equal(seen, 0.5 * image) for seen, image in zip(judged, shown, strict=True))
    task.evaluate([IMAGES, LABELS])
    assert len(shown) == 3


# Order and leaks.


def test_the_generator_is_judged_by_the_new_discriminator_and_leaves_no_gradient_there() -> None:
    task = dcgan(augment=DifferentiableAugmentation(), loss="hinge")
    updates = task.updates([IMAGES, LABELS])
    next(updates).loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in task.generator.parameters())
    assert all(p.grad is not None for p in task.discriminator.parameters())
    task.zero_grad()
    with torch.no_grad():
        task.discriminator.get_parameter("head.bias").fill_(50.0)
    second = next(updates)
    assert second.loss.item() == pytest.approx(-50, abs=5)
    second.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and p.requires_grad for p in task.discriminator.parameters())
    assert all(p.grad is not None for p in task.generator.parameters())


def test_frozen_restores_the_flags_it_found_also_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    with frozen(network) as judge:
        assert not any(parameter.requires_grad for parameter in judge.parameters())
    with pytest.raises(RuntimeError, match="mat1 and mat2"), frozen(network):
        network(torch.ones(1, 3))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, False, False]


def test_the_trainer_steps_both_in_turn() -> None:
    task, steps = make_task(), []
    for name, optimizer in task.optimizers.items():
        optimizer.register_step_post_hook(lambda *_, name=name: steps.append(name))  # type: ignore[misc]
    run = fit(task, epochs=1)
    assert steps == ["discriminator", "generator"] * 6
    assert {"train_discriminator_loss", "train_generator_loss", "train_discriminator_real_acc"} <= {*run.metrics}
    assert {"val_discriminator_loss", "val_generator_loss", "val_discriminator_fake_acc"} <= {*run.metrics}


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_micro_batches_do_what_one_big_batch_does(loss: str) -> None:
    weights = []
    for batch_size, factor in ((12, 1), (3, 4)):
        task = make_task(loss=loss, augment=DifferentiableAugmentation())
        torch.manual_seed(3)
        fit(task, batch_size=batch_size, accumulate_grad_batches=factor, epochs=3)
        weights.append(task.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_it_trains_without_labels() -> None:
    task = make_task(
        Generator(base_channels=4, image_size=8, latent_dim=5), Discriminator(base_channels=4, image_size=8)
    )
    assert len(list(task.updates([IMAGES]))) == 2
    assert len(list(task.updates([IMAGES, LABELS]))) == 2
    assert task.generate(torch.zeros(2, 5)).shape == (2, 3, 8, 8)
    assert fit(task, precision="bf16-mixed").step == 12


def test_it_trains_in_double_precision() -> None:
    task = dcgan(augment=DifferentiableAugmentation())
    task.double()
    first, second = task.updates([IMAGES.double(), LABELS])
    assert first.loss.isfinite()
    assert second.loss.isfinite()
    assert task.generate(torch.zeros(2, task.latent_dim), LABELS[:2]).dtype == torch.float64
    assert task.inputs_of("generator", [IMAGES.double(), LABELS])[0].dtype == torch.float64


def test_networks_in_bf16_train_on_images_of_any_precision() -> None:
    task = dcgan(augment=DifferentiableAugmentation())
    task.bfloat16()
    for images in (IMAGES, IMAGES.bfloat16()):
        assert all(update.loss.isfinite() for update in task.updates([images, LABELS]))
        assert task.inputs_of("discriminator", [images, LABELS])[0].dtype == torch.bfloat16


def test_a_generator_on_a_gpu_is_asked_from_the_cpu() -> None:
    """No GPU is needed: fake tensors hold no numbers, but know where they are and refuse to meet others elsewhere."""
    task = make_task()
    with FakeTensorMode():
        with torch.device("cuda"):
            task.generator = TinyGenerator()
        latents, labels = torch.randn(2, 16), torch.arange(2)
        with pytest.raises(RuntimeError, match="device"):
            task.generator(latents, labels)
        assert task.generate(latents, labels).device.type == "cpu"
        assert task.generate(latents.cuda(), labels).device.type == "cuda"


def test_it_learns_the_mean_of_the_images() -> None:
    task, images = make_task(lr=0.01), torch.full((16, 3, 8, 8), 0.6)
    images[:, 0] = -0.5
    Trainer(max_epochs=1, progress=False).fit(task, [(images, torch.arange(16) % 3)] * 50)
    with torch.no_grad():
        red, green, blue = task.generate(torch.randn(64, 16), torch.arange(64) % 3).mean((0, 2, 3)).tolist()
    assert red < -0.1 < 0.05 < min(green, blue)


# Resume.


def outcome(run: Run) -> dict[str, Any]:
    clocks = ("seconds", "images_per_second")
    return {
        **{f"task.{name}": tensor for name, tensor in run.task.state_dict().items()},
        **{
            f"{name}.{index}.{key}": tensor
            for name, optimizer in run.task.optimizers.items()
            for index, state in optimizer.state_dict()["state"].items()
            for key, tensor in state.items()
        },
        "rng": RngState.capture().torch_cpu,
        "history": [{name: value for name, value in row.items() if name not in clocks} for row in run.history],
    }


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_run_goes_on_bit_for_bit(options: dict[str, Any], step: int, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == step:
                run.stop("far enough")

    def train(*callbacks: Callback, seed: int = 0, resume: Any = None) -> Run:
        task = dcgan(loss="hinge", augment=DifferentiableAugmentation())
        torch.manual_seed(seed)
        average = ExponentialMovingAverage(0.9, network="generator")
        return fit(task, average, *callbacks, resume=resume, **options)

    whole = outcome(train())
    train(Stop(), ModelCheckpoint(tmp_path))
    resumed = outcome(train(seed=99, resume=tmp_path))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        same = torch.equal(value, resumed[name]) if isinstance(value, Tensor) else value == resumed[name]
        assert same, name


def test_the_averaged_generator_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    average = ExponentialMovingAverage(0.9, network="generator")
    fit(dcgan(), average, ModelCheckpoint(tmp_path), epochs=1)
    generator = Generator(base_channels=4, image_size=8, num_classes=3)
    load_weights(generator, tmp_path / "last.pt", average="ema")
    assert average.averaged is not None
    expected = average.averaged.module.get_submodule("generator")
    latents = torch.randn(3, 128)
    assert torch.equal(generator.eval()(latents, LABELS[:3]), expected(latents, LABELS[:3]))


# What does not fit.


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-1, 2)])
def test_labels_out_of_range_are_named(low: int, high: int) -> None:
    labels = torch.tensor([low, high] + [1] * 10)
    message = f"labels run from {low} to {high}; for num_classes=3 they must be 0 to 2"
    for use in (lambda task, batch: next(task.updates(batch)), lambda task, batch: task.evaluate(batch)):
        with pytest.raises(ValueError, match=message):
            use(make_task(), [IMAGES, labels])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (IMAGES, TypeError, r"a batch must be \(images, labels\), a tuple of tensors; got Tensor"),
        ([IMAGES, LABELS.tolist()], TypeError, r"got list of \['Tensor', 'list'\]"),
        ([IMAGES[:0], LABELS[:0]], ValueError, r"images must be \(B, C, H, W\), B at least 1; got shape \(0, "),
        ([IMAGES], TypeError, r"labels=None, but the network has num_classes=3; give int64 labels \(12,\)"),
        ([IMAGES, LABELS.float()], TypeError, r"labels must be an int64 tensor \(12,\); got torch.float32"),
        ([IMAGES.byte(), LABELS], TypeError, r"images must be float in \[-1, 1\]; got torch.uint8: use Normalize"),
        ([IMAGES / 2 + 0.5, LABELS], ValueError, r"images run from .* to 1, but a generator makes \[-1, 1\]"),
        ([IMAGES * 3, LABELS], ValueError, r"images run from -.* to .*, but a generator makes \[-1, 1\]"),
        ([IMAGES * torch.nan, LABELS], ValueError, "images hold NaN or infinite values in the first batch"),
    ],
)
def test_a_first_batch_that_does_not_fit_is_named(batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        next(make_task().updates(batch))


def test_networks_and_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="generator has num_classes=3, discriminator num_classes=None; give both one"):
        make_task(discriminator=Discriminator(image_size=8))
    with pytest.raises(TypeError, match=r"generator.latent_dim=None is a NoneType; give an integer"):
        make_task(generator=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="loss='wasserstein' is unknown; use 'non_saturating' or 'hinge'"):
        make_task(loss="wasserstein")
    with pytest.raises(TypeError, match=r"augment is 0\.5; give DifferentiableAugmentation"):
        make_task(augment=0.5)
    adam = torch.optim.Adam(TinyGenerator().parameters())
    with pytest.raises(TypeError, match=r"give GANTask generator, .*; got TinyGenerator, Linear, Adam, type$"):
        GANTask(TinyGenerator(), nn.Linear(1, 1), adam, torch.optim.Adam)  # type: ignore[arg-type]
    task = make_task()
    task.discriminator = nn.Module()
    task.discriminator.forward = lambda images, labels: images  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"the discriminator must return logits \(B,\); it returned shape \(12, 3, 8, 8\)"
    ):
        next(task.updates([IMAGES, LABELS]))
