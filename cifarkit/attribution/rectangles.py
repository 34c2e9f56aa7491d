"""Feature maps that differ from known ones in a rectangle only, and what layers make of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Pair = tuple[int, int]

_POINTWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Identity, nn.Dropout)
_POINTWISE_FUNCTIONS = (torch.relu, F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish)
_SUMS = (operator.add, operator.iadd, torch.add)
_LARGEST = 0.8  # share of a feature map; a rectangle that is larger costs as much as all of it


@dataclass(frozen=True)
class Rectangles:
    """One rectangle for each of N feature maps, all of one size; top and left are int64 (N,)."""

    top: Tensor
    left: Tensor
    size: Pair

    def places(self) -> tuple[Tensor, Tensor]:
        """Return the rows (N, h, 1) and columns (N, 1, w) in them."""
        rows, columns = (torch.arange(side, device=self.top.device) for side in self.size)
        return (self.top[:, None] + rows)[:, :, None], (self.left[:, None] + columns)[:, None, :]


@dataclass(frozen=True)
class Changed:
    """Feature maps that differ from known ones only in rectangles.

    Attributes:
        values: inside the rectangles, (N, D, h, w).
        where: those lie in the feature maps.
        known: (B, D, H, W); the feature map n differs from the known one n modulo B.
    """

    values: Tensor
    where: Rectangles
    known: Tensor

    def cut(self, where: Rectangles, padding: Pair = (0, 0), filling: float = 0.0) -> Tensor:
        """Return other rectangles of the feature maps (N, D, h, w), which may reach into a padding around them."""
        known = F.pad(self.known, (padding[1], padding[1], padding[0], padding[0]), value=filling)
        count, channels, height, width = known.shape
        owners = torch.arange(len(where.top), device=known.device)[:, None, None]
        (y, x), (own_height, own_width) = where.places(), self.where.size
        outside = (owners % count * height + y + padding[0]) * width + x + padding[1]  # (N, h, w)
        y, x = y - self.where.top[:, None, None], x - self.where.left[:, None, None]
        inside = count * height * width + (owners * own_height + y) * own_width + x
        changed = (y >= 0) & (y < own_height) & (x >= 0) & (x < own_width)
        table = torch.cat([_by_place(known), _by_place(self.values)])
        chosen = table.index_select(0, torch.where(changed, inside, outside).flatten())
        return chosen.view(len(owners), *where.size, channels).permute(0, 3, 1, 2)  # channels_last

    def whole(self) -> Tensor:
        """Return the feature maps, (N, D, H, W)."""
        corner = torch.zeros_like(self.where.top)
        return self.cut(Rectangles(corner, corner, (self.known.shape[2], self.known.shape[3])))


def _by_place(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])  # (N, D, H, W) -> (N * H * W, D)


def find_changes(images: Tensor, known: Tensor) -> Changed:
    """Compare images (N, C, H, W) with known ones (B, C, H, W), N a multiple of B."""
    differs = (images.reshape(-1, *known.shape) != known).any(2).flatten(0, 1)  # (N, H, W)
    (top, height), (left, width) = _bounds(differs.any(2)), _bounds(differs.any(1))
    where = Rectangles(top, left, (height, width))
    (y, x), owners = where.places(), torch.arange(len(images), device=images.device)[:, None, None]
    values = images.permute(0, 2, 3, 1)[owners, y, x]  # (N, h, w, C)
    return Changed(values.permute(0, 3, 1, 2), where, known)


def _bounds(marked: Tensor) -> tuple[Tensor, int]:
    """Return the first marked place of each row (N, L), and a length within which all marks of any row lie."""
    numbers = marked.to(torch.uint8)
    first, last = numbers.argmax(1), marked.shape[1] - 1 - numbers.flip(1).argmax(1)
    length = max(1, int((last - first)[marked.any(1)].max()) + 1) if marked.any() else 1
    return first.clamp(max=marked.shape[1] - length), length


class Pointwise:
    """The rule of what treats each number by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, inputs: list[Changed], known: Tensor) -> Changed | None:
        """Return what comes out of changed feature maps, known being what comes out of the known ones."""
        return Changed(self.function(inputs[0].values), inputs[0].where, known)


class Sum:
    """The rule of a sum of two feature maps."""

    def __call__(self, inputs: list[Changed], known: Tensor) -> Changed | None:
        """Add in rectangles that hold both; None if the shapes of the two are not the same."""
        if inputs[0].known.shape != inputs[1].known.shape:
            return None
        starts, sizes = [], []
        for axis, total in enumerate(known.shape[2:]):
            first = [(one.where.top, one.where.left)[axis] for one in inputs]
            last = [start + one.where.size[axis] for start, one in zip(first, inputs, strict=True)]
            start = torch.minimum(*first)
            sizes.append(int((torch.maximum(*last) - start).max()))
            starts.append(start.clamp(max=total - sizes[-1]))
        where = Rectangles(starts[0], starts[1], (sizes[0], sizes[1]))
        return Changed(inputs[0].cut(where) + inputs[1].cut(where), where, known)


@dataclass(frozen=True)
class Sliding:
    """The rule of a convolution or pool; ``function`` is the same without padding."""

    function: Callable[[Tensor], Tensor]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    filling: float = 0.0

    def __call__(self, inputs: list[Changed], known: Tensor) -> Changed | None:
        """Compute the outputs that can see a change; None if these are nearly all."""
        where = inputs[0].where
        height, width = known.shape[2:]
        top, rows = self._reach(0, where.top, where.size[0], height)
        left, columns = self._reach(1, where.left, where.size[1], width)
        if rows * columns > _LARGEST * height * width:
            return None
        seen = [self.stride[axis] * (count - 1) + self._span(axis) + 1 for axis, count in enumerate((rows, columns))]
        starts = [self.stride[axis] * start - self.padding[axis] for axis, start in enumerate((top, left))]
        patches = inputs[0].cut(Rectangles(starts[0], starts[1], (seen[0], seen[1])), self.padding, self.filling)
        return Changed(self.function(patches), Rectangles(top, left, (rows, columns)), known)

    def _span(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def _reach(self, axis: int, start: Tensor, length: int, outputs: int) -> tuple[Tensor, int]:
        """Return the first output along an axis that sees a change, and how many may follow."""
        span, stride, padding = self._span(axis), self.stride[axis], self.padding[axis]
        first = (-((span - padding - start) // stride)).clamp(min=0)  # rounded up
        last = ((start + length - 1 + padding) // stride).clamp(max=outputs - 1)
        count = int((last - first).max()) + 1  # fewer than span and stride say where all lie at the edge
        return first.clamp(max=outputs - max(count, 1)), max(count, 1)


Rule = Pointwise | Sum | Sliding


def rule_of(node: fx.Node, modules: dict[str, nn.Module]) -> Rule | None:
    """Return how a step of a network in evaluation mode acts on changed feature maps; None if it has no rule."""
    operands = node.all_input_nodes
    if node.op == "call_module" and node.args == tuple(operands) and not node.kwargs and len(operands) == 1:
        return _module_rule(modules[str(node.target)])
    if node.op == "call_function" and node.target in _SUMS:
        return Sum() if node.args == tuple(operands) and not node.kwargs and len(operands) == 2 else None
    if node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS and node.args[:1] == tuple(operands):
        return Pointwise(partial(_call, node.target, node.args[1:], node.kwargs))
    if node.op == "call_method" and node.target == "relu":
        return Pointwise(torch.relu)
    return None


def _call(function: Any, others: tuple[Any, ...], settings: dict[str, Any], values: Tensor) -> Any:
    return function(values, *others, **settings)


def _module_rule(module: nn.Module) -> Rule | None:
    if type(module) in _POINTWISE_MODULES:
        return Pointwise(module)
    if type(module) is nn.BatchNorm2d and module.running_mean is not None:
        return Pointwise(module)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return Sliding(partial(_convolve, module), *_sides(module))
    if type(module) is nn.MaxPool2d and not module.ceil_mode and not module.return_indices:
        kernel, stride, padding, dilation = _sides(module)
        pool = partial(F.max_pool2d, kernel_size=kernel, stride=stride, dilation=dilation)
        return Sliding(pool, kernel, stride, padding, dilation, float("-inf"))
    if type(module) is nn.AvgPool2d and not module.ceil_mode and _pair(module.padding) == (0, 0):
        return Sliding(module, _pair(module.kernel_size), _pair(module.stride), (0, 0))
    return None


def _convolve(module: nn.Conv2d, values: Tensor) -> Tensor:
    return F.conv2d(values, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)


def _sides(module: nn.Conv2d | nn.MaxPool2d) -> tuple[Pair, Pair, Pair, Pair]:
    return _pair(module.kernel_size), _pair(module.stride), _pair(module.padding), _pair(module.dilation)


def _pair(sides: Any) -> Pair:
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])
