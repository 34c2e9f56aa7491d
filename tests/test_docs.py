"""The pages: blocks name a language and compile, links and names lead somewhere, tables are those of the data."""

import ast
import configparser
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

import cifarkit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_blocks, tables, make_notebooks = load("run_blocks"), load("tables"), load("make_notebooks")
CELLS = [path for path in PAGES if "{code-cell}" in path.read_text(encoding="utf-8")]
TYPED = re.compile(r"<!-- typed: .+? -->\n\n.*?(?=\n\n|\Z)", re.DOTALL)  # a mark, and the paragraph or table below it


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    return re.sub(r"^( *)(`{3,}).*?^\1\2\s*$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_every_block_names_its_language(path: Path) -> None:
    nameless = [block.place for block in run_blocks.find_blocks(path) if not block.language]
    assert nameless == []


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_python_blocks_compile(path: Path) -> None:
    for block in run_blocks.find_blocks(path):
        if block.language == "python":
            assert compile("\n" * block.line + block.text, block.page, "exec").co_filename == block.page


def cells_of(path: Path) -> list[str]:
    """The code of a page that readers see, without the options of its cells."""
    cells = [block.text for block in run_blocks.find_blocks(path) if block.language == "{code-cell}"]
    seen = [cell for cell in cells if "remove-cell" not in cell]
    return [re.sub(r"\A---\n.*?\n---\n", "", cell, flags=re.DOTALL) for cell in seen]


@pytest.mark.parametrize("path", CELLS, ids=shown)
def test_the_cells_of_a_page_are_a_script(path: Path) -> None:
    tree = ast.parse("\n".join(cells_of(path)), shown(path))
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert {"torch", "cifarkit"} <= imported


@pytest.mark.parametrize("path", CELLS, ids=shown)
def test_the_code_of_a_page_is_not_cut_by_its_column(path: Path) -> None:
    assert [line for cell in cells_of(path) for line in cell.splitlines() if len(line) > 88] == []


def test_the_quick_start_says_how_a_script_keeps_its_pictures() -> None:
    assert 'path="predictions.png"' in cells_of(DOCS / "quickstart.md")[-1]
    assert "In a script add `path=" in prose(DOCS / "quickstart.md")


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = [target for target, _ in LINK.findall(prose(path)) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_links_into_the_repository_lead_somewhere(path: Path) -> None:
    folder = re.compile(rf"\({re.escape(make_notebooks.REPOSITORY)}/(?:blob|raw|tree)/main/([^)#]+)(?:#([^)]+))?\)")
    links = folder.findall(path.read_text(encoding="utf-8"))
    assert [target for target, _ in links if not (ROOT / target).exists()] == []
    assert [name for target, name in links if name and name not in anchors(ROOT / target)] == []


def test_the_readme_needs_no_clone_to_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def anchors(path: Path) -> set[str]:
    """The names that the headings of a page have as links, by the rule of GitHub and MyST, and those given by hand."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | {*re.findall(r"^\(([\w-]+)\)=$", prose(path), re.MULTILINE)}


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_links_to_headings_lead_somewhere(path: Path) -> None:
    links = [(path.parent / target if target else path, name) for target, name in LINK.findall(prose(path)) if name]
    inside = [(target, name) for target, name in links if target.suffix == ".md" and target.exists()]
    assert [name for target, name in inside if name not in anchors(target)] == []


def test_a_heading_has_the_anchor_that_myst_gives(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# The `same`, as Captum?\n(by-hand)=\n## ResNet-18 on 32 × 32\n```bash\n# no heading\n```\n")
    assert anchors(page) == {"the-same-as-captum", "by-hand", "resnet-18-on-32--32"}


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_names_of_the_library_exist(path: Path) -> None:
    for name in re.findall(r"`~?(cifarkit(?:\.\w+)+)", prose(path)):
        assert pkgutil.resolve_name(name) is not None


def toctree_entries(path: Path) -> Iterator[str]:
    for block in run_blocks.find_blocks(path):
        if block.language == "{toctree}":
            lines = [line.strip() for line in block.text.splitlines() if line.strip() and line[0] != ":"]
            yield from (re.sub(r".*<(.*)>", r"\1", line).removesuffix(".md") for line in lines)


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for path in PAGES:
        for entry in toctree_entries(path):
            listed |= set(path.parent.glob(f"{entry}.md"))
    assert [shown(path) for path in PAGES if path not in listed] == []


def test_measured_tables_are_those_of_the_data() -> None:
    assert [shown(path) for path in tables.find_stale()] == []


def test_what_has_not_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    page = "<!-- table: {} -->\n<!-- end of table -->"
    for table in ("report | loader | any", "whole report | loader", "tricks | any", "speedrun | any", "views"):
        text = tables.fill(page.format(table))
        (script,) = re.findall(r"Not measured here yet; `python ([\w/.]+)` would do it\.", text)
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("name", sorted(path.stem for path in (DOCS / "data").glob("*.json")))
def test_data_come_from_a_script(name: str) -> None:
    assert (ROOT / tables.command_of(name).split()[1]).is_file()


def test_a_verdict_is_the_sentence_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    place = "<!-- table: verdict | did_it_help -->\n<!-- end of table -->"
    missing = "Not measured here yet; `python benchmarks/did_it_help.py` would do it."
    assert missing in tables.fill(place)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "did_it_help.json").write_text('{"figures": {}}')
    assert missing in tables.fill(place)
    (tmp_path / "data" / "did_it_help.json").write_text('{"figures": {"verdict": "It helps."}}')
    assert tables.fill(place).splitlines()[2] == "**It helps.**"


def test_a_picture_is_shown_once_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    place = "<!-- table: picture | arms.png | the arms -->\n<!-- end of table -->"
    assert "Not drawn here yet: the arms." in tables.fill(place)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "arms.png").touch()
    assert "![the arms](images/arms.png)" in tables.fill(place)


def test_a_title_that_begins_so_is_found() -> None:
    whole = tables.report("loader", "crop + flip + normalise, CIFAR-10")
    assert tables.report("loader", "crop + flip + normalise …") == whole
    assert (
        tables.report("loader", "no such table") == "Not measured here yet; `python benchmarks/loader.py` would do it."
    )


def test_a_whole_report_names_targets_and_machine() -> None:
    text = tables.whole_report("loader")
    assert text.count("\n| --- |") == 2
    assert re.search(r"^- crop .* met$", text, re.MULTILINE)
    assert re.search(r"Measured on 20\d\d-\d\d-\d\d with 2 threads on .*torch \d", text)


def test_no_table_of_the_benchmarks_is_typed() -> None:
    typed = tables.PLACE.sub("", (DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    assert re.findall(r"^\|.*", typed, re.MULTILINE) == []


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_a_typed_table_of_figures_says_where_they_are_from(path: Path) -> None:
    typed = TYPED.sub("", tables.PLACE.sub("", prose(path)))
    rows = re.findall(r"^\|.*", re.sub(r"`[^`]*`", "", typed), re.MULTILINE)
    assert [row for row in rows if re.search(r"\d\.\d|\d %", row)] == []


def test_figures_in_the_prose_of_the_results_are_those_of_its_tables() -> None:
    text = prose(DOCS / "results.md")
    figure = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\.?\d)"  # 1,234.5 but no version, as 3.11.7
    made = [float(number.replace(",", "")) for number in re.findall(figure, "".join(made_tables(text)))]
    untold = re.findall(r"(?<![\w.,])\d+\.\d+(?![.\d])", TYPED.sub("", tables.PLACE.sub("", text)))
    digits = {number: len(number.partition(".")[2]) for number in untold}
    known = {f"{value:.{count}f}" for count in {*digits.values()} for value in made}
    assert [number for number in untold if number not in known] == [], "mark the paragraph by <!-- typed: source -->"


def made_tables(text: str) -> Iterator[str]:
    return (place[0] for place in tables.PLACE.finditer(text))


def test_links_of_the_tricks_start_in_the_page() -> None:
    assert "[cutout of 8 pixels](tricks/cutout.md)" in tables.all_tricks("tricks/")
    assert "[cutout of 8 pixels](cutout.md)" in tables.all_tricks()


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    modules = {pkgutil.resolve_name(name) for name in re.findall(r"automodule:: (\S+)\n +:members:", pages)}
    shown_names = {name for module in modules for name in getattr(module, "__all__", vars(module))}
    packages = {module.__name__.removeprefix("cifarkit.") for module in modules}
    assert {*cifarkit.__all__} - shown_names - packages - {"schedules"} == set()
    assert {"reporting", "sharing", "doctor", "recipes"} <= packages


def test_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no table 'trick'; there are tricks"):
        tables.fill("<!-- table: trick | cutout -->\n<!-- end of table -->")


def test_what_was_not_measured_says_so() -> None:
    assert tables.tricks("levitation").startswith("Not measured here yet; `python benchmarks/tricks.py")
    assert tables.speedrun("levitation").startswith("Not measured here yet; `python benchmarks/speedrun.py")


def test_filling_twice_changes_nothing() -> None:
    filled = tables.fill("<!-- table: resnet18 -->\n<!-- end of table -->")
    assert "0.9330" in filled
    assert tables.fill(filled) == filled


@pytest.mark.parametrize(
    ("text", "command", "reason"),
    [
        (
            "pip install -e . && python examples/quickstart.py",
            "python examples/quickstart.py --tiny",
            "installs packages",
        ),
        (
            "CIFARKIT_DATA=data python benchmarks/tricks.py  # note",
            "CIFARKIT_DATA=data python benchmarks/tricks.py --tiny",
            "",
        ),
        ("python examples/a.py --x 1 \\\n    --y 2", "python examples/a.py --x 1 --y 2 --tiny", ""),
        ("torchrun --nnodes 2 examples/a.py", "", "needs several machines"),
        ("git clone https://a/b && cd cifarkit\npip install -e .", "", "fetches the repository, installs packages"),
        ("# a comment\necho done", "echo done", ""),
    ],
)
def test_commands_become_tiny(text: str, command: str, reason: str) -> None:
    assert run_blocks.tiny_command(text) == (command, reason)


def test_blocks_of_guides_run_too() -> None:
    blocks = run_blocks.choose_blocks(["guides"])
    assert [block.text.split("(")[0] for block in blocks["docs/guides/explain.md"]] == ["photo = data.read_images"]
    assert "docs/guides/explain.md" in run_blocks.PREPARED


@pytest.mark.parametrize("path", make_notebooks.find_addressed(), ids=shown)
def test_the_repository_has_one_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert make_notebooks.with_address(text) == text, "run python docs/make_notebooks.py"


def test_no_other_page_names_the_repository() -> None:
    named = [path for path in TEXTS if make_notebooks.REPOSITORY in path.read_text(encoding="utf-8")]
    assert {*named} <= {*make_notebooks.find_addressed()}


def test_a_moved_repository_is_named_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "git+https://github.com/cifarkit/cifarkit, colab.research.google.com/github/cifarkit/cifarkit/blob, cifarkit/x"
    )
    monkeypatch.setattr(make_notebooks, "REPOSITORY", "https://github.com/someone/else")
    moved = "git+https://github.com/someone/else, colab.research.google.com/github/someone/else/blob, cifarkit/x"
    assert make_notebooks.with_address(text) == moved


@pytest.mark.parametrize("name", ["docs/index.md", "docs/quickstart.md", "README.md"])
def test_a_reader_learns_how_to_get_it(name: str) -> None:
    blocks = [block.text for block in run_blocks.find_blocks(ROOT / name) if block.language == "bash"]
    assert any(f"git clone {make_notebooks.REPOSITORY} && cd cifarkit" in text for text in blocks)
    assert any("pip install -e ." in text for text in blocks)


@pytest.mark.parametrize(
    "name", ["docs/index.md", "docs/quickstart.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_supported_versions_are_those_of_setup(name: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = {item.name: item for item in map(Requirement, setup["options"]["install_requires"].split())}
    (torch,) = needed["torch"].specifier
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
    assert f"PyTorch {torch.version} or newer" in text or f"PyTorch | {torch.version} or newer" in text
    assert re.search(r"Python (\| )?3\.10\.12, 3\.11\.4 or newer", text)


def test_tested_versions_are_those_of_the_workflow() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    newest = jobs["newest"]["strategy"]["matrix"]["python"]
    oldest = dict(line.split("==") for line in (ROOT / ".ci" / "oldest.txt").read_text().splitlines() if "==" in line)
    index, guide = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/index.md", "CONTRIBUTING.md"))
    assert ", ".join(newest) in index
    assert oldest["torch"] in index
    assert f"{', '.join(newest[:-1])} and {newest[-1]}" in guide
    assert [name for name in ("torch", "numpy", "captum") if oldest[name] not in guide] == []


def test_the_workflow_follows_links_by_itself() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "links.yml").read_text())
    assert {*workflow[True]} == {"schedule", "workflow_dispatch"}  # YAML reads "on" as true
    assert any("sphinx-build -b linkcheck" in step.get("run", "") for step in workflow["jobs"]["links"]["steps"])


def write_page(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_blocks, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    return page


def test_marked_blocks_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<!-- blocks: skip, needs a friend -->\n\n```bash\ncall\n```\n"
    text += "<!-- blocks: needs no_such -->\n```python\n1\n```\n```python\n2\n```\n"
    blocks = run_blocks.find_blocks(write_page(tmp_path, text, monkeypatch))
    assert [block.skip for block in blocks] == ["needs a friend", "needs no_such, which is not installed", ""]
    assert [block.line for block in blocks] == [3, 7, 10]


def test_a_block_that_does_not_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(tmp_path, "text\n```python\n1\n", monkeypatch)
    with pytest.raises(ValueError, match=r"page\.md:2: the block that begins here does not end"):
        run_blocks.find_blocks(page)


def code_for_lightning_users() -> list[str]:
    rows = [row for row in (DOCS / "howto" / "lightning.md").read_text().splitlines() if row.startswith("| ")]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ", 1)[1])]


@pytest.mark.parametrize("code", code_for_lightning_users())
def test_what_lightning_users_are_told_exists(code: str) -> None:
    known = vars(cifarkit) | vars(cifarkit.data) | {"trainer": cifarkit.Trainer}
    try:
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    except SyntaxError:
        return  # a command line, or a piece of a call
    for call in calls:
        name = ast.unparse(call.func)
        if name.split(".")[0] in known:
            given = {keyword.arg for keyword in call.keywords}
            assert given <= set(inspect.signature(eval(name, known)).parameters), name


def test_classes_lightning_users_are_told_exist() -> None:
    names = {code for code in code_for_lightning_users() if re.fullmatch(r"[A-Z]\w+", code)}
    assert names
    assert names <= set(cifarkit.__all__)


def test_the_heart_of_the_code_is_an_evening_long() -> None:
    text = (DOCS / "reading.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:examples|cifarkit)/[\w/]+\.py)`", text)
    assert len(files) == 20
    assert sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files) <= 3_700


@pytest.mark.parametrize("path", sorted((ROOT / "cifarkit").rglob("*.py")), ids=shown)
def test_a_file_of_the_library_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
