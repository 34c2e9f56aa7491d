"""Spectral normalisation: the largest singular value is 1, and the vector moves once a change of the weight."""

import copy

import pytest
import torch
from torch import nn

from cifarkit.models.spectral import normalize_spectrum


def largest(layer: nn.Module) -> float:
    return float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))  # type: ignore[operator]


def vector(layer: nn.Module) -> torch.Tensor:
    return layer.get_buffer("parametrizations.weight.0.left")


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 8, 4), lambda: nn.Linear(6, 4), lambda: nn.Embedding(5, 7)])
def test_the_largest_singular_value_is_one(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = normalize_spectrum(make())
    for _ in range(60):
        with torch.no_grad():
            layer.get_parameter("parametrizations.weight.original").mul_(1.1)
        assert layer.weight is not None  # uses it once
    assert largest(layer) == pytest.approx(1, abs=1e-4)


def test_one_change_of_the_weight_is_one_step() -> None:
    torch.manual_seed(0)
    layer = normalize_spectrum(nn.Linear(20, 10))
    start = vector(layer)
    layer(torch.ones(2, 20))
    assert vector(layer) is start  # the vector was made for this weight
    with torch.no_grad():
        layer.get_parameter("parametrizations.weight.original").add_(torch.randn(10, 20))
    layer(torch.ones(2, 20))
    moved = vector(layer)
    assert not torch.equal(moved, start)
    layer(torch.ones(2, 20))
    assert vector(layer) is moved


def test_in_evaluation_mode_the_vector_stands_still() -> None:
    layer = normalize_spectrum(nn.Linear(20, 10))
    layer(torch.ones(1, 20))
    layer.eval()
    before = vector(layer).clone()
    with torch.no_grad():
        layer.get_parameter("parametrizations.weight.original").add_(1)
    layer(torch.ones(1, 20))
    assert torch.equal(vector(layer), before)


def test_a_loaded_layer_goes_on_like_the_saved_one() -> None:
    torch.manual_seed(0)
    saved, loaded, images = (
        normalize_spectrum(nn.Linear(20, 10)),
        normalize_spectrum(nn.Linear(20, 10)),
        torch.ones(1, 20),
    )
    for _ in range(3):
        with torch.no_grad():
            saved.get_parameter("parametrizations.weight.original").add_(torch.randn(10, 20))
        saved(images)
    loaded(images)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert torch.equal(loaded(images), saved(images))
    for layer in (saved, loaded):
        with torch.no_grad():
            layer.get_parameter("parametrizations.weight.original").mul_(2.0).add_(0.1)
    assert torch.equal(loaded(images), saved(images))


def stepped() -> nn.Module:
    """Return a layer whose weight has changed since its last pass, as where an optimizer steps last."""
    torch.manual_seed(0)
    layer = normalize_spectrum(nn.Linear(20, 10))
    layer(torch.ones(1, 20))
    with torch.no_grad():
        layer.get_parameter("parametrizations.weight.original").add_(torch.randn(10, 20))
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_the_vector_saved_is_that_of_the_weight_saved_with_it(training: bool) -> None:
    whole, saved, resumed = (layer.train(training) for layer in (stepped(), stepped(), stepped()))
    before = vector(saved)
    resumed.load_state_dict(saved.state_dict())
    assert (vector(saved) is not before) == training
    expected = whole(torch.ones(1, 20))  # of a run that saved nothing
    assert torch.equal(saved(torch.ones(1, 20)), expected)
    assert torch.equal(resumed(torch.ones(1, 20)), expected)


def test_a_copy_saves_the_vector_of_its_original() -> None:
    layer = normalize_spectrum(nn.Linear(20, 10))
    layer(torch.ones(1, 20))
    expected = copy.deepcopy(layer.state_dict())
    twin = copy.deepcopy(layer)
    for name, item in twin.state_dict().items():
        assert torch.equal(item, expected[name])
    with torch.no_grad():  # an average, which no pass in training mode has used
        twin.get_parameter("parametrizations.weight.original").mul_(0.5)
    assert torch.equal(twin.state_dict()["parametrizations.weight.0.left"], vector(layer))


def test_the_gradient_is_that_of_the_normalised_weight() -> None:
    torch.manual_seed(0)
    layer = normalize_spectrum(nn.Linear(6, 4, bias=False)).double()
    weight = layer.get_parameter("parametrizations.weight.original")
    with torch.no_grad():
        for _ in range(200):
            weight.mul_(1.0)
            layer(torch.ones(1, 6).double())  # let the vector arrive
    layer(torch.ones(1, 6).double()).sum().backward()
    exact = weight.detach().clone().requires_grad_()
    (exact / torch.linalg.matrix_norm(exact, 2) @ torch.ones(6).double()).sum().backward()
    torch.testing.assert_close(weight.grad, exact.grad)
