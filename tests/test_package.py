"""What ships: one version, the type marker, README commands that exist, files without a machine's own paths."""

import ast
import configparser
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import cifarkit

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".txt", ".json", ".csv", ""}
ABSOLUTE = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt)/\w")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("no git repository here")
    return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


def test_version_has_one_source(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["version"] == "attr: cifarkit.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", cifarkit.__version__)
    assert f"## [{cifarkit.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_installed_version_is_this_one() -> None:
    try:
        installed = metadata.version("cifarkit")
    except metadata.PackageNotFoundError:
        pytest.skip("the package runs from its folder and is not installed")
    assert installed == cifarkit.__version__


def test_types_and_licence_ship(setup: configparser.ConfigParser) -> None:
    assert setup["options.package_data"]["cifarkit"] == "py.typed"
    assert (ROOT / "cifarkit" / "py.typed").is_file()
    assert "Apache License" in (ROOT / setup["metadata"]["license_files"]).read_text()


def test_every_package_that_is_imported_is_declared(setup: configparser.ConfigParser) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "cifarkit").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], extras["safetensors"], extras["wandb"]]
    declared = {re.split(r"[<>=!]", line)[0] for line in "\n".join(lines).split()}
    used = {name.split(".")[0].replace("PIL", "pillow") for name in imported}
    assert used - declared - sys.stdlib_module_names - {"cifarkit"} == set()


def test_python_can_unpack_archives_safely(setup: configparser.ConfigParser) -> None:
    allowed = SpecifierSet(setup["options"]["python_requires"])
    assert [version for version in ("3.10.11", "3.11.0", "3.11.3") if version in allowed] == []
    assert {"3.10.12", "3.11.4", "3.12.0", "3.13.1"} <= {*allowed.filter(["3.10.12", "3.11.4", "3.12.0", "3.13.1"])}


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "cifarkit").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_public_names_exist_and_are_listed_once() -> None:
    names = getattr(cifarkit, "__all__", [])
    assert len(names) == len(set(names))
    assert all(hasattr(cifarkit, name) for name in names)


def test_readme_commands_name_what_exists(setup: configparser.ConfigParser) -> None:
    readme = (ROOT / "README.md").read_text()
    scripts = set(re.findall(r"(?:python|bash) ((?:examples|benchmarks|\.ci)/[\w.]+)", readme))
    assert {"examples/quickstart.py", ".ci/run"} <= scripts
    assert [name for name in sorted(scripts) if not (ROOT / name).is_file()] == []
    extras = {extra for found in re.findall(r'"\.\[([\w,]+)\]"', readme) for extra in found.split(",")}
    assert "test" in extras
    assert extras <= set(setup["options.extras_require"])


def test_readme_pictures_and_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked_files()
        if path.suffix in TEXT and path != Path(__file__)
        for match in [ABSOLUTE.search(path.read_text(errors="ignore"))]
        if match
    ]
    assert found == []


def test_no_tracked_file_is_heavy() -> None:
    assert [path.name for path in tracked_files() if path.stat().st_size > 1_000_000] == []
