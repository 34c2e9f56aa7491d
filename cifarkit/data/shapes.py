"""A drawn data set of ten classes for trials without a download: five shapes, plain or striped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.data.dataset import ImageDataset
from cifarkit.seeding import Draws

_SHAPES = ("circle", "cross", "square", "star", "triangle")
_TEXTURES = ("plain", "striped")
_CLASSES = tuple(f"{texture} {shape}" for texture in _TEXTURES for shape in _SHAPES)  # sorted, as image_folder will
_STREAM = 2**41  # an epoch no training reaches, so that pictures share no numbers with augmentation
_BLOCK = 256  # images drawn at once; 1 MB a plane at 32 x 32 stays in the cache
_CANDIDATES = 12  # colours to choose a contrasting one from
_CONTRAST = 0.25  # least distance of two colours that touch, black to white being 1
_LUMA = (0.299, 0.587, 0.114)  # how much each channel counts for the eye (ITU-R BT.601)


def shapes(count: int, *, seed: int = 0, size: int = 32) -> ImageDataset:
    """Draw plain and striped circles, crosses, squares, stars and triangles.

    Place, scale, angle, colours, background, clutter and noise are random and the same for every class, so that
    colour or brightness tells nothing: a linear model on pixels learns little, a small convolutional net learns it
    in a minute. Image i shows class i modulo 10 and depends only on (seed, i): a longer set begins with the shorter
    one. Take another seed for test images.

    Args:
        count: number of images, at least 1.
        seed: any integer.
        size: side in pixels, at least 16; 28 to 64 look right.
    Returns:
        RGB images (count, 3, size, size) in ten classes.
    Raises:
        TypeError: if an argument is no integer.
        ValueError: if count or size is too small.
    """
    count, seed = check_integer("count", count, 1), check_integer("seed", seed)
    size = check_integer("size", size)
    if size < 16:
        raise ValueError(f"size={size} must be at least 16 pixels; smaller shapes cannot be told apart")
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for start in range(0, count, _BLOCK):  # always whole blocks, so that count changes no rounding
        block = _draw_block(Draws(seed, _STREAM, torch.arange(start, start + _BLOCK)), size)
        images[start : start + _BLOCK] = block[: count - start]
    return ImageDataset(images, torch.arange(count) % len(_CLASSES), _CLASSES)


def _draw_block(draws: Draws, size: int) -> Tensor:
    """Draw one image for each sample: uint8 (B, 3, size, size)."""
    scene = _Scene.draw(draws, size)
    labels = draws.samples % len(_CLASSES)
    which, striped = labels % len(_SHAPES), labels >= len(_SHAPES)
    background, fill, stripe = _draw_colours(draws)
    canvas = _draw_background(draws, background, scene)
    stripes = _draw_stripes(draws, scene) * striped[:, None, None]  # (B, H, W)
    paint = torch.lerp(fill[:, :, None, None], stripe[:, :, None, None], stripes[:, None])
    paint = paint + _gradient(draws, scene, strength=0.12)
    outline = scene.shape_distance(draws, which)
    canvas = torch.lerp(canvas, paint, _cover(outline)[:, None])
    sigma = draws.uniform(1, 1, 1, low=0.02, high=0.08)
    canvas = canvas + sigma * draws.normal(3, size, size)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class _Scene:
    """Pixel coordinates, (H, W) each, measured from the centre, and the side of the picture."""

    x: Tensor
    y: Tensor
    size: int

    @classmethod
    def draw(cls, draws: Draws, size: int) -> _Scene:
        axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return cls(x, y, size)

    def turned(self, angle: Tensor, centre_x: Tensor, centre_y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in a frame turned by angle about a centre, all (B, 1, 1) -> two of (B, H, W)."""
        x, y = self.x - centre_x, self.y - centre_y
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    def shape_distance(self, draws: Draws, which: Tensor) -> Tensor:
        """Distance of each pixel from the outline of its image's shape, in pixels, negative inside: (B, H, W)."""
        radius = self.size * draws.uniform(1, 1, low=0.25, high=0.4)
        room = self.size / 2 - 0.95 * radius
        centre_x, centre_y = (room * draws.uniform(1, 1, low=-1, high=1) for _ in range(2))
        x, y = self.turned(draws.uniform(1, 1, high=2 * math.pi), centre_x, centre_y)
        stretch = draws.uniform(1, 1, low=0.87, high=1.15)
        x, y = x / radius * stretch, y / radius / stretch
        distance = torch.empty_like(x)
        for index, name in enumerate(_SHAPES):
            chosen = which == index
            distance[chosen] = _unit_distance(name, x[chosen], y[chosen])
        return distance * radius


def _unit_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance from a shape of about unit radius; areas are near 2.2, so that size tells no class."""
    if name == "circle":
        return (x.square() + y.square()).sqrt() - 0.85
    if name == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.75
    if name == "cross":
        long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        return torch.maximum(long - 1.0, short - 0.32)
    if name == "triangle":
        slanted = x.abs() * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)
        return torch.maximum(slanted, -y) - 0.6
    fifth = 2 * math.pi / 5  # star: fold the plane into half a spike, then measure from its straight edge
    angle, length = torch.atan2(y, x), (x.square() + y.square()).sqrt()
    angle = (angle - fifth * (angle / fifth).round()).abs()
    tip, notch = 1.15, (0.52 * math.cos(fifth / 2), 0.52 * math.sin(fifth / 2))
    edge_x, edge_y = notch[0] - tip, notch[1]
    normal = math.hypot(edge_x, edge_y)
    return ((length * angle.cos() - tip) * edge_y - length * angle.sin() * edge_x) / normal


def _cover(distance: Tensor) -> Tensor:
    """Share of each pixel inside an outline: the antialiased edge is one pixel wide."""
    return (0.5 - distance).clamp(0, 1)


def _draw_colours(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Colours of background, shape and stripes, (B, 3) each, the stripes apart from both others."""
    background = draws.uniform(3, low=0.05, high=0.95)
    fill = _contrasting(draws, background[:, None])
    return background, fill, _contrasting(draws, torch.stack([background, fill], dim=1))


def _contrasting(draws: Draws, others: Tensor) -> Tensor:
    """Take the first random colour far enough from all others (B, M, 3), or else the farthest: (B, 3)."""
    candidates = draws.uniform(_CANDIDATES, 3)
    gaps = (candidates[:, :, None] - others[:, None]).square() @ torch.tensor(_LUMA)  # (B, candidates, M)
    nearest = gaps.amin(dim=2).sqrt()
    choice = torch.where(nearest >= _CONTRAST, 2.0, nearest).argmax(dim=1)  # argmax returns the first of equals
    return candidates[torch.arange(len(choice)), choice]


def _draw_background(draws: Draws, colour: Tensor, scene: _Scene) -> Tensor:
    """A gradient with faint stripes on some pictures, discs and bars: (B, 3, H, W)."""
    canvas = colour[:, :, None, None] + _gradient(draws, scene, strength=0.25)
    faint = draws.uniform(1, 1, 1, low=-0.12, high=0.12) * draws.bernoulli(0.5, 1, 1, 1)
    canvas = canvas + faint * _draw_stripes(draws, scene)[:, None]
    for index in range(4):
        place = draws.uniform(2, 1, 1, low=-0.5, high=0.5) * scene.size
        x, y = scene.turned(draws.uniform(1, 1, high=2 * math.pi), place[:, 0], place[:, 1])
        length, width = (scene.size * draws.uniform(1, 1, low=0.03, high=high) for high in (0.2, 0.06))
        disc = (x.square() + y.square()).sqrt() - 1.3 * width
        bar = torch.maximum(x.abs() - length, y.abs() - 0.5 * width)
        tint = colour + draws.uniform(3, low=-0.3, high=0.3)
        canvas = torch.lerp(canvas, tint[:, :, None, None], _cover(disc if index % 2 else bar)[:, None])
    return canvas


def _draw_stripes(draws: Draws, scene: _Scene) -> Tensor:
    """Parallel stripes of random angle and width, 0 to 1: (B, H, W)."""
    across, _ = scene.turned(draws.uniform(1, 1, high=math.pi), torch.zeros(1), torch.zeros(1))
    period = scene.size / 32 * draws.uniform(1, 1, low=4.0, high=6.5)
    wave = (2 * math.pi * (across / period + draws.uniform(1, 1))).sin()
    return (0.5 + 1.5 * wave).clamp(0, 1)


def _gradient(draws: Draws, scene: _Scene, strength: float) -> Tensor:
    """A linear change of each channel across the picture, at most strength at its corners: (B, 3, H, W)."""
    slope = draws.uniform(2, 3, 1, 1, low=-strength / 2, high=strength / 2) * 2 / scene.size
    return slope[:, 0] * scene.x + slope[:, 1] * scene.y
