"""DeepLift on networks as people write them: its sums hold, or it says what is in the way."""

import copy
from collections.abc import Callable

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution import attribute
from cifarkit.attribution.rewriting import separate_nonlinearities
from cifarkit.attribution.rules import Rescale
from cifarkit.models import SpeedNet, VisionTransformer

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, with what a test gives in between."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(images)))).mean((2, 3)))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(x) - 0.1)


FUNCTIONS = {
    "F.relu": F.relu,
    "F.relu, in place": lambda x: F.relu(x, inplace=True),
    "Tensor.relu": lambda x: x.relu(),
    "relu_, its result unused elsewhere": lambda x: x.relu_(),
    "a reused module": Reused(),
    "relu into tanh": lambda x: torch.tanh(torch.relu(x)),
    "before an activation": lambda x: x + F.relu(x),
    "two activations of one tensor": lambda x: F.relu(x) - torch.sigmoid(x),
    "relu into max-pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "max-pool into relu": lambda x: F.relu(torch.max_pool2d(x, 2)),
    "overlapping max-pool": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "adaptive max-pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "leaky_relu with a setting": lambda x: F.leaky_relu(x, 0.3),
    "functions in place": lambda x: torch.clamp_(F.elu_(F.leaky_relu_(x, 0.3)), -0.2, 0.5),
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(-0.2, 0.5),
    "square and abs": lambda x: x.square() + x.abs(),
    "batch norm and dropout": nn.Sequential(nn.BatchNorm2d(6), nn.GELU(), nn.Dropout(0.5)),
    "modules without Captum's rules": nn.Sequential(nn.SiLU(), nn.ReLU6(), nn.SELU(), nn.Hardtanh(), nn.AvgPool2d(2)),
    "modules with Captum's rules": nn.Sequential(
        nn.ELU(), nn.Softplus(), nn.LeakyReLU(), nn.Sigmoid(), nn.MaxPool2d(2)
    ),
}


@torch.fx.wrap
def gelu(x: Tensor, factor: float) -> Tensor:
    return factor * F.gelu(x)


def test_a_function_of_ones_own_is_not_taken_for_the_one_of_its_name() -> None:
    maps = attribute(Net(lambda x: gelu(x, 2.0)).eval(), IMAGES, 1, "deep_lift", tolerance=1e-3)
    expected = attribute(Net(lambda x: 2.0 * F.gelu(x)).eval(), IMAGES, 1, "deep_lift", tolerance=1e-3)
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sums_hold(name: str) -> None:
    model = Net(FUNCTIONS[name]).eval()
    maps = attribute(model, IMAGES, 1, "deep_lift", baselines="blur", tolerance=1e-3)
    assert maps.abs().max() > 0


def test_speednet_with_its_pools_and_gelu() -> None:
    images = torch.randn(2, 3, 24, 24)
    assert attribute(SpeedNet(4, widths=(8, 8, 8)), images, None, "deep_lift", tolerance=1e-3).shape == images.shape


def test_the_general_rule_is_captums_for_relu() -> None:
    found = attribute(Net(Rescale(F.relu)).eval(), IMAGES, 1, "deep_lift")
    torch.testing.assert_close(found, attribute(Net(F.relu).eval(), IMAGES, 1, "deep_lift"), rtol=0, atol=1e-6)


def test_a_batch_explains_each_image_by_itself() -> None:
    model = Net(FUNCTIONS["relu into max-pool"]).eval()
    together = attribute(model, IMAGES, 1, "deep_lift")
    torch.testing.assert_close(attribute(model, IMAGES[1:], 1, "deep_lift"), together[1:], rtol=1e-4, atol=1e-7)


def test_an_image_that_is_its_own_baseline_is_all_zero() -> None:
    with pytest.warns(UserWarning, match="every attribution is 0"):
        assert not attribute(Net(F.gelu).eval(), IMAGES, 1, "deep_lift", baselines=IMAGES).any()


def test_the_copy_answers_as_the_model_and_shares_nothing() -> None:
    model = Net(Reused()).eval()
    rewritten = separate_nonlinearities(model)
    assert rewritten is not None
    torch.testing.assert_close(rewritten(IMAGES), model(IMAGES))
    assert not {id(part) for part in rewritten.parameters()} & {id(part) for part in model.parameters()}


def test_where_pixels_share_the_maximum_of_a_baseline_the_sum_stays_right_and_captums_choice_is_taken() -> None:
    class Pooled(Net):
        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.pool(self.relu(self.first(images))).mean((2, 3)))

    model = Pooled(lambda x: x)
    model.relu, model.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    nn.init.constant_(model.first.bias, 0.5)  # on a baseline of 0 all pixels are alike, and above those of the image
    expected = captum.attr.DeepLift(copy.deepcopy(model.eval())).attribute(IMAGES, target=1).detach()
    torch.testing.assert_close(attribute(model, IMAGES, 1, "deep_lift", tolerance=1e-5), expected, rtol=1e-4, atol=1e-7)
    moved = torch.linspace(-1, 1, 8).expand_as(IMAGES)  # not alike: Captum's sums are off, and ours are not
    attribute(model, IMAGES, 1, "deep_lift", baselines=moved, tolerance=1e-4)
    with torch.no_grad():
        changes = (model(IMAGES) - model(moved))[:, 1]
    sums = captum.attr.DeepLift(copy.deepcopy(model)).attribute(IMAGES, moved, target=1).sum((1, 2, 3))
    assert (sums - changes).abs().max() > 0.01 * changes.abs().max()


class Branching(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > -1e9 else -images)


class BranchingOnModules(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.between(self.first(images if images.sum() > -1e9 else -images)).mean((2, 3)))


def test_a_model_that_cannot_be_rewritten_still_works_where_captum_is_right() -> None:
    assert attribute(BranchingOnModules(nn.ReLU()).eval(), IMAGES, 1, "deep_lift").abs().max() > 0


REFUSED = [
    (Branching(F.relu), r"torch.fx cannot follow its forward pass.*F.relu.*Use 'integrated_gradients'"),
    (Branching(Reused()), "torch.fx cannot follow"),
    (Net(lambda x: x * torch.sigmoid(9 * x.flip(1))), "does something that DeepLift has no rule for"),
    (Net(nn.GroupNorm(2, 6)), r"the logit changes by .* beyond tolerance=0.01 .*Modules to suspect: GroupNorm"),
    (Net(nn.Softmax(1)), "Modules to suspect: Softmax"),
    (VisionTransformer(image_size=8, dim=8, depth=1, heads=1, num_classes=4), "Modules to suspect: .*LayerNorm"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_refuses_rather_than_draws_a_wrong_map(model: nn.Module, message: str) -> None:
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attribute(model.eval(), IMAGES, 1, "deep_lift")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_rewrite_off_is_captum_alone() -> None:
    with pytest.raises(ValueError, match="a module is used more than once"):
        attribute(Net(Reused()).eval(), IMAGES, 1, "deep_lift", rewrite=False)
