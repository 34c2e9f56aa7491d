"""ByEpoch: which transform acts when, and what the Loader is told about it."""

import pytest
import torch
from torch import Tensor

from cifarkit import data
from cifarkit.seeding import Draws
from cifarkit.transforms import AlternatingFlip, ByEpoch, Compose, Normalize, RandomCrop


def draws(epoch: int, count: int = 4) -> Draws:
    return Draws(0, epoch, torch.arange(count))


def test_each_stage_acts_from_its_epoch_on() -> None:
    transform = ByEpoch({0: RandomCrop(24, 0), 3: RandomCrop(28, 0), 5: RandomCrop(32, 2)})
    sides = [transform(torch.rand(4, 3, 32, 32), draws(epoch)).shape[-1] for epoch in range(7)]
    assert sides == [24, 24, 24, 28, 28, 32, 32]


def test_a_stage_gives_what_it_gives_alone() -> None:
    images, stage = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), RandomCrop(24, 0)
    assert torch.equal(ByEpoch({0: AlternatingFlip(), 2: stage})(images, draws(2)), stage(images, draws(2)))


def test_without_draws_the_first_stage_acts() -> None:
    assert ByEpoch({0: RandomCrop(24, 0), 1: RandomCrop(28, 0)})(torch.rand(2, 3, 32, 32)).shape[-1] == 24


def test_a_plain_callable_gets_floats_and_no_draws() -> None:
    def halve(images: Tensor) -> Tensor:
        return images / 2

    images = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    assert ByEpoch({0: halve})(images, draws(0)).eq(0.5).all()


def test_the_loader_follows_the_epochs() -> None:
    loader = data.Loader(data.shapes(40), 20, transform=ByEpoch({0: RandomCrop(24, 0), 1: RandomCrop(32, 2)}))
    assert [images.shape[-1] for _ in range(2) for images, _ in loader] == [24, 24, 32, 32]


def test_it_is_as_stateless_and_keyed_as_its_stages() -> None:
    kept = ByEpoch({0: RandomCrop(24, 0), 1: Compose([RandomCrop(32), Normalize((0.5,), (0.5,))])})
    assert (kept.keyed, kept.stateless, kept.fixed, kept.leaves_unit_range) == (True, True, False, True)
    assert not ByEpoch({0: torch.relu}).keyed


def test_wrong_stages_are_named() -> None:
    with pytest.raises(TypeError, match="stages is a list; give"):
        ByEpoch([RandomCrop(24)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stages begin at epochs \[1\]; one must begin at 0"):
        ByEpoch({1: RandomCrop(24)})
    with pytest.raises(ValueError, match=r"stages begin at epochs \[\]"):
        ByEpoch({})
    with pytest.raises(TypeError, match="a first epoch in stages='0' is a str"):
        ByEpoch({"0": RandomCrop(24)})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"stages\[0\]"):
        ByEpoch({0: 24})  # type: ignore[dict-item]
