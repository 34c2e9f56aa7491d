"""Ready-made filters: what they keep, what they tell the manifest, and how they are told apart."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.generation import KeepAll, KeepConfident, KeepNew, generate_dataset, nearest_copies


class Brightness(nn.Module):
    """A classifier of two classes, dark and bright, that is 50 % sure of grey."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: Tensor) -> Tensor:
        logit = self.slope * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-logit, logit], 1) / 2


def unchanged(images: Tensor) -> Tensor:
    return images


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_a_confident_image_is_kept_between_the_bounds() -> None:
    images, labels = grey(-1, 0.0, 0.5, 1), torch.tensor([1, 1, 1, 1])
    kept, scores = KeepConfident(Brightness(), unchanged, low=0.4, high=0.9)(images, labels)
    assert kept.tolist() == [False, True, True, False]
    expected = torch.sigmoid(8 * torch.tensor([-0.5, 0, 0.25, 0.5]))
    assert torch.allclose(scores["confidence"], expected, atol=1e-5)


def test_the_label_decides_whose_confidence_counts() -> None:
    kept, _ = KeepConfident(Brightness(), unchanged)(grey(-1, -1), torch.tensor([0, 1]))
    assert kept.tolist() == [True, False]


def test_a_new_image_is_kept() -> None:
    train = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([train[2:3], 255 - train[2:3]]).float() / 127.5 - 1
    kept, scores = KeepNew(train, 0.1)(images, torch.tensor([0, 0]))
    assert kept.tolist() == [False, True]
    assert scores["distance"][0] == 0
    assert scores["distance"][1] == nearest_copies(train, 255 - train[2:3]).distances
    assert not KeepNew(train, 0.1, mirror=True)(images[:1].flip(3), torch.tensor([0]))[0]


def test_all_filters_must_agree_and_every_score_is_told(tmp_path: Path) -> None:
    train = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    keep = KeepAll(KeepConfident(Brightness(), unchanged), KeepNew(train, 3.2), lambda images, labels: labels >= 0)
    kept, scores = keep(grey(0.2, 0.9, 0.9), torch.tensor([1, 1, 0]))
    assert kept.tolist() == [False, True, False]
    assert list(scores) == ["confidence", "distance"]
    twice = KeepAll(*(KeepConfident(Brightness(), unchanged, low=low) for low in (0.5, 0.6, 0.7)))
    assert list(twice(grey(0.9), torch.tensor([1]))[1]) == ["confidence", "confidence_2", "confidence_3"]


def test_filters_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    def export(keep: Any) -> None:
        generate_dataset(
            lambda labels, generator: grey(*labels * 2.0 - 1), classes=("dark", "bright"), per_class=2,
            folder=tmp_path, keep=keep,
        )  # fmt: skip

    export(KeepConfident(Brightness(), unchanged, low=0.6))
    export(KeepConfident(Brightness(), unchanged, low=0.6))
    other = Brightness()
    other.slope.data += 1
    for keep in (KeepConfident(Brightness(), unchanged, low=0.7), KeepConfident(other, unchanged, low=0.6)):
        with pytest.raises(
            ValueError, match=r"was begun with keep='confidence from 0.6 to 1, Brightness [0-9a-f]{16}'"
        ):
            export(keep)
    black, white = (torch.full((3, 3, 2, 2), value, dtype=torch.uint8) for value in (0, 255))
    described = [KeepAll(KeepNew(images, 1), unchanged).description for images in (black, white, black)]
    assert described[0] == described[2] != described[1]
    words = "distance of at least 1 to 3 images [0-9a-f]{16}, mirror=False; unchanged"
    assert all(re.fullmatch(words, each) for each in described)


def test_what_filters_give_is_checked() -> None:
    images, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="labels run from 0 to 5; for num_classes=2 they must be 0 to 1"):
        KeepConfident(Brightness(), unchanged)(images, labels)
    with pytest.raises(TypeError, match="keep gives NoneType for 2 images; it must return bool"):
        KeepAll(lambda images, labels: None)(images, labels)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeepConfident(3, unchanged), TypeError, "model is a int; give a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: KeepConfident(Brightness(), 3), TypeError, "transform is 3; give what the model was"),  # type: ignore[arg-type]
        (lambda: KeepConfident(Brightness(), unchanged, low=0.9, high=0.8), ValueError, "low=0.9 must be .* most 0.8"),
        (lambda: KeepConfident(Brightness(), unchanged, high=1.1), ValueError, "high=1.1 must be"),
        (lambda: KeepNew(torch.zeros(2, 3, 4, 4), 1), TypeError, "train must be uint8 images, got torch.float32"),
        (lambda: KeepNew(torch.zeros(2, 3, 4, 4).byte(), -1), ValueError, "distance=-1 must be at least 0"),
        (lambda: KeepAll(3), TypeError, "keeps is 3; give filters"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
