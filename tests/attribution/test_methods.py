"""Every method against Captum called by hand, closed forms, bounded memory, a model left as it was, clear errors."""

import copy
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution import METHODS, attribute
from cifarkit.models import SpeedNet, resnet18

FEW = {"smooth_grad_squared": {"samples": 3, "steps": 4}, "gradient_shap": {"samples": 5}}


class TinyNet(nn.Module):
    """Convolutions, BatchNorm, a max-pool away from the ReLUs, and these separate modules: right in Captum."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.MaxPool2d(2))
        self.more = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.more(self.body(images)).mean((2, 3)))


class Recorder(nn.Module):
    """Notes how many images come in a pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes = network, [0]

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.network(images)


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorms and biases values as after training; without them a ReLU network is homogeneous."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(TinyNet() if name == "cnn" else resnet18(4))


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([2, 0, 3])
MODELS = {name: build(name) for name in ("cnn", "resnet18")}


def separate_relus(model: nn.Module) -> nn.Module:
    """Copy torchvision's ResNet-18 so that each call of a ReLU is its own module."""

    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block, self.first, self.last = block, nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            b = self.block
            out = b.bn2(b.conv2(self.first(b.bn1(b.conv1(x)))))
            return self.last(out + (x if b.downsample is None else b.downsample(x)))

    model = copy.deepcopy(model)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for index, block in enumerate(layer):
            layer[index] = Block(block)
    return model


def assert_equal_to(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_saliency_and_input_x_gradient_are_captums(name: str) -> None:
    model, images = MODELS[name], IMAGES.clone().requires_grad_()
    expected = captum.attr.Saliency(model).attribute(images, target=TARGETS)
    assert_equal_to(attribute(model, IMAGES, TARGETS, "saliency"), expected)
    signed = captum.attr.Saliency(model).attribute(images, target=TARGETS, abs=False)
    assert_equal_to(attribute(model, IMAGES, TARGETS, "saliency", absolute=False), signed)
    expected = captum.attr.InputXGradient(model).attribute(images, target=TARGETS)
    assert_equal_to(attribute(model, IMAGES, TARGETS, "input_x_gradient"), expected)


@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_are_captums(name: str) -> None:
    model, start = MODELS[name], torch.full_like(IMAGES, -0.5)
    expected = captum.attr.IntegratedGradients(model).attribute(IMAGES, start, target=TARGETS, n_steps=8)
    assert_equal_to(attribute(model, IMAGES, TARGETS, "integrated_gradients", baselines=-0.5, steps=8), expected)


@pytest.mark.parametrize("base", ["integrated_gradients", "saliency"])
@pytest.mark.parametrize("name", MODELS)
def test_smooth_grad_squared_is_captums(name: str, base: str) -> None:
    model = MODELS[name]
    settings = {"n_steps": 5, "baselines": torch.zeros_like(IMAGES)} if base == "integrated_gradients" else {}
    inner = captum.attr.IntegratedGradients(model) if settings else captum.attr.Saliency(model)
    torch.manual_seed(7)
    expected = captum.attr.NoiseTunnel(inner).attribute(
        IMAGES, nt_type="smoothgrad_sq", nt_samples=4, stdevs=0.3, target=TARGETS, **settings
    )
    options = {"samples": 4, "stdev": 0.3, "base": base} | ({"steps": 5} if settings else {})
    assert_equal_to(attribute(model, IMAGES, TARGETS, "smooth_grad_squared", seed=7, **options), expected)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_shap_is_captums(name: str) -> None:
    model, pool = MODELS[name], torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    torch.manual_seed(3)
    np.random.seed(3)
    expected = captum.attr.GradientShap(model).attribute(IMAGES, pool, n_samples=6, stdevs=0.1, target=TARGETS)
    options = {"samples": 6, "stdev": 0.1, "baselines": pool}
    assert_equal_to(attribute(model, IMAGES, TARGETS, "gradient_shap", seed=3, **options), expected)


@pytest.mark.parametrize(("window", "stride"), [(4, 2), ((4, 3), (3, 2))])
@pytest.mark.parametrize("name", MODELS)
def test_occlusion_is_captums(name: str, window: Any, stride: Any) -> None:
    shape, steps = ((3, *(value if isinstance(value, tuple) else (value, value))) for value in (window, stride))
    expected = captum.attr.Occlusion(MODELS[name]).attribute(IMAGES, shape, steps, 0.2, target=TARGETS)
    found = attribute(MODELS[name], IMAGES, TARGETS, "occlusion", window=window, stride=stride, baselines=0.2)
    assert_equal_to(found, expected)


def test_occlusion_of_many_windows_on_the_frozen_copy_is_captums() -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    expected = captum.attr.Occlusion(MODELS["cnn"]).attribute(images, (3, 3, 3), (3, 1, 1), 0.0, target=TARGETS)
    assert_equal_to(attribute(MODELS["cnn"], images, TARGETS, "occlusion", window=3, stride=1), expected)


@pytest.mark.parametrize(("name", "layer"), [("cnn", "more"), ("resnet18", "layer2")])
def test_grad_cam_is_captums(name: str, layer: str) -> None:
    model = MODELS[name]
    coarse = captum.attr.LayerGradCam(model, model.get_submodule(layer)).attribute(IMAGES, target=TARGETS)
    expected = F.interpolate(coarse, (8, 8), mode="nearest").expand_as(IMAGES)
    options = {"layer": layer, "relu": False, "interpolation": "nearest"}
    assert_equal_to(attribute(model, IMAGES, TARGETS, "grad_cam", **options), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_deep_lift_is_captums() -> None:
    start = torch.full_like(IMAGES, 0.1)
    expected = captum.attr.DeepLift(build("cnn")).attribute(IMAGES, start, target=TARGETS)
    assert_equal_to(attribute(MODELS["cnn"], IMAGES, TARGETS, "deep_lift", baselines=0.1), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stem", ["cifar", "torchvision"])
def test_deep_lift_on_resnet18_is_captums_on_a_copy_with_separate_relus(stem: str) -> None:
    torch.manual_seed(0)
    model = MODELS["resnet18"] if stem == "cifar" else with_statistics(torchvision.models.resnet18(num_classes=4))
    images = IMAGES if stem == "cifar" else torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with pytest.raises(RuntimeError, match="more than once"):
        captum.attr.DeepLift(copy.deepcopy(model)).attribute(images.clone(), target=TARGETS)
    expected = captum.attr.DeepLift(separate_relus(model)).attribute(images, target=TARGETS).detach()
    found = attribute(model, images, TARGETS, "deep_lift")
    assert_equal_to(found, expected)
    assert (found - expected).norm() < 1e-5 * expected.norm()  # the values themselves are about 1e-3


def linear() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def test_on_a_linear_model_maps_are_its_weights() -> None:
    model = linear()
    weights = model[1].weight.detach()[TARGETS].view_as(IMAGES)
    assert_equal_to(attribute(model, IMAGES, TARGETS, "saliency", absolute=False), weights)
    for method in ("input_x_gradient", "integrated_gradients", "deep_lift", "gradient_shap"):
        assert_equal_to(attribute(model, IMAGES, TARGETS, method), weights * IMAGES)
    occluded = attribute(model, IMAGES, TARGETS, "occlusion", window=1)
    assert_equal_to(occluded, (weights * IMAGES).sum(1, keepdim=True).expand_as(IMAGES))


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift"])
@pytest.mark.parametrize("name", MODELS)
def test_sums_are_within_one_per_cent_of_the_change(name: str, method: str) -> None:
    model, start = MODELS[name], IMAGES.mean((2, 3), keepdim=True).expand_as(IMAGES)
    with torch.no_grad():
        changes = model(IMAGES) - model(start)
    change, targets = changes.abs().max(1)
    maps = attribute(model, IMAGES, targets, method, baselines="mean")
    assert ((maps.sum((1, 2, 3)) - changes.gather(1, targets[:, None])[:, 0]).abs() <= 0.01 * change).all()


@pytest.mark.parametrize("method", METHODS)
def test_max_batch_bounds_every_pass_and_changes_nothing(method: str) -> None:
    model, options, sizes = build("cnn"), FEW.get(method, {}), []
    whole = attribute(model, IMAGES, TARGETS, method, **options)
    model.head.register_forward_hook(lambda part, inputs, output: sizes.append(len(output)))  # copied with the model
    parts = attribute(model, IMAGES, TARGETS, method, max_batch=2, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert max(sizes) == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_random_states_are_left_as_they_were(method: str) -> None:
    model = build("cnn").train()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(4)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before, state = copy.deepcopy(model.state_dict()), (torch.get_rng_state(), np.random.get_state()[1].copy())
    images = IMAGES.clone()
    attribute(model, images, None, method, **FEW.get(method, {}))
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [parameter.grad is not None for parameter in model.parameters()].count(True) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert not images.requires_grad
    assert not hasattr(model.more[1], "input")


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was_after_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = build("cnn").train(), torch.get_rng_state()
    calls = iter(range(100))

    def fails(images: Tensor) -> Tensor:
        assert next(calls) < 1, "power cut"
        return model.__class__.forward(model, images)

    monkeypatch.setattr(model, "forward", fails)
    with pytest.raises(AssertionError, match="power cut"):
        attribute(model, IMAGES, TARGETS, method)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["smooth_grad_squared", "gradient_shap"])
def test_noise_comes_from_the_seed_alone(method: str) -> None:
    options = FEW[method]
    one = attribute(MODELS["cnn"], IMAGES, TARGETS, method, seed=1, **options)
    torch.rand(1), np.random.rand(1)
    again = attribute(MODELS["cnn"], IMAGES, TARGETS, method, seed=1, **options)
    other = attribute(MODELS["cnn"], IMAGES, TARGETS, method, seed=2, **options)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_no_target_asks_about_the_predicted_class() -> None:
    model = MODELS["cnn"]
    predicted = model(IMAGES).argmax(1)
    found = attribute(model, IMAGES, None, "saliency")
    assert torch.equal(found, attribute(model, IMAGES, predicted, "saliency"))
    one = attribute(model, IMAGES, int(predicted[0]), "saliency")
    assert torch.equal(one[0], found[0])


def test_a_model_in_training_mode_is_asked_in_evaluation_mode() -> None:
    model = build("cnn").train()
    with pytest.warns(
        UserWarning, match=r"in training mode; it is explained in evaluation mode. Call model.eval"
    ) as seen:
        found = attribute(model, IMAGES, 0, "saliency")
    assert seen[0].filename == __file__
    assert torch.equal(found, attribute(MODELS["cnn"], IMAGES, 0, "saliency"))
    assert model.training


def test_integrated_gradients_take_more_steps_only_where_the_sum_asks_for_them() -> None:
    model = Recorder(MODELS["cnn"])
    strict = attribute(model, IMAGES, TARGETS, "integrated_gradients", tolerance=0.002, max_steps=256)
    costly = sum(model.sizes)
    model.sizes.clear()
    loose = attribute(model, IMAGES, TARGETS, "integrated_gradients", tolerance=5.0)
    assert sum(model.sizes) < costly
    exact = attribute(MODELS["cnn"], IMAGES, TARGETS, "integrated_gradients", steps=256)
    assert (strict - exact).norm() < (loose - exact).norm()


def test_integrated_gradients_warn_where_steps_run_out() -> None:
    with pytest.warns(UserWarning, match=r"still up to .* % off at max_steps=16, .* raise max_steps, or use") as seen:
        attribute(MODELS["cnn"], IMAGES, TARGETS, "integrated_gradients", tolerance=1e-9, max_steps=16)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_near_fp32_and_only_used_when_asked_for(method: str) -> None:
    model, options = MODELS["cnn"], FEW.get(method, {})
    exact = attribute(model, IMAGES, TARGETS, method, **options)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own is not taken over
        assert torch.equal(attribute(model, IMAGES, TARGETS, method, **options), exact)
    rough = attribute(model, IMAGES, TARGETS, method, precision="bf16", **options)
    assert rough.dtype == torch.float32
    assert torch.equal(rough, exact) == (method == "deep_lift")  # which is always float32
    assert F.cosine_similarity(rough.flatten(), exact.flatten(), dim=0) > 0.97


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_do_not_chase_the_rounding_of_bf16(name: str) -> None:
    model = Recorder(MODELS[name]).eval()
    attribute(model, IMAGES, None, "integrated_gradients", precision="bf16")
    assert sum(model.sizes) < 100 * len(IMAGES)


def test_works_inside_inference_mode_and_on_one_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.inference_mode():
        images = torch.randn(2, 1, 8, 8)
        assert attribute(model, images, None, "integrated_gradients").shape == images.shape
    double = attribute(model.double(), images.double(), 0, "saliency")
    assert double.dtype == torch.float64


def test_grad_cam_takes_the_last_feature_map() -> None:
    model = MODELS["resnet18"]
    assert_equal_to(
        attribute(model, IMAGES, 0, "grad_cam", relu=False),
        attribute(model, IMAGES, 0, "grad_cam", relu=False, layer=model.layer3),
    )
    assert attribute(SpeedNet(4, widths=(8, 8, 8)), torch.randn(2, 3, 32, 32), 0, "grad_cam").shape == (2, 3, 32, 32)


class Detached(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


class Decided(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(super().forward(images).argmax(1), 4).float()


@pytest.mark.parametrize("kind", [Detached, Decided])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("occlusion", "grad_cam")])
def test_refuses_a_model_without_gradient(method: str, kind: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"not differentiable.*use 'occlusion'"):
        attribute(kind().eval(), IMAGES, 0, method)


def test_grad_cam_refuses_a_model_without_gradient() -> None:
    with pytest.raises(ValueError, match="not differentiable"):
        attribute(Decided().eval(), IMAGES, 0, "grad_cam")


@pytest.mark.filterwarnings("ignore:occlusion. every attribution is 0")
def test_occlusion_needs_no_gradient() -> None:
    assert attribute(Decided().eval(), IMAGES, None, "occlusion").isfinite().all()


def test_an_answer_that_never_changes_is_warned_about() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match="every attribution is 0"):
        attribute(model, IMAGES, 0, "occlusion")


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "smooth_grad_squared", "gradient_shap"])
def test_a_gradient_of_zero_is_told_from_a_logit_that_stays(method: str) -> None:
    class Rounding(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.round())

    with pytest.warns(UserWarning, match=r"the gradient is 0 everywhere \(rounding or thresholds"):
        attribute(Rounding().eval(), IMAGES, 0, method, **FEW.get(method, {}))


class InPlace(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5))


BAD = [
    ({"model": TinyNet}, TypeError, "model is a type; give a torch.nn.Module"),
    ({"targets": 4}, ValueError, "targets hold class 4; the model has classes 0 to 3"),
    ({"targets": torch.tensor([0, -1, 2])}, ValueError, "targets hold class -1"),
    ({"targets": torch.tensor([0, 1])}, ValueError, r"one class for each of 3 images; got shape \(2,\)"),
    ({"targets": torch.tensor([0.0, 1, 2])}, TypeError, "targets must be class numbers"),
    ({"targets": [0, 1, 2]}, TypeError, "targets is a list"),
    ({"targets": "cat"}, TypeError, "targets='cat' is a str"),
    ({"images": IMAGES[0]}, ValueError, r"images must be \(B, C, H, W\)"),
    ({"images": IMAGES[:, :1]}, ValueError, r"the model fails on images of shape \(C, H, W\) = \(1, 8, 8\)"),
    ({"images": (IMAGES * 20).abs().to(torch.uint8)}, TypeError, "images must be a float tensor"),
    ({"images": (IMAGES * 20).abs().round()}, ValueError, "whole numbers from 0 to .* divide them by 255"),
    ({"images": 60 * IMAGES.abs()}, ValueError, "images hold values from .* divide them by 255"),
    ({"model": InPlace().eval()}, ValueError, r"changes its images in place.*images = images - mean"),
    ({"images": IMAGES / 0}, ValueError, "NaN or infinite"),
    ({"model": nn.Conv2d(3, 4, 3)}, ValueError, r"logits \(B, K\); for one image it returned \(1, 4, 6, 6\)"),
    ({"method": "integrated_gradient"}, ValueError, "did you mean 'integrated_gradients'"),
    ({"method": "GradCAM"}, ValueError, "did you mean 'grad_cam'"),
    ({"method": "IG"}, ValueError, "did you mean 'integrated_gradients'"),
    ({"method": "noise_tunnel"}, ValueError, "did you mean 'smooth_grad_squared'"),
    ({"method": "NoiseTunnel"}, ValueError, "did you mean 'smooth_grad_squared'"),
    ({"batch_size": 4}, ValueError, "saliency has no option 'batch_size'; did you mean 'max_batch'"),
    ({"method": "gradient_shap", "steps": 4}, ValueError, "did you mean 'samples'"),
    ({"method": "gradient_shap", "n_steps": 4}, ValueError, "did you mean 'samples'"),
    ({"method": "integrated_gradients", "samples": 4}, ValueError, "did you mean 'steps'"),
    ({"method": "lime"}, ValueError, "'lime' is unknown; .*There are saliency, "),
    ({"method": 3}, TypeError, "method=3 is a int"),
    ({"absolut": True}, ValueError, "saliency has no option 'absolut'; did you mean 'absolute'"),
    ({"internal_batch_size": 4}, ValueError, "did you mean 'max_batch'"),
    ({"method": "integrated_gradients", "n_steps": 4}, ValueError, "did you mean 'steps'"),
    ({"method": "input_x_gradient", "nonsense": 1}, ValueError, "no option 'nonsense'; It has none"),
    ({"method": "occlusion", "strides": 4}, ValueError, "did you mean 'stride'"),
    ({"method": "occlusion", "window": 9}, ValueError, "window=9 is larger than the images of 8x8"),
    ({"method": "occlusion", "window": 2, "stride": 3}, ValueError, "stride=3 is larger than window=2"),
    ({"method": "occlusion", "baselines": "gray"}, ValueError, "baselines='gray' is unknown"),
    ({"method": "gradient_shap", "baselines": "mean"}, TypeError, "draws from images"),
    ({"method": "gradient_shap", "baselines": IMAGES[..., :4]}, ValueError, "baselines has shape"),
    ({"method": "gradient_shap", "samples": 0}, ValueError, "samples=0 must be at least 1"),
    ({"method": "smooth_grad_squared", "base": "occlusion"}, ValueError, "base='occlusion' is unknown"),
    ({"method": "smooth_grad_squared", "base": "saliency", "steps": 5}, ValueError, "baselines and steps belong to"),
    ({"method": "smooth_grad_squared", "stdev": -1}, ValueError, "stdev=-1 must be at least 0"),
    ({"method": "integrated_gradients", "steps": 0}, ValueError, "steps=0 must be at least 1"),
    ({"method": "integrated_gradients", "tolerance": 0}, ValueError, "tolerance=0 must be above 0"),
    ({"method": "smooth_grad_squared", "steps": 0}, ValueError, "steps=0 must be at least 1"),
    ({"method": "integrated_gradients", "max_steps": 8}, ValueError, "max_steps=8 must be at least 16"),
    ({"method": "grad_cam", "layer": "mor"}, ValueError, "layer='mor' is no module.*did you mean 'more'"),
    ({"method": "grad_cam", "layer": "head"}, ValueError, r"layer='head' puts out \(1, 4\)"),
    ({"method": "grad_cam", "layer": 3}, TypeError, "layer=3 is a int"),
    ({"method": "grad_cam", "interpolation": "cubic"}, ValueError, "interpolation='cubic' is unknown"),
    ({"method": "grad_cam", "model": linear()}, ValueError, "grad_cam finds no feature map"),
    ({"max_batch": 0}, ValueError, "max_batch=0 must be at least 1"),
    ({"precision": "fp16"}, ValueError, "precision='fp16' is unknown"),
    ({"seed": 1.5}, TypeError, "seed=1.5"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": MODELS["cnn"], "images": IMAGES, "targets": 0, "method": "saliency"} | change
    with pytest.raises(error, match=message):
        attribute(**arguments)
