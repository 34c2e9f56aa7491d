"""The model-randomisation check: gradients pass, edges fail, and the model asked about is left alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution.randomization import RandomizationCheck, _make_random, randomization_check


class TinyNet(nn.Sequential):
    def __init__(self) -> None:
        convolutions = (nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        super().__init__(*convolutions, nn.Dropout(0.5), nn.Flatten(), nn.Linear(512, 5))


class Backwards(nn.Module):
    """Calls its layers in another order than it defines them, uses the weights of one, and owns a number itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.head, self.body, self.helper = nn.Linear(192, 5), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        shown = self.body(images * self.scale)
        logits: Tensor = self.head(F.conv2d(shown, self.helper.weight).relu().flatten(1))
        return logits


def photos(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def tiny() -> TinyNet:
    torch.manual_seed(0)
    model = TinyNet().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    model(images).gather(1, targets[:, None]).sum().backward()
    assert images.grad is not None
    return images.grad


def edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return images.diff(dim=3, append=images[..., -1:]).abs()


def signed_edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return edges(model, images, targets) * gradient(model, images, targets).sum(1, keepdim=True).sign()


def test_gradients_pass() -> None:
    check = randomization_check(tiny(), photos(), None, gradient)
    assert check.passed
    assert check.correlations.shape == check.absolute.shape == (4, 4)
    assert check.kept < 0.3
    assert check.verdict == "passes: the map depends on what the model has learnt"


def test_edges_fail() -> None:
    check = randomization_check(tiny(), photos(), 1, edges)
    assert not check.passed
    assert check.kept == check.kept_absolute == pytest.approx(1)
    assert check.verdict == "FAILS: the map comes from the image more than from what the model has learnt"


def test_edges_with_the_sign_of_the_gradient_are_found_out() -> None:
    check = randomization_check(tiny(), photos(), 1, signed_edges)
    assert check.passed
    assert check.kept_absolute == pytest.approx(1)
    assert check.verdict.startswith("passes by its signs: how large the values are comes from the image")


def test_layers_go_from_the_last_to_the_first_as_they_are_called() -> None:
    check = randomization_check(tiny(), photos(), 0, gradient, stages=None)
    assert check.layers == (("7",), ("3",), ("1",), ("0",))
    assert randomization_check(tiny(), photos(), 0, gradient, stages=2).layers == (("7", "3"), ("1", "0"))
    other = randomization_check(Backwards(), photos(), 0, gradient, stages=None)
    assert other.layers == (("head",), ("helper",), ("body",), ("the model",))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_a_hook_forms_are_made_random_too(norm: Any) -> None:
    layer, images = norm(nn.Conv2d(3, 4, 3)).eval(), photos()
    before = layer(images).detach()
    _make_random(layer, 0)
    with torch.no_grad():
        layer.bias.zero_()
        found = layer(images)
    assert torch.corrcoef(torch.stack([before.flatten(), found.flatten()]))[0, 1].abs() < 0.9


def test_each_stage_keeps_what_was_made_random_before() -> None:
    seen: list[Tensor] = []

    def recording(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(torch.stack([parameter.detach().double().sum() for parameter in model.parameters()]))
        return gradient(model, images, targets)

    randomization_check(Backwards(), photos(), 0, recording, stages=None)
    changed = [(now != seen[0]).tolist() for now in seen]  # scale, head, body, helper; weight and bias each
    assert [sum(row) for row in changed] == [0, 2, 4, 6, 7]
    assert changed[1] == [False, True, True, False, False, False, False]


def test_a_layer_is_given_by_itself_or_by_name() -> None:
    model = tiny()
    named, given = (randomization_check(model, photos(), 0, "grad_cam", layer=layer) for layer in ("2", model[2]))
    assert torch.equal(named.correlations, given.correlations)
    with pytest.raises(ValueError, match=r"layer=ReLU\(\) is no module of the model"):
        randomization_check(model, photos(), 0, "grad_cam", layer=nn.ReLU())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["input_x_gradient", gradient])
def test_images_are_brought_to_the_dtype_of_the_weights(method: Any, dtype: torch.dtype) -> None:
    check = randomization_check(tiny().to(dtype), photos(), 0, method, stages=2)
    assert check.correlations.isfinite().all()


def test_the_check_is_decided_by_the_seed() -> None:
    first, again, other = (randomization_check(tiny(), photos(), 0, gradient, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.correlations, again.correlations)
    assert not torch.equal(first.correlations, other.correlations)
    cut = randomization_check(tiny(), photos(), 0, gradient, seed=3, max_batch=3)
    assert torch.allclose(cut.correlations, first.correlations, atol=1e-3)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = tiny().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    randomization_check(model, photos(), None, gradient)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_method_is_named_with_its_options() -> None:
    named = randomization_check(tiny(), photos(), 1, "saliency", stages=2)
    assert named.method == "saliency"
    assert named.passed
    signed = randomization_check(tiny(), photos(), 1, "saliency", stages=2, absolute=False)
    given = randomization_check(tiny(), photos(), 1, gradient, stages=2)
    assert torch.allclose(signed.correlations, given.correlations, atol=1e-3)
    with pytest.raises(ValueError, match="salience"):
        randomization_check(tiny(), photos(), 1, "salience")


def test_it_reads_as_one_line() -> None:
    half = torch.tensor([[0.9, 0.7], [0.1, 0.1]]).double()
    check = RandomizationCheck("saliency", (("fc",), ("conv2", "conv1")), half, half, 0.5)
    assert str(check) == (
        "saliency, 3 layers made random from fc to conv1: rank correlation 0.80 -> 0.10, mean 0.45 (without sign "
        "0.45); passes: the map depends on what the model has learnt"
    )
    assert not RandomizationCheck("saliency", (("fc",),), half, half, 0.4).passed


def test_images_whose_map_is_constant_do_not_count() -> None:
    def first_is_zero(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return gradient(model, images, targets) * torch.tensor([0.0, 1, 1, 1]).view(4, 1, 1, 1)

    check, whole = (randomization_check(tiny(), photos(), 0, method) for method in (first_is_zero, gradient))
    assert check.correlations[:, 0].isnan().all()
    assert check.kept == pytest.approx(float(whole.correlations[:, 1:].mean()))
    assert check.passed
    nothing = randomization_check(tiny(), photos(), 0, lambda model, images, _: images * 0)
    assert nothing.verdict.startswith("UNDECIDED: every map of the trained model is constant")
    assert not nothing.passed


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": photos()[0]}, ValueError, r"images must be \(B, C, H, W\)"),
        ({"targets": 5}, ValueError, "targets hold class 5"),
        ({"method": None}, TypeError, "method=None; give a name of METHODS, or a function"),
        ({"stages": 0}, ValueError, "stages=0 must be at least 1"),
        ({"limit": 1.5}, ValueError, "limit=1.5 must be above 0 and at most 1"),
        ({"seed": 0.5}, TypeError, "seed=0.5 is a float"),
        ({"model": nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), "method": edges}, ValueError, "model has no weights"),
        ({"method": lambda model, images, _: images / 0}, ValueError, "attributions hold NaN or infinite"),
        ({"steps": 4}, TypeError, r"options \['steps'\] go with a name"),
    ],
)
def test_refuses(changes: dict[str, Any], error: type, message: str) -> None:
    good = {"model": tiny(), "images": photos(), "targets": 0, "method": gradient}
    with pytest.raises(error, match=message):
        randomization_check(**good | changes)
