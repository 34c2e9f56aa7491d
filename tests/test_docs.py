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

import cifarkit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
OWN = [path for path in TEXTS if "guides" not in path.parts]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


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


@pytest.mark.parametrize("path", OWN, ids=shown)
def test_python_blocks_compile(path: Path) -> None:
    for block in run_blocks.find_blocks(path):
        if block.language == "python":
            compile("\n" * block.line + block.text, block.page, "exec")


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = [target for target in LINK.findall(prose(path)) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


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
