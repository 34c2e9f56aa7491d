"""Compose: the same pixels as one transform after another, gathered at once where that is possible."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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
    with pytest.raises(TypeError, match=r"transforms\[1\] is 3; give a callable of images, as in Compose"):
        Compose([RandomCrop(8), 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"transforms\[0\] is the class Normalize; give a callable"):
        Compose([Normalize])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"Mixup\(alpha=1\.0\), which mixes labels too; give it to ClassificationTask"):
        Compose([RandomCrop(8), Mixup(1.0)])


class WhiteEdge(RandomCrop):
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        cut = super().apply(images, parameters).clone()
        cut[:, :, 0] = 255 if cut.dtype == torch.uint8 else 1
        return cut


class StillFlip(RandomHorizontalFlip):
    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        return images


class UpsideDown(RandomHorizontalFlip):
    def move(self, rows: Tensor, columns: Tensor, parameters: Tensor, outside: int) -> tuple[Tensor, Tensor]:
        return rows.flip(1), columns


class DarkRotation(RandomRotation):
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        return super().apply(images, parameters) // 2


class RareFlip(RandomHorizontalFlip):
    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        return draws.bernoulli(0.5) & draws.bernoulli(0.5)


class Inverted(Compose):
    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        return 255 - super().__call__(images, draws)


@pytest.mark.parametrize(
    "member", [WhiteEdge(16), StillFlip(), UpsideDown(), DarkRotation(20), Inverted([RandomCrop(16)])], ids=repr
)
def test_a_subclass_with_pixels_of_its_own_keeps_them(member: Transform) -> None:
    transforms, samples = [RandomCrop(16), member, RandomHorizontalFlip(), RandomRotation(20)], torch.arange(40)
    expected = in_turn(transforms, photos(), Draws(5, 1, samples))
    assert torch.equal(Compose(transforms)(photos(), Draws(5, 1, samples)), expected)


def test_a_subclass_with_draws_of_its_own_is_fused() -> None:
    fused, samples = Compose([RandomCrop(16), RareFlip()]), torch.arange(40)
    assert [type(step) for step, *_ in fused._steps] == [Resampling]
    expected = in_turn([RandomCrop(16), RareFlip()], photos(), Draws(5, 1, samples))
    assert torch.equal(fused(photos(), Draws(5, 1, samples)), expected)


def test_a_module_gets_the_draws_its_forward_takes() -> None:
    class Shift(nn.Module):
        def forward(self, images: Tensor, draws: Draws) -> Tensor:
            return images + draws.uniform()[:, None, None, None]

    expected = to_float(photos()) + Draws(0, 0, torch.arange(40)).uniform()[:, None, None, None]
    assert torch.equal(Compose([Shift()])(photos(), Draws(0, 0, torch.arange(40))), expected)


def test_keyed_tells_whether_every_member_leaves_the_global_random_numbers_alone() -> None:
    def double(images: Tensor) -> Tensor:
        return 2 * images

    assert Compose([]).keyed
    assert Compose([RandomCrop(8), Compose([TrivialAugment(), Normalize(0.5, 0.5)])]).keyed
    for foreign in (double, v2.RandomHorizontalFlip(), torch.neg, Compose([double])):
        assert not Compose([RandomCrop(8), foreign]).keyed
    declared: Any = double
    declared.keyed = True
    assert Compose([RandomCrop(8), declared]).keyed


def test_it_is_fixed_if_every_member_says_so() -> None:
    def double(images: Tensor) -> Tensor:
        return 2 * images

    assert Compose([]).fixed
    assert Compose([Resize(8), Compose([Normalize(0.5, 0.5)])]).fixed
    for moving in (RandomCrop(8), double, v2.Resize(8), Compose([double]), Compose([AlternatingFlip()])):
        assert not Compose([Resize(8), moving]).fixed
    declared: Any = double
    declared.fixed = True
    assert Compose([Resize(8), declared]).fixed


def test_repr_lists_the_transforms() -> None:
    assert (
        repr(Compose([RandomHorizontalFlip(), Resize(8)])) == "Compose([RandomHorizontalFlip(p=0.5), Resize(size=8)])"
    )
