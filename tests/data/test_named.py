"""Images by name or path: each the same as by its own function, cut evenly by count, and named when unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cifarkit import data
from cifarkit.plots import image_grid


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(("cifar10-train", "cifar10-test", "own")):
        data.shapes(40, seed=seed).save(tmp_path / f"{name}.npz")
    return tmp_path


def same(some: data.ImageDataset, other: data.ImageDataset) -> bool:
    return torch.equal(some.images, other.images) and torch.equal(some.labels, other.labels)


def test_shapes_are_drawn_anew_for_testing() -> None:
    assert same(data.load("shapes", count=30), data.shapes(30))
    assert same(data.load("shapes", count=30, train=False, size=28), data.shapes(30, seed=1, size=28))


@pytest.mark.parametrize("train", [True, False])
def test_cifar_is_read_from_root(root: Path, train: bool) -> None:
    assert same(data.load("cifar10", root=root, train=train), data.cifar10(root, train=train))
    with pytest.raises(FileNotFoundError, match=r"CIFAR-100 is not in .*download=True"):
        data.load("cifar100", root=root, train=train)


@pytest.mark.parametrize("train", [True, False])
def test_a_file_is_read_whole(root: Path, train: bool) -> None:
    assert same(data.load(root / "own.npz", train=train), data.load_npz(root / "own.npz"))
    assert same(data.load(str(root / "own.npz"), count=1_000), data.load_npz(root / "own.npz"))


def test_a_folder_is_read_and_resized(tmp_path: Path) -> None:
    drawn = data.shapes(2)
    for name, image in zip(("a", "b"), drawn.images, strict=True):
        (tmp_path / name).mkdir()
        image_grid(image[None], path=tmp_path / name / "0.png")
    found = data.load(tmp_path, size=16)
    assert same(found, data.image_folder(tmp_path, size=16))
    assert found.image_shape == (3, 16, 16)


def test_count_takes_as_many_of_each_class(root: Path) -> None:
    some = data.load(root / "own.npz", count=20)
    assert some.labels.bincount().tolist() == [2] * 10


def test_what_is_no_source_is_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder cifar; give one, or shapes, cifar10, cifar100"):
        data.load("cifar")
    with pytest.raises(ValueError, match=r"size=28 is for a folder of pictures or shapes; leave it out for cifar10"):
        data.load("cifar10", root=root, size=28)
    with pytest.raises(TypeError, match="source"):
        data.load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count=0"):
        data.load("shapes", count=0)
    with pytest.raises(TypeError, match=r"count=2\.5"):
        data.load("shapes", count=2.5)  # type: ignore[arg-type]


def test_a_size_of_nothing_is_refused_and_one_of_cifar_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="size"):
        data.load("shapes", size=0, count=10)
    (root / "cifar10").mkdir()
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="size=64 is for a folder of pictures or shapes; leave it out for cifar10"):
        data.load("cifar10", root=root, size=64)


def test_classes_that_labels_would_not_mean_are_refused(root: Path) -> None:
    classes = data.load(root / "own.npz").classes
    assert data.load("shapes", count=20, classes=classes).classes == classes
    for asked, label, other in ((classes[::-1], 0, classes[-1]), (classes[:9], 9, "none")):
        message = f"label {label} means {classes[label]!r} there and {other!r} here"
        with pytest.raises(ValueError, match=message):
            data.load(root / "own.npz", classes=asked)
    for name in ("b", "c"):
        image_grid(torch.zeros(1, 3, 8, 8), path=root / "photos" / name / "one.png")
    found = data.load(root / "photos", size=8, classes=("a", "b", "c"))
    assert (found.classes, found.labels.tolist()) == (("a", "b", "c"), [1, 2])
