"""Labelled images held in memory as one uint8 tensor."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarkit.files import atomic_file
from cifarkit.seeding import Draws

_SPLIT_STREAM = 2**40  # an epoch no training reaches, so that splits share no numbers with augmentation
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode; "Cf" joins emojis, so only some of it is refused
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CHUNK = 4096  # images read at once by mean_std, about 50 MB of int64 values at 32 x 32


class ImageDataset:
    """Images, their labels and the names of the classes.

    Everything stays in memory: 50,000 images of 32 x 32 take 154 MB, and a whole batch is one indexing operation.
    Contiguous images are kept without a copy, so later changes to the array given show here.

    Args:
        images: uint8 (N, C, H, W), NumPy array or tensor, N at least 1.
        labels: (N,) of any integer type, NumPy array or tensor, each from 0 to K - 1.
        classes: K different names; a class may have no image.
    Attributes:
        images: uint8 (N, C, H, W), contiguous, on the CPU.
        labels: int64 (N,), on the CPU.
        classes: tuple of K names.
    Raises:
        TypeError: if a type or dtype is wrong; nothing is cast silently.
        ValueError: if a shape, a label or a class name is wrong.
    """

    def __init__(self, images: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor, classes: Sequence[str]) -> None:
        self.classes = check_classes(classes)
        self.images = _check_images(images)
        self.labels = _check_labels(labels, len(self.images), len(self.classes))

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            position = operator.index(index)
        except TypeError:
            message = f"index must be an integer, got {type(index).__name__}; use subset(indices) for several images"
            raise TypeError(message) from None
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range for {len(self)} images")
        return self.images[position], int(self.labels[position])

    def __add__(self, other: ImageDataset) -> ImageDataset:
        if not isinstance(other, ImageDataset):
            return NotImplemented
        if self.classes != other.classes:
            raise ValueError(f"cannot add datasets of different classes: {self.classes} and {other.classes}")
        if self.image_shape != other.image_shape:
            raise ValueError(f"cannot add images of different shapes: {self.image_shape} and {other.image_shape}")
        images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        return ImageDataset(images, labels, self.classes)

    def __repr__(self) -> str:
        names = ", ".join(self.classes[:3]) + (", ..." if self.num_classes > 3 else "")
        shape = "x".join(map(str, self.image_shape))
        return f"ImageDataset({len(self)} images {shape}, {self.num_classes} classes: {names})"

    def subset(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> ImageDataset:
        """Return a copy of some images in the order given, with the same classes.

        Args:
            indices: integers from -N to N - 1, which may repeat, or N booleans that mark the images to keep.
        Raises:
            TypeError: if indices holds neither integers nor booleans.
            ValueError: if indices is empty or not one-dimensional, or a mask has another length than the dataset.
            IndexError: if an index is out of range.
        """
        chosen = np.asarray(indices.detach().cpu() if isinstance(indices, Tensor) else indices)
        if chosen.ndim != 1:
            raise ValueError(f"indices must be one-dimensional, got shape {chosen.shape}")
        if chosen.dtype.kind == "b":
            if len(chosen) != len(self):
                raise ValueError(f"indices is a mask of {len(chosen)} booleans for {len(self)} images; give one each")
            chosen = np.flatnonzero(chosen)
        if not len(chosen):
            raise ValueError("indices selects no image; a dataset needs at least one")
        if chosen.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers or booleans, got {chosen.dtype}")
        wrong = np.flatnonzero((chosen < -len(self)) | (chosen >= len(self)))
        if len(wrong):
            raise IndexError(f"indices[{wrong[0]}]={chosen[wrong[0]]} is out of range for {len(self)} images")
        positions = torch.from_numpy(chosen.astype(np.int64) % len(self))
        return ImageDataset(self.images[positions], self.labels[positions], self.classes)

    def split(self, *sizes: float, seed: int = 0) -> tuple[ImageDataset, ...]:
        """Cut into disjoint random parts that keep the proportions of the classes.

        Each part takes its share of every class, rounded by the largest remainder, from what earlier parts left.
        The parts keep the original order; images beyond the sum of the sizes are left out.

        Args:
            sizes: the parts' numbers of images, or all of them fractions of the whole as floats in (0, 1].
            seed: any integer; the same seed and data give the same parts.
        Raises:
            TypeError: if sizes mixes counts and fractions, or seed is no integer.
            ValueError: if a part would be empty or the parts exceed the dataset.
        """
        counts = _part_counts(sizes, len(self))
        keys = Draws(seed, _SPLIT_STREAM, torch.arange(len(self))).integers(0, 2**32)
        order = torch.argsort(keys, stable=True)
        pools = [order[self.labels[order] == label] for label in range(self.num_classes)]
        parts = []
        for count in counts:
            left = np.array([len(pool) for pool in pools])
            shares = _largest_remainder(count * left / left.sum(), count).tolist()  # never above what is left
            taken = torch.cat([pool[:share] for pool, share in zip(pools, shares, strict=True)])
            pools = [pool[share:] for pool, share in zip(pools, shares, strict=True)]
            parts.append(self.subset(taken.sort().values))
        return tuple(parts)

    def class_counts(self) -> Tensor:
        """Return int64 (K,), the number of images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each channel over all pixels, on the scale [0, 1].

        Both are exact up to float64 rounding, being computed from a count of the 256 values.
        """
        channels = self.image_shape[0]
        counts = torch.zeros(channels * 256, dtype=torch.int64)
        offsets = (torch.arange(channels) * 256).view(channels, 1, 1)
        for start in range(0, len(self), _CHUNK):
            chunk = self.images[start : start + _CHUNK]
            counts += torch.bincount((chunk + offsets).flatten(), minlength=channels * 256)
        weights = counts.view(channels, 256).double() / (counts.sum() / channels)
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = weights @ values
        variance = (weights * (values - mean[:, None]) ** 2).sum(dim=1)
        return tuple(mean.tolist()), tuple(variance.sqrt().tolist())

    def save(self, path: str | Path) -> None:
        """Write a .npz file that ``load_npz`` reads: images (N, H, W, C) uint8, labels int64, classes.

        The file appears complete or not at all: it is written to a temporary name beside it, flushed to the disk
        and renamed.
        """
        images = self.images.permute(0, 2, 3, 1).numpy()  # (N, C, H, W) -> (N, H, W, C)
        with atomic_file(path) as file:
            np.savez(file, images=images, labels=self.labels.numpy(), classes=np.array(self.classes))


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        TypeError: if they are no sequence of text.
        ValueError: if one is empty, repeated or not fit to be printed, or there is none.
    """
    ordered = isinstance(classes, Sequence | np.ndarray) and not isinstance(classes, str)  # a set has no order
    if not ordered or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names such as ('cat', 'dog'), got {classes!r}")
    names = tuple(str(name) for name in classes)  # numpy.str_ becomes str, so that checkpoints hold plain types
    if not names or "" in names:
        raise ValueError(f"classes={names} must hold at least one name and no empty one")
    unfit = next((name for name in names if any(map(_is_control, name))), None)
    if unfit is not None:
        raise ValueError(f"classes holds {unfit!a}; a name is printed, so it takes no control character")
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise ValueError(f"classes names {repeated!r} twice; every class needs a name of its own")
    return names


def _is_control(letter: str) -> bool:
    """Tell whether a character commands a terminal, ends a line, turns the direction of writing or is half of one."""
    return unicodedata.category(letter) in _CONTROL or letter in _DIRECTIONS


def _check_images(images: NDArray[Any] | Tensor) -> Tensor:
    """Return contiguous uint8 (N, C, H, W), or raise."""
    if not isinstance(images, np.ndarray | Tensor):
        raise TypeError(f"images must be a NumPy array or a tensor, got {type(images).__name__}; try numpy.stack")
    shape, name = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if name != "uint8":
        floating = "float" in name
        advice = "if they are in [0, 1], pass (images * 255).round() as uint8" if floating else "convert them to uint8"
        broken = " and contain NaN" if floating and bool(torch.as_tensor(images).isnan().any()) else ""
        raise TypeError(f"images must be uint8 in 0..255, got {name}{broken}; {advice}")
    if len(shape) != 4:
        hint = "; add the channel with images[:, None]" if len(shape) == 3 else ""
        raise ValueError(f"images must have shape (N, C, H, W), got {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"images of shape {shape} is empty; a dataset needs at least one image of one pixel")
    if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        advice = "images.transpose(0, 3, 1, 2), or .permute for a tensor"
        raise ValueError(f"images of shape {shape} look like (N, H, W, C); permute them to (N, C, H, W): {advice}")
    if isinstance(images, Tensor):
        return images.detach().cpu().contiguous()
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))  # a read-only array is copied


def _check_labels(labels: NDArray[Any] | Tensor, count: int, num_classes: int) -> Tensor:
    """Return int64 (N,), or raise; the range is checked before the cast, which could wrap around."""
    if not isinstance(labels, np.ndarray | Tensor):
        raise TypeError(f"labels must be a NumPy array or a tensor, got {type(labels).__name__}; try numpy.array")
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    if values.dtype.kind not in "iu":
        raise TypeError(f"labels must be of an integer type, got {values.dtype}; they count classes from 0")
    if values.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each image, got {values.shape}")
    wrong = np.flatnonzero((values < 0) | (values >= num_classes))
    if len(wrong):
        got = f"labels[{wrong[0]}]={values[wrong[0]]}"
        raise ValueError(f"{got} is out of range: {num_classes} classes allow 0..{num_classes - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _part_counts(sizes: tuple[float, ...], total: int) -> list[int]:
    """Turn the sizes of a split into numbers of images, or raise."""
    if not sizes:
        raise ValueError("sizes is empty; give the size of each part, for example split(45_000, 5_000)")
    fractional = [isinstance(size, float | np.floating) for size in sizes]
    counting = [isinstance(size, int | np.integer) and not isinstance(size, bool) for size in sizes]
    if not (all(fractional) or all(counting)):
        raise TypeError(f"sizes={sizes} must be all counts (integers) or all fractions (floats)")
    if not min(sizes) > 0 or not sum(sizes) <= (1 + 1e-9 if fractional[0] else total):
        limit = "1" if fractional[0] else f"the {total} images of the dataset"
        raise ValueError(f"sizes={sizes} must be above 0 and add up to at most {limit}")
    if not fractional[0]:
        return [int(size) for size in sizes]
    quotas = np.array(sizes) * total
    counts: list[int] = _largest_remainder(quotas, round(float(quotas.sum()))).tolist()
    if 0 in counts:
        raise ValueError(f"sizes={sizes} leaves part {counts.index(0)} without an image; the dataset has {total}")
    return counts


def _largest_remainder(quotas: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Round quotas to integers that add up to total; ties go to the first."""
    floors = np.floor(quotas + 1e-9).astype(np.int64)  # 0.9 * 10 must not become 8
    order = np.argsort(-(quotas - floors).round(9), kind="stable")
    floors[order[: total - int(floors.sum())]] += 1
    return floors
