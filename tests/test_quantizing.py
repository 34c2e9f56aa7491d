"""Eight bits: near the float network, image by image, the model untouched, and a fallback that says why."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from cifarkit import predict
from cifarkit.models import SpeedNet, resnet18
from cifarkit.quantizing import QuantizedNetwork

pytestmark = pytest.mark.skipif(
    "onednn" not in torch.backends.quantized.supported_engines, reason="PyTorch without oneDNN"
)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        logits: Tensor = self.head((x + self.third(self.second(x).relu())).relu().amax((2, 3)))
        return logits


class SkippingAConvolution(Residual):
    """A sum that PyTorch's fused kernel spoils: it overwrites what the convolution still reads."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        logits: Tensor = self.head((x + self.second(x)).relu().amax((2, 3)))
        return logits


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1)[:, :12])
        return logits if images.sum() > 0 else -logits


def photos(count: int = 40, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def built(model: nn.Module, side: int = 12) -> nn.Module:
    """Give BatchNorm statistics of its own."""
    torch.manual_seed(0)
    model.train()
    for _ in range(3):
        model(photos(64, side))
    return model.eval()


def distance(found: Tensor, expected: Tensor) -> float:
    """Compare with the deviation of the logits over the images."""
    return float(torch.norm(found - expected) / torch.norm(expected - expected.mean(0)))


@pytest.mark.parametrize(("model", "side"), [(Residual(), 12), (resnet18(), 16), (SpeedNet(widths=(8, 16, 16)), 24)])
def test_logits_are_near_those_of_the_float_network(model: nn.Module, side: int) -> None:
    built(model, side)
    images = photos(side=side)
    found = predict(model, images, precision="int8", batch_size=16)
    expected = predict(model, images, precision="fp32")
    assert found.dtype == torch.float32
    assert 0 < distance(found, expected) < 0.15


def test_products_are_those_of_the_rounded_numbers() -> None:
    """By the definition: whole steps of images times the layer's own rounded weights, to half a step of the output."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).eval()
    steps = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    steps[0, 0, 0, :2] = torch.tensor([0, 255])
    layer = getattr(QuantizedNetwork(model, steps / 255).network, "0")
    rounded = layer.weight().dequantize()
    assert (rounded - model[0].weight).abs().max() <= 0.51 * model[0].weight.abs().max() / 127
    images = torch.quantize_per_tensor(steps / 255, 1 / 255, 0, torch.quint8)
    found, exact = layer(images).dequantize(), nn.functional.conv2d(steps / 255, rounded, model[0].bias, padding=1)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.51 * layer.scale)


def test_an_image_alone_gives_what_it_gives_among_others() -> None:
    model, images = built(Residual()), photos()
    quantized = QuantizedNetwork(model, images)
    assert torch.equal(torch.cat([quantized(image[None]) for image in images]), quantized(images))


def test_model_engine_and_warnings_stay_as_they_were() -> None:
    model = built(Residual())
    before, engine = (
        {name: value.clone() for name, value in model.state_dict().items()},
        torch.backends.quantized.engine,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(model, photos(), precision="int8", views=6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.quantized.engine == engine
    assert not model.training


def test_half_precision_weights_are_taken() -> None:
    model = built(Residual())
    expected = predict(model, photos(), precision="fp32")
    assert distance(predict(model.bfloat16(), photos(), precision="int8"), expected) < 0.15


@pytest.mark.parametrize(
    ("model", "images", "why"),
    [
        (Branching(), photos(), "cannot follow the model's forward pass"),
        (built(Residual()), photos()[:0], "there are no images"),
        (built(SkippingAConvolution()), photos(), "change the logits by much"),
        (built(Residual()), torch.zeros(4, 3, 12, 12), "change the logits by much"),
    ],
)
def test_what_cannot_be_quantised_falls_back_and_says_so(model: nn.Module, images: Tensor, why: str) -> None:
    with pytest.warns(UserWarning, match=f"precision='int8' does not work here.*{why}.*'auto' is used"):
        found = predict(model, images, precision="int8")
    assert torch.equal(found, predict(model, images))


def test_a_build_without_onednn_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarkit.quantizing._ENGINE", "nothing")
    with pytest.warns(UserWarning, match="built without oneDNN"):
        predict(built(Residual()), photos(), precision="int8")
