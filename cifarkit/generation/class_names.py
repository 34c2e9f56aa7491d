"""Names of classes that can be those of folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from cifarkit.generation.noise import MOST_CLASSES

SETTINGS, MANIFEST = "settings.json", "manifest.jsonl"  # which lie beside the folders
_CONTROL = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories of Unicode, the last two ends of lines
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
_LONGEST_NAME = 200  # bytes; file systems allow 255


def check_class_names(classes: Any) -> tuple[str, ...]:
    """Return the names of the classes if each can be the name of a folder.

    Raises:
        TypeError: if classes is no sequence of text.
        ValueError: if there is none or too many, or a name cannot be a folder's or repeats.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(x, str) for x in classes):
        raise TypeError(f"classes={classes!r} must be a sequence of names such as ('cat', 'dog')")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"classes holds {len(classes)} names; give from 1 to {MOST_CLASSES}")
    seen: dict[str, str] = {}
    for name in classes:
        if not name.strip() or len(name.encode(errors="replace")) > _LONGEST_NAME:
            raise ValueError(f"classes holds {name!r}; a name becomes a folder, so give 1 to {_LONGEST_NAME} bytes")
        if any(letter in '/\\:*?"<>|' or unicodedata.category(letter) in _CONTROL for letter in name):
            raise ValueError(f'classes holds {name!r}; a name becomes a folder: no slash, :*?"<>| or control character')
        if name[0] == "." or name[-1] in ". " or name.casefold() in (SETTINGS, MANIFEST):
            raise ValueError(
                f"classes holds {name!r}; a name becomes a folder that is seen: no dot or blank at its ends"
            )
        if name.casefold() in seen:
            raise ValueError(f"classes holds {seen[name.casefold()]!r} and {name!r}, one folder on some systems")
        seen[name.casefold()] = name
    return tuple(classes)


def require_portable(classes: Sequence[str]) -> None:
    """Raise ValueError if a folder of that name cannot be copied to Windows or macOS; of a new export alone."""
    for name in classes:
        if name.partition(".")[0].strip().casefold() in _DEVICES:
            raise ValueError(
                f"classes holds {name!r}; a name becomes a folder, and this is a device on Windows: rename it"
            )
    if len({unicodedata.normalize("NFC", name.casefold()) for name in classes}) < len(classes):
        raise ValueError(
            f"classes={classes!r} holds a name twice, an accent written in two ways, one folder on macOS: rename one"
        )
