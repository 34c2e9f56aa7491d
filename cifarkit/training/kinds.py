"""Entries of a loaded state that must be there and of a certain kind, each named when it is not."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """What an entry must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.words} or {other.words}", lambda value: self.fits(value) or other.fits(value))


COUNT = Kind("an integer from 0 to 2**63 - 1", lambda value: type(value) is int and 0 <= value < 2**63)
INTEGER = Kind("an integer", lambda value: type(value) is int)
NUMBER = Kind("a number", lambda value: type(value) in (int, float))
FINITE = Kind("a finite number", lambda value: NUMBER.fits(value) and abs(value) <= sys.float_info.max)
POSITIVE = Kind("a finite number above 0", lambda value: FINITE.fits(value) and value > 0)
AMOUNT = Kind("a finite number from 0", lambda value: FINITE.fits(value) and value >= 0)
# PyTorch multiplies tensors of fp32 by no larger number, except by infinity.
SINGLE = Kind(
    "a number that fits into fp32",
    lambda value: NUMBER.fits(value) and not torch.finfo(torch.float32).max < abs(value) < math.inf,
)
FLAG = Kind("True or False", lambda value: type(value) is bool)
NOTHING = Kind("None", lambda value: value is None)
TEXT = Kind("text", lambda value: type(value) is str)
TABLE = Kind("a dict", lambda value: isinstance(value, Mapping))
LIST = Kind("a list", lambda value: type(value) is list)
ROW = Kind("a list or tuple", lambda value: type(value) in (list, tuple))
_FLOAT = Kind(
    "a number that is a float", lambda value: NUMBER.fits(value) and not sys.float_info.max < abs(value) < math.inf
)
SUM = Kind(
    "[sum, samples]",
    lambda value: LIST.fits(value) and len(value) == 2 and _FLOAT.fits(value[0]) and POSITIVE.fits(value[1]),
)
# Sparse tensors and those without content load, too, but cannot be copied into a network.
TENSOR = Kind(
    "a dense tensor",
    lambda value: isinstance(value, Tensor) and value.layout is torch.strided and value.device.type != "meta",
)


def tensor_of(dtype: torch.dtype) -> Kind:
    """Return the kind of the dense tensors of one dtype."""
    return Kind(f"a dense tensor of {dtype}", lambda value: TENSOR.fits(value) and value.dtype == dtype)


def require_finite(tensors: Mapping[str, Any], where: str, *, but_for: Collection[str] = ()) -> None:
    """Raise ValueError if a tensor at ``where`` holds a number that is not finite; nothing that trained well does."""
    for name, tensor in tensors.items():
        if name in but_for:
            continue
        holds_floats = TENSOR.fits(tensor) and tensor.is_floating_point() and tensor.numel()
        # The extremes of a tensor are finite if all of it is; unlike isfinite() they need no memory of its size.
        if holds_floats and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
            raise ValueError(f"{where}[{name!r}] holds numbers that are not finite")


def require(value: Any, kind: Kind, where: str) -> None:
    """Raise ValueError unless a value is of the kind; ``where`` says where in the state it stands."""
    if not kind.fits(value):
        raise ValueError(f"{where} is {describe(value)}; it must be {kind.words}")


def entry(table: Mapping[Any, Any], key: Any, kind: Kind, where: str) -> Any:
    """Return an entry of a dict that stands at ``where``.

    Raises:
        ValueError: if it is missing or of another kind.
    """
    if key not in table:
        raise ValueError(f"{where}[{key!r}] is missing")
    require(table[key], kind, f"{where}[{key!r}]")
    return table[key]


def as_number(value: Any) -> Any:
    """Return the number in a tensor or array of one as Python's own, and anything else as it is."""
    single = isinstance(value, (np.generic, np.ndarray)) and value.size == 1
    return value.item() if single or (TENSOR.fits(value) and value.numel() == 1) else value


def require_like(value: Any, own: Any, where: str) -> None:
    """Raise ValueError unless a value has every entry of ``own``, each of the same kind; where that is None, any."""
    if isinstance(own, Mapping):
        require(value, TABLE, where)
        for key in own:
            if key not in value:
                raise ValueError(f"{where}[{key!r}] is missing")
            require_like(value[key], own[key], f"{where}[{key!r}]")
    elif own is not None:
        require(value, kind_of(own), where)


def kind_of(own: Any) -> Kind:
    """Return the kind that another value must have to stand in the place of this one."""
    if isinstance(own, Tensor):
        return tensor_of(own.dtype)
    if type(own) in (list, tuple):
        return ROW
    return {bool: FLAG, int: INTEGER, float: NUMBER, str: TEXT}.get(type(own), Kind("anything", lambda value: True))


def describe(value: Any) -> str:
    """Write a value and its type in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())  # a tensor in a list takes several lines
    return f"{text if len(text) < 60 else text[:57] + '...'} of type {type(value).__name__}"
