"""A score says what it was measured on, and how far real images are from real ones."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from cifarkit.generation import Score, frechet_distance, kernel_distance, score


def normal(count: int, seed: int = 0, size: int = 4) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def measure(**options: Any) -> Score:
    return score(**{"real": normal(80), "fake": normal(40, 1) + 1, "features": "a TinyNet", "split": "train"} | options)


def test_figures_are_those_of_their_functions() -> None:
    result = measure()
    assert result.figures["frechet"] == frechet_distance(normal(80), normal(40, 1) + 1)
    assert result.figures["kernel"] == kernel_distance(normal(80), normal(40, 1) + 1)
    assert list(result.figures) == list(result.floor) == [
        "frechet", "kernel", "precision", "recall", "density", "coverage",
    ]  # fmt: skip


def test_the_floor_is_between_halves_or_to_other_real_images() -> None:
    halves, other = measure(), measure(other_real=normal(40, 2))
    assert 0 < halves.floor["frechet"] < halves.figures["frechet"]
    assert other.floor["frechet"] == frechet_distance(normal(80), normal(40, 2))
    assert "real against real: two parts of the real images, 40 and 40" in halves.protocol
    assert "real against real: the same real images and 40 others" in other.protocol
    assert "two parts of the real images, 70 and 10" in measure(fake=normal(10, 1)).protocol
    many = measure(fake=normal(20, 1), other_real=normal(40, 2))  # figures depend on how many images there are
    assert "the same real images and 20 others" in many.protocol
    assert many.floor["coverage"] < measure(fake=normal(40, 1), other_real=normal(40, 2)).floor["coverage"]
    assert measure(seed=1).floor != halves.floor == measure().floor


def test_it_is_printed_with_its_protocol() -> None:
    text = str(measure())
    assert "80 real images (train) and 40 generated ones; features: a TinyNet, D=4" in text
    assert [line.split("  ")[0] for line in text.splitlines()[:2]] == ["Fréchet distance", "kernel distance"]
    assert text.count("real against real") == 7


def test_the_worst_class_is_named() -> None:
    fake = normal(40, 1)
    fake[20:] += 2
    labels = torch.arange(80) % 2, torch.arange(40) // 20
    result = measure(fake=fake, labels=labels, classes=("cat", "dog"))
    assert result.worst_class == "dog"
    assert result.per_class["cat"] == pytest.approx(kernel_distance(normal(80)[::2], fake[:20]))
    assert "dog; kernel distance, mean" in str(result)
    assert measure().worst_class is None


def test_each_class_has_its_floor() -> None:
    labels, others = (torch.arange(80) % 2, torch.arange(40) // 20), torch.arange(40) // 38
    options: dict[str, Any] = {"labels": labels, "classes": ("cat", "dog")}
    halves, told = measure(**options), measure(other_real=normal(40, 2), other_labels=others, **options)
    assert halves.floor_per_class.keys() == halves.per_class.keys()
    assert told.floor_per_class["cat"] == pytest.approx(kernel_distance(normal(80)[::2], normal(40, 2)[:38]))
    assert "real against real" in str(told).splitlines()[6]
    few = measure(other_real=normal(40, 2), other_labels=torch.arange(40) // 39, **options)
    assert {*few.floor_per_class} == {"cat"}  # of the dogs there is one
    assert not measure(other_real=normal(40, 2), **options).floor_per_class


def test_it_can_be_kept_as_json() -> None:
    assert json.loads(json.dumps(measure().as_dict()))["figures"].keys() == measure().figures.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": normal(11)}, "real has 11 rows, too few for two parts; give other_real, or 12"),
        ({"fake": normal(5)}, r"fake has shape \(5, 4\); it must be \(N, D\), N at least 6"),
        ({"other_real": normal(5)}, r"N at least 6"),
        ({"labels": (torch.zeros(80), torch.zeros(40))}, "labels and classes must both be given, or neither"),
        (
            {"labels": (torch.zeros(80), torch.zeros(39)), "classes": ("cat",)},
            r"labels of the fake images have shape \(39,\)",
        ),
        ({"other_labels": torch.zeros(40)}, "other_labels need other_real, whose labels they are, and the labels"),
        (
            {
                "labels": (torch.zeros(80), torch.zeros(40)),
                "classes": ("cat",),
                "other_real": normal(40, 2),
                "other_labels": torch.zeros(39),
            },
            r"labels of the other real images have shape \(39,\)",
        ),
        (
            {"labels": (torch.zeros(80), torch.zeros(40)), "classes": ("cat", "dog")},
            "class 'dog' has 0 real and 0 generated images",
        ),
        (
            {"labels": (torch.zeros(80), torch.full((40,), 2)), "classes": ("cat", "dog")},
            "labels of the fake images run from 2 to 2, but classes names 2",
        ),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**change)


def test_labels_that_are_no_pair_are_named() -> None:
    with pytest.raises(TypeError, match="labels must be a pair, those of the real and of the fake images; got Tensor"):
        measure(labels=torch.zeros(80), classes=("cat",))
