"""One random stream for each image that is generated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from cifarkit.checks import check_integer

_INDEX_BITS, _LABEL_BITS = 22, 10
MOST_PER_CLASS, MOST_CLASSES = 2**_INDEX_BITS, 2**_LABEL_BITS


class SampleGenerators(torch.Generator):
    """A sequence of one ``torch.Generator`` a sample, in the order of a batch.

    A sampler that takes each sample's noise from the sample's own generator makes images that do not depend on the
    batch they are made in. The object is a generator itself, too, for functions that draw the noise of a batch in one
    call; their images depend on the batch. All are on the CPU, so that the noise is the same for every device.

    Args:
        generators: one a sample, at least one.
    Raises:
        TypeError: if they are not.
    """

    def __new__(cls, generators: Sequence[torch.Generator]) -> SampleGenerators:
        return super().__new__(cls)

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._generators = list(generators)
        if not self._generators or not all(isinstance(item, torch.Generator) for item in self._generators):
            raise TypeError(f"generators must be one torch.Generator a sample, at least one; got {generators!r}")
        self.manual_seed(self._generators[0].initial_seed() ^ 0x5DEECE66)  # another stream than the first sample's

    def __len__(self) -> int:
        return len(self._generators)

    def __iter__(self) -> Iterator[torch.Generator]:
        return iter(self._generators)

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Generator]: ...
    def __getitem__(self, index: int | slice) -> torch.Generator | list[torch.Generator]:
        return self._generators[index]

    def normal(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw float32 (B, *shape), standard normal, each row from its sample's generator."""
        own = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
        return torch.stack([torch.randn(shape, generator=item, **own) for item in self._generators]).to(device)  # type: ignore[call-overload]


Sequence.register(SampleGenerators)


def image_generator(seed: int, label: int, index: int, attempt: int = 0) -> torch.Generator:
    """Return the random stream of one image: a function of these four numbers and nothing else.

    PyTorch's generator on the CPU heeds 32 bits of its seed, so hashed seeds of 50,000 images would not be all
    different. Here (label, index) is mapped to 32 bits one to one, by a scrambling that (seed, attempt) chooses.

    Args:
        seed: any integer.
        label: the class, below 1,024.
        index: the number of the image in its class, below 4,194,304.
        attempt: how many candidates for the same place were turned down before.
    Raises:
        ValueError: if label or index is out of range.
    Source: the finalizer of MurmurHash3 (Appleby 2011), which is a bijection.
    """
    for name, number, most in (("label", label, MOST_CLASSES), ("index", index, MOST_PER_CLASS)):
        if not 0 <= check_integer(name, number) < most:
            raise ValueError(f"{name}={number} must be at least 0 and below {most}")
    seed, attempt = check_integer("seed", seed), check_integer("attempt", attempt, 0)
    digest = hashlib.sha256(f"{seed}/{attempt}".encode()).digest()
    value = label << _INDEX_BITS | index
    for start in (0, 4):
        value = _mix(value ^ int.from_bytes(digest[start : start + 4], "big"))
    return torch.Generator().manual_seed(value)


def _mix(value: int) -> int:
    """Scramble 32 bits one to one."""
    value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16
