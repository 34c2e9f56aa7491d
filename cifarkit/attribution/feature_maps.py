"""Which outputs of a network are feature maps, and whether their channels come first, (B, D, h, w), or last.

PyTorch's convolutions put channels first; Swin and the blocks of ConvNeXt keep them last, where Linear and LayerNorm
work. The shape alone does not tell: (1, 8, 8, 8) may be either. So a map is known by the module that made it, or by one
of known kind that puts out as many channels at as many places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Outputs = dict[nn.Module, Any]  # of each part for one image, in the order in which they finish

FIRST, LAST, UNKNOWN = "first", "last", "unknown"
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout2d,
    nn.PixelShuffle,
    nn.Upsample,
)


def find_layouts(outputs: Outputs, sides: tuple[int, int], *, guess: bool) -> dict[nn.Module, str]:
    """Tell of each part whose output may be a feature map of several places where its channels are.

    Args:
        outputs: of a pass of one image.
        sides: height and width of the image; a map of no known shape that is finer than the image is none.
        guess: whether maps of no known shape count; where there are tokens, they may be attention weights.
    Returns:
        part -> FIRST, LAST or, if either is possible, UNKNOWN.
    """
    maps = {part: tuple(output.shape) for part, output in outputs.items() if _has_four_dimensions(output)}
    kinds = {part: _kind(part) for part in maps}
    for part in _of_heads(outputs, maps, kinds):
        del maps[part], kinds[part]
    possible = [kind for kind in (FIRST, LAST) if kind == FIRST or kind in kinds.values()]
    known = {_places_and_channels(maps[part], kind) for part, kind in kinds.items() if kind}
    found = {}
    for part, shape in maps.items():
        own = kinds[part]
        fitting = [own] if own else [kind for kind in possible if _places_and_channels(shape, kind) in known]
        if not fitting and guess:
            fitting = [kind for kind in possible if _fits(_places_and_channels(shape, kind), sides)]
        if any(_places_and_channels(shape, kind)[:2] != (1, 1) for kind in fitting):
            found[part] = fitting[0] if len(fitting) == 1 else UNKNOWN
    return found


def _of_heads(
    outputs: Outputs, maps: dict[nn.Module, tuple[int, ...]], kinds: dict[nn.Module, str | None]
) -> list[nn.Module]:
    """Return the parts that put out (1, heads, N, d), as a norm of queries does: no map, though it looks like one."""
    tokens = {
        tuple(output.shape[1:]) for output in outputs.values() if isinstance(output, Tensor) and output.dim() == 3
    }
    return [
        part
        for part, (_, heads, nodes, width) in maps.items()
        if kinds[part] == LAST and any(nodes == n and full % (heads * width) == 0 for n, full in tokens)
    ]


@contextmanager
def channels_first(layer: nn.Module, layout: str) -> Iterator[nn.Module]:
    """Yield a module that puts out the feature map of a layer as (B, D, h, w): the layer, or a stand-in behind it."""
    if layout == FIRST:
        yield layer
        return
    stand_in = nn.Identity()

    def turn(_: nn.Module, __: Any, output: Tensor) -> Any:
        return stand_in(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, h, w, D) -> (B, D, h, w) and back

    handle = layer.register_forward_hook(turn)
    try:
        yield stand_in
    finally:
        handle.remove()


def _has_four_dimensions(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1  # more are the windows of an image


def _kind(part: nn.Module) -> str | None:
    """Return where a module of known kind has its channels; LayerNorms that turn their input are kinds of their own."""
    if isinstance(part, _CHANNELS_FIRST):
        return FIRST
    if isinstance(part, nn.LayerNorm | nn.RMSNorm):
        plain = type(part) in (nn.LayerNorm, nn.RMSNorm) and len(part.normalized_shape) == 1  # others norm whole maps
        return LAST if plain else None
    return LAST if isinstance(part, nn.Linear) else None


def _places_and_channels(shape: tuple[int, ...], kind: str) -> tuple[int, int, int]:
    """Return h, w and D."""
    _, one, two, three = shape
    return (two, three, one) if kind == FIRST else (one, two, three)


def _fits(places: tuple[int, int, int], sides: tuple[int, int]) -> bool:
    return places[0] <= sides[0] and places[1] <= sides[1]
