"""All figures of a generator at once, with their protocol and the floor beneath them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.generation.distances import check_pair
from cifarkit.generation.quality import density_coverage, frechet_distance, kernel_distance, precision_recall

_TITLES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
_FEWEST = 6  # images of a set, or of half of the real ones, for neighbourhoods of 5


@dataclass(frozen=True)
class Score:
    """Figures of generated images, made by :func:`score`; printed they carry all that makes them comparable.

    Attributes:
        figures: frechet, kernel, precision, recall, density, coverage; the first two are best at the floor, and
            the last four near 1.
        floor: the same, of real images against other real ones.
        per_class: the kernel distance of each class to the real images of the class; empty if labels were not given.
        protocol: of what images, split and features.
        floor_per_class: as per_class, of other real images; classes of which there are fewer than 2 are left out.
    """

    figures: Mapping[str, float]
    floor: Mapping[str, float]
    per_class: Mapping[str, float]
    protocol: str
    floor_per_class: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst_class(self) -> str | None:
        """The class whose generated images are farthest from the real ones."""
        return max(self.per_class, key=lambda name: self.per_class[name], default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self) | {"worst_class": self.worst_class}

    def __str__(self) -> str:
        lines = [
            f"{title:17} {self.figures[name]:10.4g}   real against real {self.floor[name]:10.4g}"
            for name, title in _TITLES.items()
        ]
        if self.worst_class is not None:
            mean = sum(self.per_class.values()) / len(self.per_class)
            worst, floor = self.per_class[self.worst_class], self.floor_per_class.get(self.worst_class)
            beside = "" if floor is None else f"real against real {floor:10.4g}   "
            lines.append(
                f"worst class       {worst:10.4g}   {beside}{self.worst_class}; kernel distance, mean {mean:.4g}"
            )
        return "\n".join([*lines, self.protocol])


def score(
    real: Tensor,
    fake: Tensor,
    *,
    features: str,
    split: str,
    labels: tuple[Tensor, Tensor] | None = None,
    classes: Sequence[str] | None = None,
    other_real: Tensor | None = None,
    other_labels: Tensor | None = None,
    seed: int = 0,
) -> Score:
    """Measure generated images by their features.

    Args:
        real, fake: features (N, D) and (M, D), see :func:`cifarkit.generation.features`.
        features: what computed them, in words, such as "SpeedNet, 94 %, trained on CIFAR-10's training images".
        split: which images the real ones are, in words, such as "CIFAR-10 training images".
        labels: of the real and of the fake images, int64 (N,) and (M,), for the kernel distance of each class.
        classes: K names.
        other_real: features of other real images, whose figures are the floor: M of them, by chance, as figures depend
            on the number. None takes them from real, at most half of it, and compares them with the rest.
        other_labels: of other_real, int64, for the floor of each class; without other_real none are needed.
        seed: of what is chosen by chance.
    Raises:
        TypeError: if features are no float tensors, or labels no pair of tensors.
        ValueError: if a shape or a value is wrong, there are fewer than 6 images (12 real ones without other_real),
            labels and classes do not come together, other_labels come alone, or a class has too few images.
    """
    real, fake = check_pair(real, fake, least=_FEWEST)
    if (labels is None) != (classes is None):
        raise ValueError("labels and classes must both be given, or neither")
    if other_labels is not None and (other_real is None or labels is None):
        raise ValueError("other_labels need other_real, whose labels they are, and the labels of the rest")
    if labels is not None and (not isinstance(labels, (tuple, list)) or len(labels) != 2):
        raise TypeError(f"labels must be a pair, those of the real and of the fake images; got {type(labels).__name__}")
    per_class = _by_class(("real", "fake"), real, fake, labels, classes)
    if other_real is None:
        one, other, theirs = _parts(real, len(fake), None if labels is None else labels[0], seed)
        beneath = f"two parts of the real images, {len(one):,} and {len(other):,}"
    else:
        one, other = check_pair(real, other_real, _FEWEST, ("real", "other_real"))
        if len(other) > len(fake) and (other_labels is None or len(other_labels) == len(other)):
            chosen = _shuffled(len(other), seed)[: len(fake)]
            other, other_labels = other[chosen], None if other_labels is None else other_labels[chosen]
        theirs = None if other_labels is None or labels is None else (labels[0], other_labels)
        beneath = f"the same real images and {len(other):,} others"
    floor_per_class = _by_class(("real", "other real"), one, other, theirs, classes, lenient=True)
    protocol = (
        f"{len(real):,} real images ({split}) and {len(fake):,} generated ones; features: {features}, "
        f"D={real.shape[1]}; neighbourhoods of 3 (precision, recall) and 5; real against real: {beneath}"
    )
    return Score(_measure(real, fake), _measure(one, other), per_class, protocol, floor_per_class)


def _measure(real: Tensor, fake: Tensor) -> dict[str, float]:
    shares = precision_recall(real, fake)._asdict() | density_coverage(real, fake)._asdict()
    return {"frechet": frechet_distance(real, fake), "kernel": kernel_distance(real, fake)} | shares


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(check_integer("seed", seed)))


def _parts(
    real: Tensor, count: int, labels: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Cut features, and labels if there are any, at random: the second part has count rows, or half of them all."""
    if len(real) < 2 * _FEWEST:
        raise ValueError(f"real has {len(real)} rows, too few for two parts; give other_real, or {2 * _FEWEST}")
    order, count = _shuffled(len(real), seed), min(count, len(real) // 2)
    first, second = order[count:], order[:count]
    return real[first], real[second], None if labels is None else (labels[first], labels[second])


def _by_class(
    names: tuple[str, str],
    real: Tensor,
    fake: Tensor,
    labels: tuple[Tensor, Tensor] | None,
    classes: Sequence[str] | None,
    *,
    lenient: bool = False,
) -> dict[str, float]:
    """Return the kernel distance of each class; its mean does not depend on how many images a class has.

    Args:
        names: of the two sets, for errors.
        labels: without them there is nothing to return.
        lenient: leave out a class of too few images instead of raising.
    """
    if labels is None or classes is None:
        return {}
    for title, own, points in zip(names, labels, (real, fake), strict=True):
        if not isinstance(own, Tensor):
            raise TypeError(f"labels of the {title} images are a {type(own).__name__}; give a tensor int64 (N,)")
        if len(own) and not 0 <= own.min() <= own.max() < len(classes):
            found = f"labels of the {title} images run from {int(own.min())} to {int(own.max())}"
            raise ValueError(f"{found}, but classes names {len(classes)}")
        if own.shape != (len(points),):
            raise ValueError(f"labels of the {title} images have shape {tuple(own.shape)}; give one for each")
    distances, (own, others) = {}, (item.cpu() for item in labels)
    for label, name in enumerate(classes):
        one, other = real[own == label], fake[others == label]
        if min(len(one), len(other)) < 2:
            if lenient:
                continue
            raise ValueError(f"class {name!r} has {len(one)} real and {len(other)} generated images; give 2 or more")
        distances[name] = kernel_distance(one, other)
    return distances
