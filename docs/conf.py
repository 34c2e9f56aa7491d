"""Sphinx settings: prose in Markdown, reference from the docstrings."""

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))  # of guides

from make_notebooks import REPOSITORY

import cifarkit

project = "cifarkit"
author = "The cifarkit developers"
copyright = author
release = version = cifarkit.__version__
extensions = ["myst_nb", "sphinx-mathjax-offline", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cifarkit {release}"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
linkcheck_anchors_ignore_for_url = [r"https://github.com/"]  # GitHub makes them by JavaScript
linkcheck_ignore = [re.escape(REPOSITORY), r"https://colab\.research\.google\.com/"]  # until the repository is there
linkcheck_retries, linkcheck_timeout = 3, 30
nb_execution_in_temp = True  # a guide finds no file of the clone, and leaves none
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds a cell; seldom more than 20, but machines may be busy
nb_merge_streams = True
nb_output_stderr = "remove"  # such as a warning of tqdm with a path of the machine; errors end the build
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
