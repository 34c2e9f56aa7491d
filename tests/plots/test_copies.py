"""Pairs of a sample and its nearest training image, the nearest pairs first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cifarkit.plots.copies import nearest_pairs

TRAIN = torch.arange(0, 250, 25, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8)
SAMPLES = torch.tensor([101, 30, 220], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 8, 8)
DISTANCES, INDICES = torch.tensor([1.0, 5.0, 4.25]), torch.tensor([4, 1, 9])


def test_the_nearest_pairs_come_first() -> None:
    figure = nearest_pairs(SAMPLES, TRAIN, DISTANCES, INDICES, count=2)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:4] == ["generated 0", "1 to 4", "generated 2", "4.25 to 9"]
    assert "nearest training image" in texts[-1]


def test_each_sample_is_left_of_its_training_image() -> None:
    figure = nearest_pairs(SAMPLES, TRAIN, DISTANCES, INDICES, count=2, title="")
    page = np.asarray(figure.axes[0].images[0].get_array())[:, :, 0]
    row = page[len(page) // 2]
    shades = [int(value) for value, before in zip(row[1:], row[:-1], strict=True) if value != before and value < 255]
    assert shades == [101, 100, 220, 225]


def test_a_training_image_is_mirrored_where_it_is_nearer_so() -> None:
    train = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    train[:, :, :, 0] = 200  # a bar on the left
    samples = torch.stack([train[0], train[0].flip(2)])
    by_hand = torch.stack([train[0], train[1].flip(2)])

    def page(own: torch.Tensor, **options: Any) -> Any:
        figure = nearest_pairs(samples, own, torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), title="", **options)
        return np.asarray(figure.axes[0].images[0].get_array())

    assert np.array_equal(page(train, mirror=True), page(by_hand))
    assert not np.array_equal(page(train), page(by_hand))


def test_floats_need_their_range_and_a_file_is_written(tmp_path: Path) -> None:
    samples, train = SAMPLES / 127.5 - 1, TRAIN / 127.5 - 1
    nearest_pairs(samples, train, DISTANCES, INDICES, 3, tmp_path / "pairs.png", value_range=(-1, 1))
    assert imread(tmp_path / "pairs.png").ndim == 3
    with pytest.raises(ValueError, match="outside"):
        nearest_pairs(samples, train, DISTANCES, INDICES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": DISTANCES[:2]}, "distances has 2 entries but samples has 3"),
        ({"indices": INDICES[:2]}, "indices has 2 entries but samples has 3"),
        ({"indices": INDICES + 1}, "indices run from 2 to 10, train has 10 images"),
        ({"train": TRAIN[..., :4]}, r"samples are \(3, 8, 8\) and train \(3, 8, 4\)"),
        ({"count": 0}, "count=0 must be at least 1"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments = {"samples": SAMPLES, "train": TRAIN, "distances": DISTANCES, "indices": INDICES} | change
    with pytest.raises(ValueError, match=message):
        nearest_pairs(**arguments)
