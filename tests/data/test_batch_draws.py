"""Transforms that draw once a batch: found inside others, warned of once, and no others are."""

import warnings
from typing import Any

import pytest
import torch
from torchvision import transforms as torchvision_transforms
from torchvision.transforms import v2

from cifarkit.data import ImageDataset, Loader
from cifarkit.transforms import ByEpoch, Compose, RandomCrop


def drawn(count: int, size: int) -> ImageDataset:
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return ImageDataset(pixels.byte(), torch.zeros(count, dtype=torch.int64), ("one",))


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v2.RandomHorizontalFlip(), "RandomHorizontalFlip, .* use cifarkit.transforms.RandomHorizontalFlip, or lambda"),
        (torchvision_transforms.RandomCrop(8), "RandomCrop, .* use cifarkit.transforms.RandomCrop, or lambda"),
        (v2.Compose([v2.Resize(8), v2.ColorJitter(0.1)]), "ColorJitter, .* use cifarkit.transforms.ColorJitter, or"),
        (Compose([v2.Compose([v2.RandAugment()])]), "RandAugment, .* use cifarkit.transforms.TrivialAugment, or"),
        (ByEpoch({0: torch.neg, 2: v2.GaussianBlur(3)}), r"GaussianBlur, .* use lambda images: torch\.stack"),
    ],
)
def test_one_draw_for_a_whole_batch_is_warned_of_once(transform: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=rf"torchvision's {words}") as caught:
        Loader(drawn(9, 8), 4, transform=transform)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("transform", [v2.Normalize([0.5], [0.5]), RandomCrop(8), Compose([torch.neg]), None])
def test_other_transforms_are_not_warned_of(transform: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Loader(drawn(9, 8), 4, transform=transform)


def test_a_map_by_image_draws_for_each() -> None:
    flip = v2.RandomHorizontalFlip()
    images, _ = next(iter(Loader(drawn(32, 4), 32, transform=lambda x: torch.stack([flip(one) for one in x]))))
    turned = (images != drawn(32, 4).images.float() / 255).flatten(1).any(1)
    assert turned.any()
    assert not turned.all()
