"""Write the notebooks of examples/notebooks from the guides of the site, which are their only source.

    python docs/make_notebooks.py

A guide is Markdown with ``code-cell`` blocks, which Sphinx runs. A notebook is the same text and code without outputs,
below a Colab badge and a cell that installs cifarkit where it is missing.

REPOSITORY is the only source of the address of the repository, too: the command writes it into every file that names
another.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/cifarkit/cifarkit"
DOCS = Path(__file__).resolve().parent
GUIDES = sorted((DOCS / "guides").glob("*.md"))
NOTEBOOKS = DOCS.parent / "examples" / "notebooks"

ADDRESSED = ("README.md", "CITATION.cff", "setup.cfg", "docs/index.md", "docs/quickstart.md", "docs/guides/*.md")

_ADDRESS = re.compile(r"\bgithub(?P<colab>\.com)?/[\w-]+/cifarkit\b")  # Colab's has no ".com" before the owner
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OPTIONS = re.compile(r"\A(?:---\n.*?\n---\n|(?::[\w-]+:[^\n]*\n)+)", re.DOTALL)
_DOWNLOAD = re.compile(r"^[^\n]*\{download\}[^\n]*\n", re.MULTILINE)  # a notebook need not offer itself
_ROLE = re.compile(r"\{[\w:.]+\}`~?([^`<]+?)(?: <[^>`]+>)?`")
_LINK = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")
_INSTALL = f"""\
import importlib.util

if importlib.util.find_spec("cifarkit") is None:
    %pip install --quiet git+{REPOSITORY}"""


def make_notebook(guide: Path) -> dict[str, Any]:
    """Turn a guide into a notebook of format 4.5, without outputs."""
    text = _HEADER.sub("", guide.read_text(encoding="utf-8"))
    pieces = _CELL.split(text)  # prose, code, prose, code, ..., prose
    cells = [_prose(_badge(guide.stem)), _code(_INSTALL)]
    for index, piece in enumerate(pieces):
        content = _OPTIONS.sub("", piece).strip() if index % 2 else _for_notebook(piece, guide.parent)
        if content:
            cells.append(_code(content) if index % 2 else _prose(content))
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def to_text(notebook: dict[str, Any]) -> str:
    """Write a notebook as Jupyter does, so that saving it there changes nothing but outputs."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def with_address(text: str) -> str:
    """Return a text in which every address of the repository, in Colab's links as well, is that of REPOSITORY."""
    owner = REPOSITORY.removeprefix("https://github.com/")
    return _ADDRESS.sub(lambda found: f"github{found['colab'] or ''}/{owner}", text)


def find_addressed() -> list[Path]:
    """Return the files that name the repository."""
    return sorted(path for pattern in ADDRESSED for path in DOCS.parent.glob(pattern))


def colab_address(name: str) -> str:
    """Return where Colab opens a notebook."""
    folder = REPOSITORY.replace("github.com", "colab.research.google.com/github")
    return f"{folder}/blob/main/examples/notebooks/{name}.ipynb"


def _badge(name: str) -> str:
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({colab_address(name)})"


def _for_notebook(prose: str, folder: Path) -> str:
    """Replace what only Sphinx understands: roles become code, links lead to the files of the repository."""

    def absolute(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        target = (folder / path).resolve().relative_to(DOCS.parent.resolve()).as_posix()
        return f"]({REPOSITORY}/blob/main/{target}{'#' if anchor else ''}{anchor})"

    prose = _ROLE.sub(lambda role: f"`{role[1].strip()}`", _DOWNLOAD.sub("", prose))
    return _LINK.sub(absolute, prose).strip()


def _prose(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(text: str) -> dict[str, Any]:
    source = text.splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


if __name__ == "__main__":
    for path in find_addressed():
        path.write_text(with_address(path.read_text(encoding="utf-8")), encoding="utf-8")
    NOTEBOOKS.mkdir(exist_ok=True)
    for guide in GUIDES:
        (NOTEBOOKS / f"{guide.stem}.ipynb").write_text(to_text(make_notebook(guide)), encoding="utf-8")
        print(f"examples/notebooks/{guide.stem}.ipynb")
