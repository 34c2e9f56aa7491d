"""Checks of arguments, so that a wrong call says what it got and what would do."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any


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
    number = float(value)
    inside = (low < number if above else low <= number) and (number < high if below else number <= high)
    if not (math.isfinite(number) and inside):
        lower = "" if low == -math.inf else f"{'above' if above else 'at least'} {low:g}"
        upper = "" if high == math.inf else f"{'below' if below else 'at most'} {high:g}"
        raise ValueError(f"{name}={value!r} must be {' and '.join(filter(None, (lower, upper))) or 'finite'}")
    return number


def check_callable(name: str, value: Any, advice: str) -> Any:
    """Return value if it can be called and is no class.

    Raises:
        TypeError: if it is not; the message ends with the advice.
    """
    if not callable(value) or isinstance(value, type):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"{name} is {what}; {advice}")
    return value


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Tell whether a function, or the ``forward`` of a module, has a parameter of that name."""
    try:
        return name in inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):  # built-ins have no signature
        return False
