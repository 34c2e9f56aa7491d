"""predict: the modes it finds are the modes it leaves, batches do not matter, views by hand, bad input named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.folding import fold_batchnorm
from cifarkit.inference import cpu_has_bf16, evaluation_mode, predict


class TinyNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5))
        self(torch.zeros(2, 3, 8, 8))


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(), nn.ReLU().eval())

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no power")


def photos(count: int = 10) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def shifted(images: Tensor, by: int) -> Tensor:
    """Move the picture by one pixel along the diagonal, with mirrored edges, pixel by pixel."""
    size = images.shape[2]
    index = [abs(i + by) if i + by < size else 2 * (size - 1) - (i + by) for i in range(size)]
    return images[:, :, index][:, :, :, index]


@pytest.mark.parametrize("training", [True, False])
def test_every_part_keeps_its_mode(training: bool) -> None:
    model = TinyNet().train(training)
    model[1].eval()  # a frozen BatchNorm
    before, buffers = modes(model), [buffer.clone() for buffer in model.buffers()]
    predict(model, photos())
    assert modes(model) == before
    assert all(torch.equal(old, new) for old, new in zip(buffers, model.buffers(), strict=True))


def test_modes_come_back_after_an_exception() -> None:
    model = Broken()
    before = modes(model)
    assert True in before
    assert False in before
    with pytest.raises(RuntimeError, match="no power"):
        predict(model, photos())
    assert modes(model) == before
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


@pytest.mark.parametrize("views", [1, 2, 6])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_the_batch_size_does_not_matter(batch_size: int, views: int) -> None:
    model = TinyNet()
    logits = predict(model, photos(), batch_size=batch_size, precision="fp32", views=views)
    assert logits.shape == (10, 5)
    torch.testing.assert_close(logits, predict(model, photos(), precision="fp32", views=views), atol=1e-5, rtol=1e-5)


def test_views_are_the_averages_they_say() -> None:
    model, images = TinyNet().eval(), photos()

    def both(batch: Tensor) -> Tensor:
        logits: Tensor = (model(batch) + model(batch.flip(3))) / 2
        return logits

    with torch.no_grad():
        one, two = model(images), both(images)
        six = both(images) / 2 + both(shifted(images, -1)) / 4 + both(shifted(images, 1)) / 4
    for views, expected in ((1, one), (2, two), (6, six)):
        torch.testing.assert_close(predict(model, images, precision="fp32", views=views), expected)


def test_logits_are_float32_on_the_cpu_without_a_graph() -> None:
    for precision in ("auto", "fp32", "bf16"):
        logits = predict(TinyNet(), photos(), precision=precision)
        assert logits.dtype == torch.float32
        assert logits.device.type == "cpu"
        assert not logits.requires_grad
    assert predict(nn.Flatten(), photos()).shape == (10, 192)  # a model without parameters has no device of its own


def test_precision_is_what_the_model_computes_in() -> None:
    def probe(precision: str) -> torch.dtype:
        seen: list[torch.dtype] = []
        model = TinyNet()
        model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        predict(model, photos(), precision=precision)
        return seen[0]

    assert probe("fp32") == torch.float32
    assert probe("bf16") == torch.bfloat16
    assert probe("auto") == (torch.bfloat16 if cpu_has_bf16() else torch.float32)


def test_a_float64_model_predicts_to_float32() -> None:
    assert predict(TinyNet().double(), photos().double(), precision="fp32").dtype == torch.float32


def test_images_take_the_dtype_of_the_model() -> None:
    model = TinyNet()
    torch.testing.assert_close(predict(model, photos().double()), predict(model, photos()))


def test_the_trainers_name_of_a_precision_is_known() -> None:
    model = TinyNet()
    assert torch.equal(predict(model, photos(), precision="bf16-mixed"), predict(model, photos(), precision="bf16"))


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(3, 8, 8), {}, ValueError, r"images must be \(N, C, H, W\); got shape \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {}, TypeError, "images must be float, .*got torch.uint8"),
        ([1, 2], {}, TypeError, r"images is a list; give a tensor \(N, C, H, W\)"),
        (photos(), {"batch_size": 16.0}, TypeError, r"batch_size=16\.0 is a float; give an integer"),
        (photos(), {"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        (photos(), {"views": 3}, ValueError, r"views=3 is not offered; use 1, 2 \(mirror\) or 6"),
        (
            photos(),
            {"precision": "fp8"},
            ValueError,
            "precision='fp8' is unknown; use 'auto', 'fp32', 'bf16' or 'int8'",
        ),
    ],
)
def test_mistakes_are_named(images: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        predict(TinyNet(), images, **options)


def test_a_model_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match=r"model is a function; give a torch\.nn\.Module"):
        predict(photos, photos())  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [3, 99])
def test_logits_can_be_changed_and_trained_on(batch_size: int) -> None:
    model = TinyNet()
    logits = predict(model, photos(), batch_size=batch_size, precision="fp32")
    expected = logits / 2
    logits /= 2
    assert torch.equal(logits, expected)
    temperature = nn.Parameter(torch.ones(5))
    (logits * temperature).square().sum().backward()
    torch.testing.assert_close(temperature.grad, 2 * expected.square().sum(0))


def test_what_a_model_keeps_from_predicting_serves_in_training() -> None:
    class Caching(nn.Linear):
        table: Tensor | None = None

        def forward(self, images: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.linspace(0, 1, self.in_features)
            logits: Tensor = super().forward(images.flatten(1) * self.table)
            return logits

    model = Caching(192, 5)
    predict(model, photos())
    model(photos().requires_grad_()).sum().backward()
    assert model.weight.grad is not None


def test_reflected_edges_are_those_of_pytorch() -> None:
    assert torch.equal(shifted(photos(), -1), F.pad(photos(), (1, 1, 1, 1), "reflect")[:, :, :8, :8])


def test_only_the_unsure_share_gets_further_views() -> None:
    model, images = TinyNet().eval(), photos(20)
    one, all_views = (predict(model, images, precision="fp32", views=views) for views in (1, 6))
    some = predict(model, images, precision="fp32", views=6, unsure=0.25)
    best = one.topk(2).values
    unsure = torch.zeros(20, dtype=torch.bool).index_fill(0, (best[:, 0] - best[:, 1]).argsort()[:5], True)
    torch.testing.assert_close(some[unsure], all_views[unsure])
    assert torch.equal(some[~unsure], one[~unsure])


@pytest.mark.parametrize(("unsure", "views"), [(0.0, 1), (1.0, 6)])
def test_no_and_all_images_unsure_are_one_view_and_all_views(unsure: float, views: int) -> None:
    model, images = TinyNet(), photos()
    assert torch.equal(predict(model, images, views=6, unsure=unsure), predict(model, images, views=views))


def test_a_share_is_checked() -> None:
    with pytest.raises(ValueError, match="unsure=2 must be"):
        predict(TinyNet(), photos(), views=2, unsure=2)


def test_many_images_go_through_a_folded_copy_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = TinyNet(), photos(40)
    model(photos(30))  # statistics
    calls = []
    monkeypatch.setattr("cifarkit.inference.fold_batchnorm", lambda network: calls.append(1) or fold_batchnorm(network))
    plain = predict(model, images, precision="fp32")
    monkeypatch.setattr("cifarkit.inference._WORTH_FREEZING", 40)
    torch.testing.assert_close(predict(model, images, precision="fp32"), plain, atol=1e-5, rtol=1e-5)
    assert calls == [1]


def test_a_network_in_bf16_classifies_float_images_however_many() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).bfloat16().eval()
    images = torch.randn(600, 3, 4, 4)
    torch.testing.assert_close(
        predict(network, images, precision="bf16")[:9],
        predict(network, images[:9], precision="bf16"),
        atol=0.05,
        rtol=0.05,
    )


def test_a_copy_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = TinyNet(), photos(40)
    plain = predict(model, images, precision="fp32")
    monkeypatch.setattr("cifarkit.inference._WORTH_FREEZING", 40)
    monkeypatch.setattr("cifarkit.inference.fold_batchnorm", lambda network: TinyNet().eval())
    assert torch.equal(predict(model, images, precision="fp32"), plain)


class Labelled(nn.Module):
    """A network that may be told labels, which a tracer's stand-ins would have it believe."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.embed = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.norm(self.conv(images)).relu().mean((2, 3))
        if labels is not None:
            h = h + self.embed(labels)
        logits: Tensor = self.head(h)
        return logits


def test_a_network_that_takes_labels_as_well_is_folded_without_them() -> None:
    model, images = Labelled().eval(), photos(600)
    folded = fold_batchnorm(model)
    assert folded is not None
    assert "norm" not in {node.target for node in folded.graph.nodes}
    with torch.no_grad():
        torch.testing.assert_close(folded(images[:9]), model(images[:9]), rtol=1e-4, atol=1e-5)
    found = predict(model, images, precision="fp32")
    torch.testing.assert_close(found[:5], predict(model, images[:5], precision="fp32"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 600])
def test_the_callers_autocast_changes_neither_fp32_nor_its_own_gradients(count: int) -> None:
    model, images = TinyNet(), photos(count)
    expected = predict(model, images, precision="fp32")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(model, images, precision="fp32"), expected)
        predict(model, images, precision="bf16")
        model(images[:3]).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("count", [3, 600])
def test_a_model_that_returns_no_tensor_is_named(count: int) -> None:
    class Pair(TinyNet):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images), images

    model = TinyNet()
    model.__class__ = Pair
    for views in (1, 2):
        with pytest.raises(TypeError, match=r"model returns a tuple; it must return logits \(B, K\), a tensor"):
            predict(model, photos(count), views=views)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("count", [3, 600])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_works_in_place_leaves_the_images_alone(channels: int, count: int, views: int) -> None:
    class InPlace(nn.Module):
        def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)
            self.flatten = flatten

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.flatten(self.norm(self.stem(images.sub_(0.5)))))
            return logits

    images = photos(count)[:, :channels]
    before = images.clone()
    for flatten in (lambda x: x.flatten(1), lambda x: x.view(len(x), -1)):  # which refuses channels_last
        model = InPlace(flatten)
        expected = [model.eval()(view.clone()).detach() for view in (images, images.flip(3))[:views]]
        found = predict(model, images, views=views, precision="fp32")
        torch.testing.assert_close(found, torch.stack(expected).mean(0))
        assert torch.equal(images, before)


@pytest.mark.parametrize("first", [torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64)])
def test_the_dtype_of_images_is_that_of_the_first_weight_of_floating_point(first: Tensor) -> None:
    class Odd(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("odd", nn.Parameter(first, requires_grad=False))  # a module's own come first

    model = Odd().eval()
    assert next(model.parameters()).dtype == first.dtype
    expected = model(photos(600)).detach()
    torch.testing.assert_close(predict(model, photos(600), precision="fp32"), expected, atol=1e-4, rtol=1e-4)
