"""Rules of changed rectangles: each must give what the whole feature maps give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cifarkit.attribution.rectangles import Changed, Sum, find_changes, rule_of

LAYERS = {
    "3x3": nn.Conv2d(4, 5, 3, padding=1),
    "no padding": nn.Conv2d(4, 5, 3),
    "stride": nn.Conv2d(4, 5, 3, stride=2, padding=1),
    "1x1 stride": nn.Conv2d(4, 5, 1, stride=2, bias=False),
    "wide, uneven": nn.Conv2d(4, 6, (1, 5), stride=(1, 2), padding=(0, 2), groups=2),
    "dilated": nn.Conv2d(4, 5, 3, padding=2, dilation=2),
    "patches": nn.Conv2d(4, 5, 4, stride=4),
    "max pool": nn.MaxPool2d(3, stride=2, padding=1),
    "plain max pool": nn.MaxPool2d(2),
    "mean pool": nn.AvgPool2d(2),
}
WITHOUT_RULE = [
    nn.Conv2d(4, 5, 3, padding="same"),
    nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
    nn.MaxPool2d(3, stride=2, ceil_mode=True),
    nn.AvgPool2d(3, padding=1),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.InstanceNorm2d(4),
    nn.AdaptiveAvgPool2d(1),
    nn.Softmax(1),
]


def changed(places: list[tuple[int, int]], size: tuple[int, int], side: int = 13) -> tuple[Tensor, Tensor]:
    """Return two known feature maps, and copies that differ from them by turns, each in one rectangle."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(2, 4, side, side, generator=generator)
    maps = known.repeat(len(places) // 2, 1, 1, 1)
    for one, (top, left) in zip(maps, places, strict=True):
        one[:, top : top + size[0], left : left + size[1]] = torch.randn(4, *size, generator=generator)
    return maps, known


CORNERS = changed([(0, 0), (0, 10), (10, 0), (11, 10), (5, 5), (4, 7)], (2, 3))


def rule(layer: nn.Module) -> Any:
    traced = fx.symbolic_trace(nn.Sequential(layer).eval())
    return rule_of(list(traced.graph.nodes)[1], dict(traced.named_modules()))


@torch.no_grad()
def test_changes_are_found_and_put_back() -> None:
    maps, known = CORNERS
    found = find_changes(maps, known)
    assert found.where.size == (2, 3)
    assert found.where.top.tolist() == [0, 0, 10, 11, 5, 4]
    assert found.where.left.tolist() == [0, 10, 0, 10, 5, 7]
    assert torch.equal(found.whole(), maps)
    assert find_changes(known, known).where.size == (1, 1)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_layers_give_what_they_give_on_whole_maps(name: str) -> None:
    maps, known = CORNERS
    layer = LAYERS[name]
    output = rule(layer)([find_changes(maps, known)], layer(known))
    assert output.values[0, 0].numel() < layer(known)[0, 0].numel()
    torch.testing.assert_close(output.whole(), layer(maps), rtol=0, atol=1e-6)


@torch.no_grad()
def test_layers_on_layers_and_a_sum_over_a_short_cut() -> None:
    maps, known = changed([(3, 3), (0, 19), (21, 0), (20, 20)], (3, 3), side=24)
    first, second, short = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 5, 3, 2, 1), nn.Conv2d(4, 5, 1, 2)
    inside = rule(nn.ReLU())([rule(first)([find_changes(maps, known)], first(known))], first(known).relu())
    ways = [rule(second)([inside], second(first(known).relu())), rule(short)([find_changes(maps, known)], short(known))]
    expected = second(first(maps).relu()) + short(maps)
    found = Sum()(ways, sum(way.known for way in ways))
    assert found is not None
    torch.testing.assert_close(found.whole(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", WITHOUT_RULE, ids=lambda layer: type(layer).__name__)
def test_has_no_rule_for_what_is_not_local_or_not_known(layer: nn.Module) -> None:
    assert rule(layer) is None


@torch.no_grad()
def test_whole_maps_are_left_to_the_network() -> None:
    maps, known = CORNERS
    layer = nn.Conv2d(4, 5, 11, padding=5)
    assert rule(layer)([find_changes(maps, known)], layer(known)) is None
    broad = find_changes(maps, known)
    narrow = Changed(broad.values, broad.where, known.mean((2, 3), keepdim=True))
    assert Sum()([broad, narrow], known) is None


class Functions(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps)


@pytest.mark.parametrize(
    "function",
    [F.relu, lambda x: F.leaky_relu(x, 0.2), lambda x: x.relu(), lambda x: F.gelu(x, approximate="tanh"), torch.relu],
)
@torch.no_grad()
def test_functions_of_single_numbers_have_a_rule(function: Callable[[Tensor], Tensor]) -> None:
    maps, known = CORNERS
    traced = fx.symbolic_trace(Functions(function))
    output = rule_of(list(traced.graph.nodes)[1], {})([find_changes(maps, known)], function(known))  # type: ignore[misc]
    torch.testing.assert_close(output.whole(), function(maps))


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x + x, lambda x: x.flatten(1), torch.softmax])
def test_other_functions_have_none(function: Callable[[Tensor], Tensor]) -> None:
    traced = fx.symbolic_trace(Functions(lambda x: function(x, 1) if function is torch.softmax else function(x)))
    assert rule_of(list(traced.graph.nodes)[1], {}) is None
