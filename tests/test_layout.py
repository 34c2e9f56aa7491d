"""Networks that take feature maps for vectors by view, which channels_last does not allow."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifarkit import ClassificationTask, ModelCheckpoint, Trainer, data, generation, lr_find, predict, seed_everything
from cifarkit.attribution import attribute, completeness_error, deletion_curve
from cifarkit.diffusion import as_denoiser
from cifarkit.layout import EitherLayout, lay_out, refuses_channels_last
from cifarkit.training import ExponentialMovingAverage, StochasticWeightAveraging


class LeNet(nn.Module):
    """The network of many a first course, with BatchNorm and dropout so that a pass leaves traces."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6), nn.Dropout(0.2), nn.MaxPool2d(2))
        self.classifier = nn.Linear(6 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        logits: Tensor = self.classifier(x.view(-1, 6 * 14 * 14))
        return logits


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        return h.view(len(x), -1).view(x.shape)


def make_task(seed: int = 0) -> ClassificationTask:
    seed_everything(seed)
    model = LeNet()
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def trainer(**options: Any) -> Trainer:
    return Trainer(**({"max_epochs": 2, "progress": False} | options))


IMAGES = data.shapes(64)
FLOATS = IMAGES.images.float() / 255


def test_it_trains_as_by_a_plain_loop() -> None:
    task, plain = make_task(), make_task()
    loader = data.Loader(IMAGES, 32)
    seed_everything(1)
    with pytest.warns(UserWarning, match="images keep the usual layout, .* Use flatten") as seen:
        trainer().fit(task, loader, loader)
    assert len(seen) == 1
    seed_everything(1)
    plain.train()
    for _ in range(2):
        for images, labels in data.Loader(IMAGES, 32):
            loss = nn.functional.cross_entropy(plain.model(images), labels)
            plain.optimizers["model"].zero_grad()
            loss.backward()
            plain.optimizers["model"].step()
    for found, expected in zip(task.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected)


def test_its_averages_are_validated_too() -> None:
    averages = [ExponentialMovingAverage(0.5), StochasticWeightAveraging(start=0.0)]
    with pytest.warns(UserWarning, match="usual layout"):
        run = trainer(callbacks=averages).fit(make_task(), data.Loader(IMAGES, 32), data.Loader(IMAGES, 32))
    assert {"val_loss_ema", "val_loss_swa"} <= run.history[0].keys()


def test_the_first_attempt_takes_back_no_draws_of_the_loader() -> None:
    task, plain = make_task(), make_task()
    loader = DataLoader(TensorDataset(FLOATS, IMAGES.labels), 32, shuffle=True)
    seed_everything(1)
    with pytest.warns(UserWarning, match="usual layout"):
        trainer(max_epochs=1).fit(task, loader)
    seed_everything(1)
    plain.train()
    for images, labels in loader:
        plain.optimizers["model"].zero_grad()
        nn.functional.cross_entropy(plain.model(images), labels).backward()  # type: ignore[no-untyped-call]
        plain.optimizers["model"].step()
    for found, expected in zip(task.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected)


def test_it_is_evaluated_and_swept() -> None:
    task, loader = make_task(), data.Loader(IMAGES, 32)
    with pytest.warns(UserWarning, match="usual layout"):
        assert trainer().evaluate(task, loader).keys() == {"val_loss", "val_acc"}
    with pytest.warns(UserWarning, match="usual layout"):
        assert len(lr_find(make_task(), loader, steps=10).losses) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the task remembers
        assert len(lr_find(task, loader, steps=10).losses) == 10


def test_it_continues_bit_for_bit(tmp_path: Path) -> None:
    loader = data.Loader(IMAGES, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected, task = make_task(), make_task()
        seed_everything(2)
        trainer().fit(expected, loader)
        seed_everything(2)
        trainer(max_steps=3, callbacks=[ModelCheckpoint(tmp_path, every_n_steps=3)]).fit(task, loader)
        resumed = make_task(5)
        trainer(callbacks=[ModelCheckpoint(tmp_path)]).fit(resumed, loader, resume=tmp_path)
    for found, wanted in zip(resumed.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("views", [1, 2, 6])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [3, 600])  # without and with a frozen copy
def test_it_predicts(views: int, precision: str, count: int) -> None:
    model = LeNet().eval()
    images = FLOATS.repeat(10, 1, 1, 1)[:count]
    logits = predict(model, images, precision=precision, views=views)
    if views == 1 and precision == "fp32":
        torch.testing.assert_close(logits, model(images))
    trained = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(trained, images, precision=precision, views=views), logits)


@pytest.mark.parametrize("method", ["saliency", "occlusion", "integrated_gradients"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_explained(method: str, precision: str) -> None:
    model, images = LeNet().eval(), FLOATS[:2]
    maps = attribute(model, images, 3, method, precision=precision)
    assert maps.shape == images.shape
    assert completeness_error(model, images, 3, maps).shape == (2,)
    assert deletion_curve(model, images, 3, maps).scores.shape[-1] > 1


def test_it_gives_features_and_denoises() -> None:
    assert generation.features(LeNet(), FLOATS[:5], transform=lambda images: images).shape == (5, 6 * 14 * 14)
    denoiser = Denoiser()
    expected = denoiser(FLOATS[:2], torch.zeros(2, dtype=torch.int64))
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):
        found = as_denoiser(denoiser, precision=precision)(FLOATS[:2], torch.zeros(2, dtype=torch.int64))
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


class Embedded(nn.Module):
    """A network with a weight of five dimensions, which channels_last knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 3, 1, 32, 32))
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images + self.places[:, :, 0])
        return logits


def test_a_weight_of_five_dimensions_stays_as_it_is() -> None:
    model, loader = Embedded(), data.Loader(IMAGES, 32)
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    run = trainer(max_epochs=1, callbacks=[ExponentialMovingAverage(0.5)]).fit(task, loader, loader)
    assert "val_loss_ema" in run.metrics
    assert model.layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert predict(model, FLOATS.repeat(10, 1, 1, 1)).shape == (640, 10)
    assert attribute(model.eval(), FLOATS[:2], 3, "occlusion").shape == (2, 3, 32, 32)


def test_a_sweep_leaves_buffers_in_their_layout() -> None:
    model = Embedded()
    model.register_buffer("table", torch.rand(2, 3, 4, 5))
    task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
    lr_find(task, data.Loader(IMAGES, 32), steps=10)
    assert model.table.is_contiguous()


def test_laying_out_is_what_pytorch_does() -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        found, expected = LeNet(), LeNet()
        found.features[0].weight.grad = torch.rand(6, 3, 5, 5)
        assert lay_out(found, layout) is found
        expected.to(memory_format=layout)
        for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
            assert one.stride() == other.stride()
        assert found.features[0].weight.grad.is_contiguous(memory_format=layout)


def test_other_errors_are_left_alone() -> None:
    calls = []

    def fail(images: Tensor) -> Tensor:
        calls.append(images.shape)
        raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="out of something"):
        EitherLayout(fail)(FLOATS)
    assert len(calls) == 1
    assert not refuses_channels_last(ValueError("view size is not compatible"))
