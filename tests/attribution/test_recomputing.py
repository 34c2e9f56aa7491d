"""Early layers computed in changed rectangles only: the logits of the whole network, or the network itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution import attribute
from cifarkit.attribution import occlusion as module
from cifarkit.attribution.question import ask
from cifarkit.attribution.recomputing import recomputing
from cifarkit.models import SpeedNet, VisionTransformer, resnet18

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Reused(nn.Module):
    """Adds what an activation has changed in place, which no copy of the map from before may replace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.head((self.second(F.relu(maps, inplace=True)) + maps).mean((2, 3)))


class Plain(nn.Module):
    """Functional calls, a pool and no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.first(images))
        maps = self.pool(maps + torch.tanh(self.second(maps)))
        return self.head(maps.mean((2, 3)))


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    if kind is resnet18:
        model: nn.Module = resnet18(3)
    elif kind is SpeedNet:
        model = SpeedNet(3, widths=(8, 8, 8))
    else:
        model = VisionTransformer(image_size=16, dim=12, depth=1, heads=2, num_classes=3, attention="self")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
    return model.eval()


@torch.no_grad()
def occluded(images: Tensor, size: int) -> Tensor:
    copies = [images.clone() for _ in range(5)]
    for place, copy in enumerate(copies[1:]):
        copy[:, :, 3 * place : 3 * place + size, 13 - 4 * place : 13 - 4 * place + size] = 0
    return torch.cat(copies)


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("kind", [resnet18, SpeedNet])
@torch.no_grad()
def test_logits_are_those_of_the_network(kind: type[nn.Module], size: int) -> None:
    model, images = build(kind), IMAGES if kind is not SpeedNet else F.interpolate(IMAGES, size=32)
    ready = recomputing(ask(model, images, 0, 8, 0))
    assert ready is not None
    few = occluded(images, size)
    torch.testing.assert_close(ready.around(images)(few), model(few), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Plain, Reused])
@torch.no_grad()
def test_functional_and_in_place_calls_are_followed_or_refused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    ready, few = recomputing(ask(model, IMAGES, 0, 8, 0)), occluded(IMAGES, 3)
    if ready is None:
        assert kind is Reused
    else:
        torch.testing.assert_close(ready.around(IMAGES)(few), model(few), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_stay_float32_in_bf16() -> None:
    ready = recomputing(ask(build(resnet18), IMAGES, 0, 8, 0))
    assert ready is not None
    with torch.autocast("cpu", torch.bfloat16):
        logits = ready.around(IMAGES)(occluded(IMAGES, 3))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


class Choosy(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def test_whole_images_go_through_networks_that_cannot_be_followed() -> None:
    hooked = Plain().eval()
    hooked.first.register_forward_hook(lambda part, inputs, output: output * 2)
    for model in (hooked, Choosy().eval()):
        assert recomputing(ask(model, IMAGES, 0, 8, 0)) is None
        assert attribute(model, IMAGES, 0, "occlusion", window=3, stride=2).any()


@pytest.mark.parametrize("kind", [resnet18, VisionTransformer])
def test_occlusion_is_what_it_is_on_whole_images(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = build(kind), {"window": 3, "stride": 2, "max_batch": 50}
    found = attribute(model, IMAGES, None, "occlusion", **options)
    monkeypatch.setattr(module, "recomputing", lambda question: None)
    whole = attribute(model, IMAGES, None, "occlusion", **options)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [1, 7, 16, 200])
def test_max_batch_bounds_the_passes_that_compute_rectangles(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = build(resnet18), [0]
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *weights: (sizes.append(len(x)), linear(x, *weights))[1])
    found = attribute(model, IMAGES, 1, "occlusion", window=4, stride=2, max_batch=most)
    assert max(sizes) <= most
    whole = attribute(model, IMAGES, 1, "occlusion", window=4, stride=2)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_no_graph_is_recorded() -> None:
    ready, recorded = recomputing(ask(build(resnet18), IMAGES, 0, 8, 0)), []
    assert ready is not None
    for part in ready.network.modules():
        part.register_forward_hook(lambda part, inputs, output: recorded.append(output.requires_grad))
    assert not ready.around(IMAGES)(occluded(IMAGES, 3)).requires_grad
    assert recorded
    assert not any(recorded)


def test_occlusion_and_deep_lift_leave_out_labels_that_a_network_may_take() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embed, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(5, 4), nn.Linear(4, 5)

        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            h = self.conv(images).relu().mean((2, 3))
            logits: Tensor = self.head(h if labels is None else h + self.embed(labels))
            return logits

    torch.manual_seed(0)
    model, images = Labelled().eval(), torch.randn(2, 3, 12, 12)
    bare = nn.Sequential(model.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head).eval()
    for method in ("occlusion", "deep_lift"):
        expected = attribute(bare, images, 1, method)
        torch.testing.assert_close(attribute(model, images, 1, method), expected, rtol=1e-4, atol=1e-6)
