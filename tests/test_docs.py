"""The pages: blocks name a language and compile, links and names lead somewhere, tables are those of the data."""

import ast
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


run_blocks, tables = load("run_blocks"), load("tables")


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
            compile("\n" * block.line + block.text, block.page, "exec")


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = [target for target, _ in LINK.findall(prose(path)) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


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
    assert (ROOT / tables.command_of(name).removeprefix("python ")).is_file()


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
        ("# a comment\necho done", "echo done", ""),
    ],
)
def test_commands_become_tiny(text: str, command: str, reason: str) -> None:
    assert run_blocks.tiny_command(text) == (command, reason)


def test_blocks_of_guides_run_too() -> None:
    blocks = run_blocks.choose_blocks(["guides"])
    assert [block.text.split("(")[0] for block in blocks["docs/guides/explain.md"]] == ["photo = data.read_images"]
    assert "docs/guides/explain.md" in run_blocks.PREPARED


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
