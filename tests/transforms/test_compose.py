"""Compose: the same pixels as one transform after another, gathered at once where that is possible."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cifarkit.seeding import Draws
from cifarkit.transforms import (
    AlternatingFlip,
    ColorJitter,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    Resize,
    Transform,
    TrivialAugment,
)
from cifarkit.transforms.base import to_float
from cifarkit.transforms.compose import Resampling


def photos(count: int = 40, channels: int = 3, height: int = 16, width: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def in_turn(transforms: list[Transform], images: Tensor, draws: Draws) -> Tensor:
    for transform in transforms:
        images = transform(images, draws)
    return images


CROPS = [RandomCrop((14, 15), 3, mode, fill=0.2) for mode in ("reflect", "symmetric", "edge", "constant")]
FUSED = [
    *[[crop, RandomHorizontalFlip()] for crop in CROPS],
    *[[crop, RandomHorizontalFlip(), RandomRotation(40, fill=0.7)] for crop in CROPS],
    [RandomHorizontalFlip(), AlternatingFlip(), CROPS[3]],
    [AlternatingFlip(), RandomRotation(90)],
    [CROPS[0], RandomRotation(90), CROPS[3], RandomHorizontalFlip()],
    [CROPS[3], RandomCrop(18, 4, "constant", fill=0.9), RandomRotation(10)],
    [CROPS[1], RandomHorizontalFlip(), RandomRotation(40, interpolation="bilinear")],
]


@pytest.mark.parametrize("transforms", FUSED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_fused_moves_equal_the_sequence(transforms: list[Transform], channels: int, dtype: torch.dtype) -> None:
    images = photos(channels=channels) if dtype == torch.uint8 else to_float(photos(channels=channels))
    fused = Compose(transforms)
    assert any(isinstance(step, Resampling) for step, *_ in fused._steps)
    samples = torch.arange(40)
    expected = in_turn(transforms, images, Draws(5, 1, samples))
    assert torch.equal(fused(images, Draws(5, 1, samples)), expected)


def test_crop_fill_and_rotation_fill_stay_apart() -> None:
    images = torch.full((60, 3, 16, 16), 9, dtype=torch.uint8)
    result = Compose([RandomCrop(16, 8, "constant", fill=0.0), RandomRotation(45, fill=(0.2, 0.4, 0.6))])(images)
    assert [result[:, channel].unique().tolist() for channel in range(3)] == [[0, 9, 51], [0, 9, 102], [0, 9, 153]]


def test_whole_pipelines_equal_the_sequence() -> None:
    images, samples = photos(height=32, width=32), torch.arange(40)
    transforms = [RandomCrop(32), AlternatingFlip(), RandomRotation(15), Cutout(8), Normalize(0.5, 0.2)]
    expected = in_turn(transforms, images, Draws(5, 1, samples))
    assert torch.equal(Compose(transforms)(images, Draws(5, 1, samples)), expected)
    nested = Compose([Compose(transforms[:2]), Compose(transforms[2:])])
    assert torch.equal(nested(images, Draws(5, 1, samples)), expected)
    assert len(nested._steps) == 3


def test_bytes_stay_bytes_until_a_transform_needs_floats() -> None:
    seen = []

    def spy(images: Tensor) -> Tensor:
        seen.append((images.dtype, images.max().item() <= 1))
        return images

    result = Compose([RandomCrop(8), Cutout(2), spy, Resize(4)])(photos())
    assert seen == [(torch.float32, True)]
    assert result.dtype == torch.float32
    assert Compose([RandomCrop(8), Cutout(2)])(photos()).dtype == torch.uint8
    assert torch.equal(Compose([])(photos()), photos())


def test_foreign_callables_get_draws_only_if_they_ask() -> None:
    def with_draws(images: Tensor, draws: Draws) -> Tensor:
        return images + draws.uniform()[:, None, None, None]

    source = Draws(0, 0, torch.arange(40))
    expected = to_float(photos()).flip(-1) + source.uniform()[:, None, None, None]
    result = Compose([v2.RandomHorizontalFlip(p=1.0), with_draws])(photos(), Draws(0, 0, torch.arange(40)))
    assert torch.equal(result, expected)


@pytest.mark.parametrize("late", [RandomRotation(5), ColorJitter(), Cutout(2), TrivialAugment(), Normalize(0.5, 0.5)])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: Compose([t])], ids=["bare", "nested"])
def test_normalize_comes_last(late: Transform, wrap: Callable[[Transform], Transform]) -> None:
    name = type(late).__name__
    with pytest.raises(ValueError, match=rf"put {name} before Normalize in Compose"):
        Compose([wrap(Normalize(0.5, 0.5)), wrap(late)])


def test_crop_and_flip_may_follow_normalize() -> None:
    Compose([Normalize(0.5, 0.5), RandomCrop(8), RandomHorizontalFlip()])(photos())


def test_errors() -> None:
    with pytest.raises(TypeError, match="transforms is a RandomCrop; give a list"):
        Compose(RandomCrop(8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"transforms\[1\]=3 is no transform; give a callable"):
        Compose([RandomCrop(8), 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="give it to ClassificationTask"):
        Compose([RandomCrop(8), Mixup(1.0)])


def test_repr_lists_the_transforms() -> None:
    assert (
        repr(Compose([RandomHorizontalFlip(), Resize(8)])) == "Compose([RandomHorizontalFlip(p=0.5), Resize(size=8)])"
    )
