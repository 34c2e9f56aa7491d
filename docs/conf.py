"""Sphinx settings: prose in Markdown, reference from the docstrings."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cifarkit

project = "cifarkit"
author = "The cifarkit developers"
copyright = author
release = version = cifarkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cifarkit {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_inherit_docstrings = False  # `forward` says nothing that torch does not
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Source"]


def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep ``(B, *shape)`` in a docstring from opening an emphasis: there it is code, as in the source."""
    for index, line in enumerate(lines):
        pieces = re.split(r"(``.*?``|`.*?`)", line)  # every second one is a literal or a reference
        pieces[::2] = [re.sub(r"(?<![\w*])(\*{1,2})(?=\w+(?![\w*]))", r"\\\1", piece) for piece in pieces[::2]]
        lines[index] = "".join(pieces)


def setup(app: Any) -> None:
    """Join Sphinx."""
    app.connect("autodoc-process-docstring", escape_stars)
