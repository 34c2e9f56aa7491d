"""Captum's infidelity and sensitivity with noise of their own: closed forms, any batch, nothing left behind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.attribution.robustness import infidelity, sensitivity
from cifarkit.seeding import Draws


class TinyNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def photos(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))


def linear() -> tuple[nn.Module, Tensor]:
    """A linear model, and the weights (3, 3, 4, 4) of its classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    return model, model[1].weight.detach().view(3, 3, 4, 4)


def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    model(images).gather(1, targets[:, None]).sum().backward()
    assert images.grad is not None
    return images.grad


def test_a_linear_model_is_explained_without_infidelity() -> None:
    model, weights = linear()
    images, targets = photos(), torch.tensor([0, 2, 1])
    assert infidelity(model, images, targets, weights[targets] * images).max() < 1e-10
    assert infidelity(model, images, targets, weights[targets] * (images - 0.4), 0.4).max() < 1e-10
    assert infidelity(model, images, targets, weights[targets], noise=0.3).max() < 1e-10


def test_infidelity_of_nothing_is_the_mean_square_of_the_change() -> None:
    model, weights = linear()
    found = infidelity(model, photos(), 1, torch.zeros(3, 3, 4, 4), noise=0.5, samples=4000)
    assert torch.allclose(found, 0.25 * weights[1].square().sum(), rtol=0.1)


def test_scaled_infidelity_does_not_depend_on_the_scale_of_the_map() -> None:
    model, weights = linear()
    maps = 3 * weights[1] * photos()
    assert infidelity(model, photos(), 1, maps).min() > 1e-3
    assert infidelity(model, photos(), 1, maps, normalize=True).max() < 1e-5


@pytest.mark.parametrize("noise", [None, 0.3])
def test_infidelity_of_an_image_depends_on_nothing_but_the_seed(noise: float | None) -> None:
    model, options = TinyNet(), {"noise": noise, "samples": 7}
    whole = infidelity(model, photos(5), None, photos(5), **options)
    for size in (1, 3, 5, 12):
        assert torch.allclose(infidelity(model, photos(5), None, photos(5), max_batch=size, **options), whole)
    assert torch.allclose(infidelity(model, photos(5)[3:4], None, photos(5)[3:4], **options), whole[3:4])
    assert not torch.allclose(infidelity(model, photos(5), None, photos(5), seed=1, **options), whole)


def test_squares_lie_inside_and_have_every_size() -> None:
    from cifarkit.attribution.robustness import _random_squares

    areas = _random_squares(Draws(0, 0, torch.arange(300)), 6, 9).sum((1, 2, 3))
    assert {*areas.tolist()} == {1, 4, 9}
    covered = _random_squares(Draws(0, 0, torch.arange(300)), 6, 9).amax((0, 1))
    assert covered.min() == 1


def test_sensitivity_of_a_constant_gradient_is_zero() -> None:
    model, _ = linear()
    assert sensitivity(model, photos(), 1, gradient).max() < 1e-6


def test_sensitivity_of_the_image_itself_is_the_size_of_the_change() -> None:
    def itself(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images

    found = sensitivity(TinyNet(), torch.ones(2, 3, 4, 4), 0, itself, radius=0.1, disturbed=50)
    assert found.max() < 0.1
    assert found.min() > 0.1 / 3**0.5  # the root mean square of a uniform number, and the largest of 50 is above


def test_sensitivity_of_an_image_depends_on_nothing_but_the_seed() -> None:
    model = TinyNet()
    whole = sensitivity(model, photos(5), None, gradient)
    for size in (1, 3, 12):
        assert torch.allclose(sensitivity(model, photos(5), None, gradient, max_batch=size), whole, rtol=1e-3)
    assert torch.allclose(sensitivity(model, photos(5)[3:4], None, gradient), whole[3:4], rtol=1e-3)
    assert not torch.allclose(sensitivity(model, photos(5), None, gradient, seed=1), whole, rtol=1e-3)


@pytest.mark.parametrize("size", [None, 2])
def test_disturbed_copies_keep_the_baseline_of_their_image(size: int | None) -> None:
    model, starts, options = TinyNet(), photos(5).roll(1, 0), {"disturbed": 4, "max_batch": size}
    found = sensitivity(model, photos(5), 1, "integrated_gradients", baselines=starts, **options)
    alone = [
        sensitivity(model, image[None], 1, "integrated_gradients", baselines=start, **options)
        for image, start in zip(photos(5), starts, strict=True)
    ]
    assert torch.allclose(found, torch.cat(alone), rtol=1e-3)
    pool = sensitivity(model, photos(5), 1, "gradient_shap", baselines=photos(5), samples=3, **options)
    assert pool.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_are_brought_to_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    model = TinyNet()
    other = copy.deepcopy(model).to(dtype)
    for method in ("input_x_gradient", gradient):
        found, expected = (sensitivity(net, photos(), 1, method, radius=0.3) for net in (other, model))
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=0.1)
    found, expected = (infidelity(net, photos(), 1, photos()) for net in (other, model))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=0.05)


def test_a_method_is_named_or_given() -> None:
    model = TinyNet()
    named = sensitivity(model, photos(), 1, "saliency")
    given = sensitivity(model, photos(), 1, lambda *request: gradient(*request).abs())
    assert torch.allclose(named, given, atol=1e-5)


@pytest.mark.parametrize("figure", [infidelity, sensitivity])
def test_nothing_is_left_behind(figure: Callable[..., Tensor]) -> None:
    model = TinyNet().train()
    model[2].eval()
    model[1].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 8)
    kept, modes = model[4].weight.grad, [part.training for part in model.modules()]
    state = torch.get_rng_state()
    figure(model, photos(), 0, gradient if figure is sensitivity else photos())
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert model[4].weight.grad is kept
    assert torch.equal(kept, torch.ones(3, 8))
    assert model[1].weight.grad is None
    assert not model[1].bias.requires_grad


def test_modes_and_gradients_come_back_after_an_exception() -> None:
    def broken(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        gradient(model, images, targets)
        raise RuntimeError("no power")

    model = TinyNet().train()
    with pytest.raises(RuntimeError, match="no power"):
        sensitivity(model, photos(), 0, broken)
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("figure", "changes", "error", "message"),
    [
        (infidelity, {"images": photos()[0]}, ValueError, r"images must be \(B, C, H, W\)"),
        (infidelity, {"targets": 5}, ValueError, "targets hold class 5; the model has classes 0 to 2"),
        (infidelity, {"attributions": photos()[:, :1]}, ValueError, "give them of the same shape"),
        (infidelity, {"baselines": "black"}, ValueError, "baselines='black' is unknown"),
        (infidelity, {"noise": 0}, ValueError, "noise=0 must be above 0"),
        (infidelity, {"samples": 0}, ValueError, "samples=0 must be at least 1"),
        (sensitivity, {"images": photos()[0]}, ValueError, r"images must be \(B, C, H, W\)"),
        (sensitivity, {"radius": -1}, ValueError, "radius=-1 must be above 0"),
        (sensitivity, {"disturbed": 1.5}, TypeError, "disturbed=1.5 is a float"),
        (sensitivity, {"method": 3}, TypeError, "method=3; give a name of METHODS, or a function"),
        (sensitivity, {"method": TinyNet}, TypeError, "give a name of METHODS, or a function"),
        (sensitivity, {"steps": 4}, TypeError, r"options \['steps'\] go with a name of METHODS"),
        (
            sensitivity,
            {"method": "deep_lift", "baselines": photos(2)},
            ValueError,
            r"baselines has shape \(2, .* \(3, 3",
        ),
        (sensitivity, {"method": lambda *_: photos(1)}, ValueError, r"attributions are \(1, 3, 4, 4\) for images"),
    ],
)
def test_refuses(figure: Callable[..., Any], changes: dict[str, Any], error: type, message: str) -> None:
    own = {"attributions": photos()} if figure is infidelity else {"method": gradient}
    with pytest.raises(error, match=message):
        figure(**{"model": TinyNet(), "images": photos(), "targets": 0} | own | changes)
