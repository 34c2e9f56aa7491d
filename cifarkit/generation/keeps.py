"""Filters for ``generate_dataset``: what is kept, and the scores that go into the manifest."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.checks import check_callable, check_number
from cifarkit.generation.audit import check_images, nearest_copies
from cifarkit.generation.candidates import Keep, describe_keep, read_verdict
from cifarkit.generation.export import weights_hash
from cifarkit.inference import predict
from cifarkit.labels import check_labels


class KeepConfident:
    """A filter that keeps images which a classifier takes for what they are to show.

    A bound below 1 as well leaves out the easiest, which teach least; both ends belong to what is kept.

    Args:
        model: images (B, C, H, W) -> logits (B, K).
        transform: float images in [0, 1] -> what the model takes, such as ``Normalize(*train_set.mean_std())``.
        low, high: bounds of the probability of the image's label.
    Raises:
        TypeError: if model is no module, transform no callable or a bound no number.
        ValueError: if a bound is not in [0, 1], or low above high.
    """

    def __init__(
        self, model: nn.Module, transform: Callable[[Tensor], Tensor], *, low: float = 0.5, high: float = 1.0
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps images to logits")
        self.transform = check_callable("transform", transform, "give what the model was trained with, as Normalize")
        self.high = check_number("high", high, 0, 1)
        self.model, self.low = model, check_number("low", low, 0, self.high)
        self.description = (
            f"confidence from {self.low:g} to {self.high:g}, {type(model).__name__} {weights_hash(model)}"
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = predict(self.model, self.transform((images + 1) / 2), precision="fp32")
        check_labels(labels, len(images), logits.shape[1])
        confidence = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return (confidence >= self.low) & (confidence <= self.high), {"confidence": confidence}


class KeepNew:
    """A filter that keeps images which are not too near to any training image.

    Args:
        train: uint8 (N, C, H, W).
        distance: the least Euclidean distance of pixels in [0, 1]; :func:`check_copies` tells what is usual.
        mirror: as for :func:`nearest_copies`.
    Raises:
        TypeError: if train is not uint8 or distance no number.
        ValueError: if distance is below 0.
    """

    def __init__(self, train: Tensor, distance: float, *, mirror: bool = False) -> None:
        if not isinstance(train, Tensor) or train.dtype != torch.uint8:
            raise TypeError(f"train must be uint8 images, got {getattr(train, 'dtype', type(train).__name__)}")
        self.train, self.distance, self.mirror = train, check_number("distance", distance, 0), mirror
        digest = hashlib.sha256(train.cpu().contiguous().numpy().data).hexdigest()[:16]
        self.description = f"distance of at least {self.distance:g} to {len(train)} images {digest}, mirror={mirror}"

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        check_images(self.train, pixels, ("train", "a batch of images"), mirror=self.mirror)
        distances = nearest_copies(self.train, pixels, mirror=self.mirror).distances
        return distances >= self.distance, {"distance": distances}


class KeepAll:
    """A filter that keeps what all of its filters keep.

    Scores of the same name, as of two classifiers, get numbers: "confidence" and "confidence_2".
    """

    def __init__(self, *keeps: Keep) -> None:
        self.keeps = [check_callable("keeps", keep, "give filters, such as KeepNew(...)") for keep in keeps]
        self.description = "; ".join(str(describe_keep(keep)) for keep in self.keeps)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        passed, scores = torch.ones(len(labels), dtype=torch.bool), dict[str, Tensor]()
        for keep in self.keeps:
            own, more = read_verdict(keep(images, labels), len(labels))
            passed = passed & own.cpu()
            for name, each in more.items():
                scores[_free_name(name, scores)] = each
        return passed, scores


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(each for each in names if each not in taken)
