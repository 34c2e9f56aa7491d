"""Eight bits: near the float network, image by image, the model untouched, and a fallback that says why."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cifarkit import predict, quantizing
from cifarkit.models import SpeedNet, resnet18
from cifarkit.quantizing import QuantizedNetwork

with_vnni = pytest.mark.skipif(
    not quantizing.cpu_has_vnni() or "x86" not in torch.backends.quantized.supported_engines,
    reason="a processor without VNNI",
)


class Net(nn.Module):
    """A network with a convolution before and one behind a BatchNorm, and a branch around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def sum(self, x: Tensor) -> Tensor:
        return x + self.second(x)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        logits: Tensor = self.head(self.sum(x).relu().amax((2, 3)))
        return logits


class LinearBottleneck(Net):
    """Its branch is a convolution's own output, as in MobileNetV2, where a fused sum may take the wrong one."""

    def sum(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(x)
        return y + self.third(y.relu())


class ReadTwice(Net):
    """Its branch is read again behind the sum, which a sum in place would spoil."""

    def sum(self, x: Tensor) -> Tensor:
        return (x + self.second(x)).relu() - x


class UsedTwice(Net):
    """PyTorch gives the convolution one scale for both of its results."""

    def sum(self, x: Tensor) -> Tensor:
        return x + self.second(100 * self.second(x))


class TwoHeads(Net):
    """``torch.fx`` takes the other head if it hands a mask through the network, which is never None."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 5)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.first(images)).relu().amax((2, 3))
        logits: Tensor = self.head(x) if mask is None else self.other(x)
        return logits


class Branching(Net):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if images.sum() > 0 else -logits


def weight_normed() -> nn.Module:
    model = Net()
    weight_norm(model.second)
    return model


def photos(count: int = 40, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def built(make: Callable[[], nn.Module], side: int = 12) -> nn.Module:
    """Make a network whose BatchNorms have statistics of their own."""
    torch.manual_seed(0)
    model = make().train()
    for _ in range(3):
        model(photos(64, side))
    return model.eval()


def distance(found: Tensor, expected: Tensor) -> float:
    """Compare with the deviation of the logits over the images."""
    return float(torch.norm(found - expected) / torch.norm(expected - expected.mean(0)))


@with_vnni
@pytest.mark.parametrize(
    ("make", "side"),
    [
        (Net, 12),
        (LinearBottleneck, 12),
        (ReadTwice, 12),
        (TwoHeads, 12),
        (weight_normed, 12),
        (lambda: SpeedNet(widths=(8, 16, 16)), 24),
        (resnet18, 16),
    ],
)
def test_logits_are_near_those_of_the_float_network(make: Callable[[], nn.Module], side: int) -> None:
    model, images = built(make, side), photos(side=side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(model, images, precision="int8", batch_size=16)
    assert found.dtype == torch.float32
    assert 0 < distance(found, predict(model, images, precision="fp32")) < 0.15


@with_vnni
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


@with_vnni
def test_an_image_alone_gives_what_it_gives_among_others() -> None:
    model, images = built(Net), photos()
    quantized = QuantizedNetwork(model, images)
    torch.testing.assert_close(torch.cat([quantized(image[None]) for image in images]), quantized(images))


@with_vnni
def test_model_engine_and_filters_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(Net).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine, filters = torch.backends.quantized.engine, list(warnings.filters)
    predict(model, photos(), precision="int8", views=6, unsure=0.5)
    monkeypatch.setattr("torch.ao.quantization.quantize_fx.convert_fx", lambda observed: 1 / 0)
    with pytest.warns(UserWarning, match="PyTorch cannot quantise the model: division by zero"):
        predict(model, photos(), precision="int8")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (torch.backends.quantized.engine, list(warnings.filters)) == (engine, filters)
    assert all(part.training for part in model.modules())


@with_vnni
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(dtype: torch.dtype) -> None:
    model = built(Net)
    expected = predict(model, photos(), precision="fp32")
    assert distance(predict(model.to(dtype), photos(), precision="int8"), expected) < 0.1


@with_vnni
@pytest.mark.parametrize(
    ("make", "images", "why"),
    [
        (Branching, photos(), "cannot follow the model's forward pass"),
        (UsedTwice, photos(), r"eight bits change the logits by \d+\.\d+ of their deviation; 0.2 is the most taken"),
        (Net, photos()[:1], "the logits of the images do not differ"),
        (Net, torch.zeros(4, 3, 12, 12), "the logits of the images do not differ"),
        (Net, torch.full((4, 3, 12, 12), float("nan")), "the logits of the images do not differ"),
    ],
)
def test_what_cannot_be_quantised_falls_back_and_says_so(
    make: Callable[[], nn.Module], images: Tensor, why: str
) -> None:
    model = built(make)
    with pytest.warns(UserWarning, match=f"precision='int8' does not work here.*{why}.*'auto' is used") as caught:
        found = predict(model, images, precision="int8")
    assert {item.filename for item in caught} == {__file__}
    torch.testing.assert_close(found, predict(model, images), rtol=0, atol=0, equal_nan=True)


def test_a_model_without_convolutions_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarkit.quantizing.cpu_has_vnni", lambda: True)
    with pytest.raises(ValueError, match="no convolution"):
        QuantizedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), photos())


@with_vnni
def test_hooks_are_not_left_out() -> None:
    model = built(Net)
    model.head.register_forward_hook(lambda *_: torch.zeros(1))
    with pytest.warns(UserWarning, match="or the model has hooks"):
        predict(model, photos(), precision="int8")


def test_without_vnni_and_on_another_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the model is on meta, and eight bits are for the CPU"):
        QuantizedNetwork(Net().to("meta"), photos())
    monkeypatch.setattr("cifarkit.quantizing.cpu_has_vnni", lambda: False)
    model = built(Net)
    with pytest.warns(UserWarning, match="no VNNI"):
        found = predict(model, photos(), precision="int8")
    assert torch.equal(found, predict(model, photos()))


def test_no_images_give_no_logits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert predict(built(Net), photos()[:0], precision="int8").shape == (0, 5)


@pytest.mark.parametrize(
    ("model", "images", "got"),
    [
        (photos(), Net(), "Tensor and Net"),
        (Net(), torch.zeros(8, 3, 12, 12, dtype=torch.uint8), r"Net and torch\.uint8"),
    ],
)
def test_what_is_no_network_or_no_float_images_is_named(model: Any, images: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"give a torch\.nn\.Module and images .* got {got}"):
        QuantizedNetwork(model, images)


def test_images_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\); got shape \(3, 12, 12\)"):
        QuantizedNetwork(built(Net), photos()[0])


@with_vnni
def test_a_model_that_returns_no_tensor_is_named() -> None:
    class Pair(Net):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images), images

    with pytest.raises(TypeError, match=r"model returns a tuple; it must return logits \(B, K\), a tensor"):
        predict(built(Pair), photos(), precision="int8")


@with_vnni
def test_equal_images_have_nothing_to_compare() -> None:
    with pytest.warns(UserWarning, match="the logits of the images do not differ"):
        predict(SpeedNet(widths=(8, 16, 16)).eval(), torch.zeros(3, 3, 32, 32), precision="int8")


@with_vnni
def test_a_network_that_takes_the_usual_layout_only_is_quantised_in_it() -> None:
    class Views(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8 * 12 * 12, 5)

        def forward(self, images: Tensor) -> Tensor:
            x = self.second(self.norm(self.first(images)).relu())
            logits: Tensor = self.head(x.view(len(x), -1))
            return logits

    model, images = built(Views), photos()
    expected = predict(model, images, precision="fp32")
    with warnings.catch_warnings():  # it may fall back, but must not fail
        warnings.simplefilter("ignore", UserWarning)
        assert distance(predict(model, images, precision="int8"), expected) < 0.2


def test_a_model_that_cannot_be_copied_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Net):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("one of a kind")

    monkeypatch.setattr(quantizing, "cpu_has_vnni", lambda: True)
    model = Stubborn()
    with pytest.warns(UserWarning, match="the model cannot be copied: one of a kind; 'auto' is used"):
        predict(model, photos(), precision="int8")
