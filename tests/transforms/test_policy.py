"""TrivialAugment: each operation as torchvision does it, operations and strengths drawn uniformly."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.transforms import TrivialAugment
from cifarkit.transforms.policy import OPERATIONS

NAMES = list(OPERATIONS)
FILL = [100.0] * 3


def slant(degrees_x: float, degrees_y: float) -> Callable[[Tensor, float], Tensor]:
    def shear(image: Tensor, slope: float) -> Tensor:
        angle = math.degrees(math.atan(slope))
        return TF.affine(image, 0, [0, 0], 1.0, [degrees_x * angle, degrees_y * angle], fill=FILL)

    return shear


THEIRS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, strength: image,
    "shear_x": slant(1, 0),
    "shear_y": slant(0, 1),
    "translate_x": lambda image, strength: TF.affine(image, 0, [int(strength), 0], 1.0, [0, 0], fill=FILL),
    "translate_y": lambda image, strength: TF.affine(image, 0, [0, int(strength)], 1.0, [0, 0], fill=FILL),
    "rotate": lambda image, strength: TF.rotate(image, strength, fill=FILL),
    "brightness": TF.adjust_brightness,
    "saturation": TF.adjust_saturation,
    "contrast": TF.adjust_contrast,
    "sharpness": TF.adjust_sharpness,
    "posterize": lambda image, strength: TF.posterize(image, int(strength)),
    "solarize": lambda image, strength: TF.solarize(image, round(strength * 255)),
    "autocontrast": lambda image, strength: TF.autocontrast(image),
    "equalize": lambda image, strength: TF.equalize(image),
}
STRENGTHS = {
    **{name: [-0.7, 0.3] for name in ("shear_x", "shear_y")},
    **{name: [-9.0, 5.0] for name in ("translate_x", "translate_y")},
    "rotate": [-40.0, 13.0],
    **{name: [0.1, 1.6] for name in ("brightness", "saturation", "contrast", "sharpness")},
    "posterize": [2.0, 7.0],
    "solarize": [0.2, 0.8],
}


def photos(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return (noise + torch.arange(32) * 4).byte()  # neither flat nor full-range


@pytest.mark.parametrize("name", NAMES)
def test_operations_equal_torchvision(name: str) -> None:
    strengths = STRENGTHS.get(name, [0.0, 0.0])
    parameters = torch.tensor([[NAMES.index(name), strength] for strength in strengths])
    result = TrivialAugment(fill=100 / 255).apply(photos(), parameters)
    expected = torch.stack([THEIRS[name](photos()[i], strengths[i]) for i in range(2)])
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= (2 if name in ("saturation", "contrast", "sharpness") else 1)  # theirs truncates twice
    assert name == "identity" or not torch.equal(result, photos())


def test_operations_and_strengths_are_uniform() -> None:
    number, strength = TrivialAugment().parameters(Draws(0, 0, torch.arange(28_000)), 32, 32).unbind(1)
    counts = torch.bincount(number.long(), minlength=len(NAMES)).double()
    assert ((counts - 2000) ** 2 / 2000).sum() / 13 < 2.5
    turns = strength[number == NAMES.index("rotate")]
    assert len((turns / 4.5).round().unique()) == 61  # 31 levels, two signs
    assert turns.min() == -135
    assert turns.max() == 135
    bits = strength[number == NAMES.index("posterize")]
    assert bits.unique().tolist() == [2, 3, 4, 5, 6, 7, 8]
    factors = strength[number == NAMES.index("brightness")]
    assert factors.min().item() == pytest.approx(0.01)
    assert factors.max().item() == pytest.approx(1.99)


def test_milder_strengths() -> None:
    number, strength = TrivialAugment(wide=False).parameters(Draws(0, 0, torch.arange(9000)), 32, 32).unbind(1)
    assert strength[number == NAMES.index("rotate")].max() == 30
    assert strength[number == NAMES.index("translate_x")].min() == -10
    assert strength[number == NAMES.index("posterize")].min() == 4


def test_flat_images_stay() -> None:
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    parameters = torch.tensor([[NAMES.index("autocontrast"), 0.0], [NAMES.index("equalize"), 0.0]])
    assert torch.equal(TrivialAugment().apply(flat, parameters), flat)


def test_images_that_are_normalised_already_are_refused() -> None:
    parameters = torch.tensor([[NAMES.index("equalize"), 0.0]])
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\] here; put Normalize behind TrivialAugment"):
        TrivialAugment().apply(torch.full((1, 3, 8, 8), -1.0), parameters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_operation_keeps_the_dtype(dtype: torch.dtype) -> None:
    images = torch.rand(256, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert TrivialAugment()(images, Draws(0, 0, torch.arange(256))).dtype == dtype
