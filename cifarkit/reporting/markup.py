"""HTML from values that nobody has looked at: run names, class names, settings and metrics may hold anything."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 600  # characters of a cell
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_EMPTY = {"img", "meta", "input"}  # of HTML; in SVG every element needs its end


def clean(value: Any, longest: int = _LONGEST) -> str:
    """Return a value as HTML text that can open no tag, cut when it is long; control characters become U+FFFD."""
    text = _CONTROLS.sub("\ufffd", str(value))
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…")


def tag(element: str, content: str = "", /, **attributes: Any) -> str:
    """Return an element around content, which is HTML; attributes are escaped, ``class_`` is class, ``_`` is ``-``."""
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{clean(value, 10**8)}"' for name, value in attributes.items()
    )
    return f"<{element}{pairs}>" if element in _EMPTY else f"<{element}{pairs}>{content}</{element}>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = False) -> str:
    """Return a table that scrolls sideways where it is too wide; the first cell of a row heads it."""
    if sortable:
        cells = [tag("th", tag("button", clean(name), type="button"), scope="col", aria_sort="none") for name in header]
    else:
        cells = [tag("th", clean(name), scope="col") for name in header]
    body = []
    for first, *others in rows:
        inside = tag("th", clean(first), scope="row") + "".join(tag("td", clean(cell)) for cell in others)
        body.append(tag("tr", inside))
    whole = tag("table", tag("thead", tag("tr", "".join(cells))) + tag("tbody", "".join(body)))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label="table")


def data_block(name: str, value: Any) -> str:
    """Return a value as JSON in a script element that is data, not code, and that no text in it can close."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def number(value: float | None) -> str:
    """Return a number with as many digits as say something."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
