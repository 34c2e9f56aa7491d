"""fold_batchnorm: the same outputs from a copy, and None wherever that cannot be promised."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cifarkit import models
from cifarkit.folding import fold_batchnorm


def lived_in(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and an affine map of its own."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model.eval()


class Twice(nn.Module):
    """Use one convolution twice, with a norm behind the second use."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        first: Tensor = self.convolution(images)
        return self.norm(self.convolution(first)) + first


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images if images.sum() > 0 else -images)
        return result


@pytest.mark.parametrize(("build", "left"), [(models.resnet18, 0), (lambda: models.SpeedNet(widths=(8, 8, 8)), 3)])
def test_outputs_are_the_same_with_fewer_norms(build: type[nn.Module], left: int) -> None:
    model, images = lived_in(build()), torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model)
    assert folded is not None
    torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if left == 0:
        assert all(not isinstance(node.target, str) or "bn" not in node.target for node in folded.graph.nodes)


def test_a_norm_behind_something_else_stays() -> None:
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)))
    assert fold_batchnorm(model) is None


def test_a_shared_convolution_stays() -> None:
    assert fold_batchnorm(lived_in(Twice())) is None


@pytest.mark.parametrize("model", [Choosy(), nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 3))])
def test_none_where_nothing_can_be_folded(model: nn.Module) -> None:
    assert fold_batchnorm(model) is None


def test_a_norm_without_running_statistics_stays() -> None:
    assert fold_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))) is None


def test_a_parametrized_convolution_stays() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    assert fold_batchnorm(nn.Sequential(layer, nn.BatchNorm2d(4))) is None


def test_a_model_with_hooks_is_left_alone() -> None:
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold_batchnorm(model) is not None
    model[1].register_forward_hook(lambda *_: None)
    assert fold_batchnorm(model) is None


def test_a_tensor_that_the_forward_pass_makes_is_followed() -> None:
    class Centred(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = super().forward(images - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
            return result

    model = lived_in(Centred(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded = fold_batchnorm(model)
    assert folded is not None
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)


def test_the_model_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    folded = fold_batchnorm(model)
    assert folded is not None
    assert not folded.training
    assert model.training
