"""The notebooks are what the guides of the site say, and nothing else: valid, without outputs.

Their code is run by the build of the site, which shows the same cells.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("attention", "explain", "generate", "train")
nbformat = pytest.importorskip("nbformat", reason="notebooks need the docs extra")


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "docs" / "make_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()


def read(name: str) -> str:
    return (ROOT / "examples" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")


def cells(name: str, kind: str) -> list[str]:
    notebook = nbformat.reads(read(name), as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_each_guide_has_its_notebook_and_no_other() -> None:
    assert tuple(guide.stem for guide in maker.GUIDES) == NAMES
    assert tuple(sorted(path.stem for path in maker.NOTEBOOKS.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_what_its_guide_gives(name: str) -> None:
    made = maker.to_text(maker.make_notebook(ROOT / "docs" / "guides" / f"{name}.md"))
    assert read(name) == made, "run python docs/make_notebooks.py"


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_valid_and_empty(name: str) -> None:
    notebook = nbformat.reads(read(name), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_begins_with_colab_and_the_installation(name: str) -> None:
    address = maker.REPOSITORY.removeprefix("https://github.com/")
    badge = f"colab.research.google.com/github/{address}/blob/main/examples/notebooks/{name}.ipynb"
    assert badge in cells(name, "markdown")[0]
    assert f"%pip install --quiet git+{maker.REPOSITORY}" in cells(name, "code")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_offers_its_notebook(name: str) -> None:
    guide = (ROOT / "docs" / "guides" / f"{name}.md").read_text(encoding="utf-8")
    assert f"]({maker.colab_address(name)})" in guide
    assert f"<../../examples/notebooks/{name}.ipynb>" in guide
    assert cells(name, "code")[1] == "%matplotlib inline"  # which readers of the page do not see


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_notebook_needs_sphinx(name: str) -> None:
    prose = "\n".join(cells(name, "markdown"))
    assert re.findall(r"\{[\w:.-]+\}`|^\w*```\{|\]\((?!https?://)[^)]*\)", prose, re.MULTILINE) == []
    assert [code for code in cells(name, "code") if "mystnb:" in code] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_of_the_repository(name: str) -> None:
    links = re.findall(rf"\]\({maker.REPOSITORY}/blob/main/([^)#]+)", "\n".join(cells(name, "markdown")))
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_and_benchmarks_of_a_guide_exist(name: str) -> None:
    named = re.findall(r"`((?:examples|benchmarks)/\w+\.py)`", (ROOT / "docs" / "guides" / f"{name}.md").read_text())
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_roles_options_and_links_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "DOCS", tmp_path / "docs")
    guide = tmp_path / "docs" / "guides" / "x.md"
    guide.parent.mkdir(parents=True)
    cell = "```{code-cell} python\n---\nmystnb:\n  image:\n    alt: x\n---\nprint(1)\n```\n"
    guide.write_text(f"---\na: b\n---\nSee {{py:class}}`~a.B` and [c](../c.md#d).\nGet {{download}}`x <y>`.\n\n{cell}")
    _, _, prose, code = maker.make_notebook(guide)["cells"]
    assert "".join(prose["source"]) == f"See `a.B` and [c]({maker.REPOSITORY}/blob/main/docs/c.md#d)."
    assert code["source"] == ["print(1)"]


@pytest.mark.parametrize("file", ["setup.cfg", "CITATION.cff"])
def test_repository_is_that_of_the_package(file: str) -> None:
    named = re.findall(r"https://github\.com/[\w-]+/cifarkit", (ROOT / file).read_text())
    assert {*named} == {maker.REPOSITORY}
