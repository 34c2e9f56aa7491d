"""ImageDataset: what it accepts, and that nothing is lost, mixed or repeated on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cifarkit.data import ImageDataset, load_npz

NAMES = ("cat", "dog", "fox")


def toy(count: int = 12, names: tuple[str, ...] = NAMES, seed: int = 0) -> ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return ImageDataset(images, torch.arange(count) % len(names), names)


def numbered(labels: list[int], num_classes: int) -> ImageDataset:
    """Images whose pixels spell their index, so that parts can be compared."""
    index = torch.arange(len(labels))
    images = torch.stack([index % 256, index // 256, 0 * index], dim=1).to(torch.uint8)[:, :, None, None]
    return ImageDataset(images, torch.tensor(labels), [f"class {k}" for k in range(num_classes)])


def indices(dataset: ImageDataset) -> list[int]:
    low, high = dataset.images[:, 0, 0, 0].long(), dataset.images[:, 1, 0, 0].long()
    return (low + 256 * high).tolist()


def test_items_and_properties() -> None:
    dataset = toy()
    image, label = dataset[-1]
    assert (len(dataset), dataset.num_classes, dataset.image_shape) == (12, 3, (3, 4, 5))
    assert torch.equal(image, dataset.images[11])
    assert type(label) is int
    assert label == 2
    assert repr(dataset) == "ImageDataset(12 images 3x4x5, 3 classes: cat, dog, fox)"
    assert dataset.class_counts().tolist() == [4, 4, 4]


def test_numpy_and_tensors_give_the_same_contiguous_dataset() -> None:
    reference = toy()
    strided = np.asfortranarray(reference.images.numpy())
    strided.flags.writeable = False
    other = ImageDataset(strided, reference.labels.numpy().astype(np.uint8), list(np.array(NAMES)))
    assert torch.equal(other.images, reference.images)
    assert torch.equal(other.labels, reference.labels)
    assert other.images.is_contiguous()
    assert other.labels.dtype == torch.int64
    assert all(type(name) is str for name in other.classes)


def test_any_torch_data_loader_reads_it() -> None:
    batches = list(DataLoader(toy(), batch_size=5))  # type: ignore[arg-type]
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), toy().images)


@pytest.mark.parametrize("index", [12, -13])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} is out of range for 12 images"):
        toy()[index]


def test_slice_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got slice; use subset"):
        toy()[2:4]  # type: ignore[index]


GOOD = np.zeros((4, 3, 8, 8), np.uint8)
LABELS = np.array([0, 1, 2, 0])
BAD: list[tuple[Any, Any, Any, type[Exception], str]] = [
    (GOOD.astype(np.float32), LABELS, NAMES, TypeError, r"got float32; if they are in \[0, 1\]"),
    (torch.full((4, 3, 8, 8), torch.nan), LABELS, NAMES, TypeError, "float32 and contain NaN"),
    (GOOD.astype(np.int64), LABELS, NAMES, TypeError, "got int64; convert them to uint8"),
    (GOOD.tolist(), LABELS, NAMES, TypeError, "images must be a NumPy array or a tensor, got list"),
    (GOOD[:, 0], LABELS, NAMES, ValueError, r"got \(4, 8, 8\); add the channel"),
    (GOOD.transpose(0, 2, 3, 1), LABELS, NAMES, ValueError, r"look like \(N, H, W, C\); permute"),
    (GOOD[:0], LABELS[:0], NAMES, ValueError, "is empty"),
    (GOOD, LABELS[:3], NAMES, ValueError, r"labels must have shape \(4,\), one for each image, got \(3,\)"),
    (GOOD, LABELS.astype(float), NAMES, TypeError, "integer type, got float64"),
    (GOOD, LABELS > 0, NAMES, TypeError, "integer type, got bool"),
    (GOOD, [0, 1, 2, 0], NAMES, TypeError, "labels must be a NumPy array or a tensor, got list"),
    (GOOD, np.array([0, 3, 0, 0]), NAMES, ValueError, r"labels\[1\]=3 is out of range: 3 classes allow 0..2"),
    (GOOD, np.array([0, 0, -1, 0]), NAMES, ValueError, r"labels\[2\]=-1 is out of range"),
    (GOOD, np.array([0, 0, 0, 2**64 - 1], np.uint64), NAMES, ValueError, rf"labels\[3\]={2**64 - 1} is out"),
    (GOOD, LABELS, ("cat", "dog", "cat"), ValueError, "'cat' twice"),
    (GOOD, LABELS, (), ValueError, "at least one name"),
    (GOOD, LABELS, "cat", TypeError, "sequence of names"),
    (GOOD, LABELS, (0, 1, 2), TypeError, "sequence of names"),
    (GOOD, LABELS, 10, TypeError, r"classes must be a sequence of names such as \('cat', 'dog'\), got 10"),
    (GOOD, LABELS, {"cat", "dog", "fox"}, TypeError, "sequence of names"),
]


@pytest.mark.parametrize(("images", "labels", "classes", "error", "message"), BAD)
def test_bad_input_is_named(images: Any, labels: Any, classes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageDataset(images, labels, classes)


def test_subset_by_index_and_by_mask() -> None:
    dataset = numbered([0, 1] * 5, 2)
    assert indices(dataset.subset([3, -1, 3])) == [3, 9, 3]
    assert indices(dataset.subset(dataset.labels == 1)) == [1, 3, 5, 7, 9]
    part = dataset.subset(np.array([0]))
    part.images.zero_()
    assert indices(dataset) == list(range(10))  # a copy


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ([], ValueError, "selects no image"),
        ([0, 12], IndexError, r"indices\[1\]=12 is out of range for 12 images"),
        ([0.5], TypeError, "integers or booleans, got float64"),
        (np.zeros((2, 2), int), ValueError, r"one-dimensional, got shape \(2, 2\)"),
        (torch.ones(3, dtype=torch.bool), ValueError, "mask of 3 booleans for 12 images"),
    ],
)
def test_bad_subset(chosen: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy().subset(chosen)


def test_the_usual_split_has_exactly_500_of_each_class() -> None:
    dataset = numbered([k % 10 for k in range(50_000)], 10)
    train, val = dataset.split(45_000, 5_000)
    assert train.class_counts().tolist() == [4_500] * 10
    assert val.class_counts().tolist() == [500] * 10
    assert sorted(indices(train) + indices(val)) == list(range(50_000))
    assert indices(val) == sorted(indices(val))  # original order
    again, other = dataset.split(45_000, 5_000)[1], dataset.split(45_000, 5_000, seed=1)[1]
    assert indices(again) == indices(val)
    assert 400 < len(set(indices(other)) & set(indices(val))) < 600  # 10 % by chance


def test_fractions_are_counts() -> None:
    dataset = numbered([0] * 70 + [1] * 30, 2)
    by_fraction, by_count = dataset.split(0.8, np.float32(0.1)), dataset.split(80, np.int64(10))
    assert [indices(part) for part in by_fraction] == [indices(part) for part in by_count]
    assert [part.class_counts().tolist() for part in by_count] == [[56, 24], [7, 3]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=80), st.data())
def test_splits_are_disjoint_and_in_proportion(labels: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(labels) - 1))
    second = data.draw(st.integers(1, len(labels) - first))
    dataset = numbered(labels, 5)
    parts = dataset.split(first, second, seed=data.draw(st.integers(-5, 5)))
    assert [len(part) for part in parts] == [first, second]
    assert not set(indices(parts[0])) & set(indices(parts[1]))
    for part, slack in zip(parts, (1, 2), strict=True):  # a later part also bears the rounding of the earlier one
        exact = dataset.class_counts() * len(part) / len(dataset)
        assert ((part.class_counts() - exact).abs() < slack + 1e-6).all()


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((), ValueError, "sizes is empty"),
        ((10, 3), ValueError, r"sizes=\(10, 3\) must be above 0 and add up to at most the 12 images"),
        ((0.9, 0.2), ValueError, "add up to at most 1"),
        ((5, 0), ValueError, "must be above 0"),
        ((float("nan"),), ValueError, "must be above 0"),
        ((5, 0.5), TypeError, "all counts"),
        (("5",), TypeError, "all counts"),
        ((True,), TypeError, "all counts"),
        ((0.9, 0.01), ValueError, "leaves part 1 without an image; the dataset has 12"),
    ],
)
def test_bad_split(sizes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy().split(*sizes)


def test_add_joins_in_order() -> None:
    both = toy(5) + toy(7, seed=1)
    assert torch.equal(both.images, torch.cat([toy(5).images, toy(7, seed=1).images]))
    assert len(both.labels) == 12


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (lambda: toy(names=("a", "b", "c")), ValueError, "different classes"),
        (lambda: numbered([0, 1, 2], 3).subset([0]), ValueError, "different classes"),
        (lambda: ImageDataset(GOOD, LABELS, NAMES), ValueError, r"different shapes: \(3, 4, 5\) and \(3, 8, 8\)"),
        (lambda: 3, TypeError, "unsupported operand"),
    ],
)
def test_bad_add(other: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy() + other()


def test_mean_std_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarkit.data.dataset._CHUNK", 5)
    dataset = toy(13)
    mean, std = dataset.mean_std()
    pixels = dataset.images.double() / 255
    torch.testing.assert_close(torch.tensor(mean), pixels.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(std), pixels.std(dim=(0, 2, 3), correction=0).float())


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "toy.npz"
    toy().save(path)
    loaded = load_npz(path)
    assert torch.equal(loaded.images, toy().images)
    assert torch.equal(loaded.labels, toy().labels)
    assert loaded.classes == NAMES
    with np.load(path) as archive:
        assert archive["images"].shape == (12, 4, 5, 3)
    assert [file.name for file in path.parent.iterdir()] == ["toy.npz"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.npz"
    toy().save(path)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        toy(seed=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["toy.npz"]
