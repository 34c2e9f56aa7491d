"""What a picture of explanations holds, on paper as on a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One method: its lines of text, a picture (H, W, 3) for each image, the value of the strongest colour, colours."""

    lines: list[str]
    tiles: Pixels
    limit: float | None
    colours: tuple[str, str | None]  # above and below 0; None if nothing can be below


@dataclass(frozen=True)
class Sheet:
    """All that is drawn, on paper as on a page."""

    pictures: Pixels
    captions: list[list[str]]
    rows: list[Row]
    title: str
    note: str


def coloured(signed: NDArray[np.float64], pictures: Pixels | None, colours: tuple[str, str | None]) -> Pixels:
    """Turn values in [-1, 1] into colours over white or over grey pictures: (..., H, W) -> (..., H, W, 3)."""
    above, below = ([int((colour or "#FFFFFF")[place : place + 2], 16) for place in (1, 3, 5)] for colour in colours)
    strength = np.abs(signed)[..., None]
    ground: Any = 255.0 if pictures is None else (pictures @ [0.299, 0.587, 0.114])[..., None]  # ITU-R BT.601
    mixed = (1 - strength) * ground + strength * np.where(signed[..., None] > 0, above, below)
    pixels: Pixels = np.rint(mixed).astype(np.uint8)
    return pixels
