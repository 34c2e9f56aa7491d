"""Networks that are compiled or wrapped are explained as they themselves would be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cifarkit.attribution import METHODS, attribute, randomization_check
from cifarkit.attribution.wrappers import uncompiled, unwrapped

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Backwards(nn.Module):
    """Defines its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.stem = nn.Linear(4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(images).relu()).relu().mean((2, 3)))
        return logits


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")  # as the Trainer does
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item, return-value]
    "compiled in place": compiled_in_place,
    "DataParallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(compiled_in_place(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_network_itself(wrap: Callable[[nn.Module], nn.Module], method: str) -> None:
    options = {"layer": "body"} if method == "grad_cam" else {}
    expected = attribute(Backwards().eval(), IMAGES, 1, method, **options)
    wrapped = wrap(Backwards()).eval()
    wrapped(IMAGES)  # code compiled before a hook is set would not hear of it
    torch.testing.assert_close(attribute(wrapped, IMAGES, 1, method, **options), expected)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_layers_are_made_random_in_the_order_of_their_calls(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(Backwards()).eval()
    wrapped(IMAGES)
    check = randomization_check(wrapped, IMAGES, 1, "grad_cam", stages=None, layer="stem")
    assert check.layers == (("head",), ("body",), ("stem",))


def test_a_layer_may_be_named_as_the_wrapper_names_it() -> None:
    wrapped = nn.DataParallel(Backwards()).eval()
    expected = attribute(wrapped, IMAGES, 1, "grad_cam", layer="body")
    torch.testing.assert_close(attribute(wrapped, IMAGES, 1, "grad_cam", layer="module.body"), expected)
    check = randomization_check(wrapped, IMAGES, 1, "grad_cam", stages=None, layer="module.body")
    assert check.layers == (("head",), ("body",), ("stem",))


def test_a_function_gets_the_kind_of_model_that_was_given() -> None:
    def explain(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        assert isinstance(model, nn.DataParallel)
        return images

    randomization_check(nn.DataParallel(Backwards()).eval(), IMAGES, 1, explain)


def test_a_compiled_network_stays_compiled() -> None:
    model = compiled_in_place(Backwards())
    compiled = model._compiled_call_impl
    with uncompiled(model):
        assert model._compiled_call_impl is None
    assert model._compiled_call_impl is compiled


def test_unwrapped_reaches_the_network_through_several_wrappers() -> None:
    model = Backwards()
    assert unwrapped(nn.DataParallel(nn.DataParallel(model))) is model
    assert unwrapped(model) is model
