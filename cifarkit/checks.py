"""Checks of arguments, so that a wrong call says what it got and what would do."""

from __future__ import annotations

import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")


def check_integer(name: str, value: Any, least: int | None = None) -> int:
    """Return value as an int; NumPy's integers pass, floats and bools do not.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is below ``least``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give an integer") from None
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a bool; give an integer")
    if least is not None and number < least:
        raise ValueError(f"{name}={number} must be at least {least}")
    return number


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> float:
    """Return value as a float if it is finite and in [low, high]; ``above`` and ``below`` leave out the ends.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a number")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError(f"{name} must be finite; got an integer beyond every float") from None
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several values
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give one number") from None
    inside = (low < number if above else low <= number) and (number < high if below else number <= high)
    # Compared instead of asked by math.isfinite, which torch.compile cannot trace for a number that varies.
    if not (-math.inf < number < math.inf and inside):
        lower = "" if low == -math.inf else f"{'above' if above else 'at least'} {low:g}"
        upper = "" if high == math.inf else f"{'below' if below else 'at most'} {high:g}"
        raise ValueError(f"{name}={value!r} must be {' and '.join(filter(None, (lower, upper))) or 'finite'}")
    return number


def check_numbers(
    name: str, values: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> tuple[float, ...]:
    """Return one number, or each of a sequence or array of them, as :func:`check_number` does.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is out of range, or there is none.
    """
    plain = values.tolist() if hasattr(values, "tolist") else values  # NumPy arrays and tensors
    several = isinstance(plain, Iterable) and not isinstance(plain, str)
    numbers = tuple(check_number(name, value, low, high, above=above) for value in (plain if several else [plain]))
    if not numbers:
        raise ValueError(f"{name}={values!r} is empty; give a number, or one for each channel")
    return numbers


def check_size(name: str, size: Any) -> tuple[int, int]:
    """Return (height, width) in pixels from one side or from both.

    Raises:
        TypeError: if a side is no integer.
        ValueError: if a side is below 1, or there are not one or two.
    """
    both = size if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(both) != 2:
        raise ValueError(f"{name}={size!r} holds {len(both)} numbers; give a side in pixels, or (height, width)")
    return check_integer(name, both[0], 1), check_integer(name, both[1], 1)


def check_callable(name: str, value: Any, advice: str) -> Any:
    """Return value if it can be called and is no class.

    Raises:
        TypeError: if it is not; the message ends with the advice.
    """
    if not callable(value) or isinstance(value, type):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        what = what if len(what) < 100 else f"a {type(value).__name__}"  # not all numbers of a tensor
        raise TypeError(f"{name} is {what}; {advice}")
    return value


def check_transform(name: str, value: Any) -> Any:
    """Return value if it can be called with images alone, which Mixup and CutMix cannot.

    Raises:
        TypeError: if it cannot; the message says what to do.
    """
    check_callable(name, value, "give a callable of images, as in Compose([RandomCrop(32), Normalize(0.5, 0.25)])")
    if getattr(value, "needs_labels", False):
        raise TypeError(f"{name} is {value!r}, which mixes labels too; give it to ClassificationTask(mix=...)")
    return value


def check_device(device: Any) -> torch.device:
    """Return the device.

    Raises:
        TypeError: if it is neither a name nor a device.
        ValueError: if PyTorch knows no such device, or finds no such GPU here.
    """
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device={device!r} is a {type(device).__name__}; give a name such as 'cpu' or 'cuda:0'")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is unknown; use 'cpu' or 'cuda'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: PyTorch finds no CUDA device here; use 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={str(device)!r}: PyTorch finds {torch.cuda.device_count()} here, numbered from 0")
    return chosen


def check_path(name: str, value: Any) -> Path:
    """Return the path.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a path, such as 'runs/first'")
    return Path(value)


def check_items(name: str, items: Any, kind: type[Item]) -> list[Item]:
    """Return a list or tuple as a list if it holds only objects of one kind.

    Raises:
        TypeError: if it does not.
    """
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, kind) for item in items):
        raise TypeError(f"{name} must be a list of {kind.__name__} objects; got {name_kinds(items)}")
    return list(items)


def name_kinds(value: Any) -> str:
    """Name the type of a value, and for a list or tuple the types in it."""
    name = type(value).__name__
    return f"{name} of {[type(item).__name__ for item in value]}" if isinstance(value, (list, tuple)) else name


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Tell whether a function, or the ``forward`` of a module, has a parameter of that name."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # built-ins have no signature
        return False
    return name in signature.parameters
