"""What ships: one version, wheel and sdist, README commands that exist, files without a machine's own paths."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist, as a release is."""
    folder = tmp_path_factory.mktemp("built")
    unwanted = {".git", ".venv", "runs", "data", "wandb", "build", "dist", "cifarkit.egg-info"}  # at the top alone
    caches = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", "_build")

    def ignore(path: str, names: list[str]) -> set[str]:
        return caches(path, names) | (unwanted & {*names} if Path(path) == ROOT else set())

    shutil.copytree(ROOT, folder / "clone", ignore=ignore)  # an old egg-info would add its own list of files
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "clone")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def wheel_files(built: Path) -> dict[str, bytes]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sdist_files(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


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


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    names = {*wheel_files(built)}
    package = {path for path in (ROOT / "cifarkit").rglob("*") if path.suffix in (".py", ".typed", ".css", ".js")}
    notes = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"cifarkit-{cifarkit.__version__}.dist-info/{name}" for name in notes}
    assert names == expected
    assert [path.name for path in built.glob("*.whl")] == [f"cifarkit-{cifarkit.__version__}-py3-none-any.whl"]


def test_the_metadata_is_valid_and_complete(built: Path) -> None:
    (raw,) = [content for name, content in wheel_files(built).items() if name.endswith(".dist-info/METADATA")]
    found = Metadata.from_email(raw, validate=True)
    assert (found.name, str(found.version)) == ("cifarkit", cifarkit.__version__)
    assert found.description_content_type == "text/markdown"
    assert (found.description or "").strip() == (ROOT / "README.md").read_text().strip()
    needed = {item.name for item in found.requires_dist or [] if item.marker is None}
    assert needed == {"torch", "torchvision", "numpy", "pillow", "captum", "matplotlib", "tqdm", "tensorboard"}


def test_the_sdist_holds_what_is_tracked(built: Path) -> None:
    tracked = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
    assert tracked - sdist_files(built) == {".gitignore"}


def test_the_sdist_holds_nothing_made(built: Path) -> None:
    made = re.compile(r"(^|/)(__pycache__|_build|runs|wandb|\.git)/|\.(pyc|npz|pt)$")
    assert [name for name in sdist_files(built) if made.search(name)] == []
    assert {"tests/test_package.py", "docs/conf.py", ".ci/run", "examples/quickstart.py"} <= sdist_files(built)


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(built: Path, tmp_path: Path) -> None:
    """In an environment that sees the packages of this one, but of cifarkit only the wheel."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(
        sysconfig.get_path("purelib")
    )  # a .pth inside, of an editable install, is not read
    python = str(tmp_path / "venv" / "bin" / "python")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--ignore-installed"], check=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        ended = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    assert Path(run(python, "-c", "import cifarkit; print(cifarkit.__file__)").strip()).is_relative_to(site)
    assert f"cifarkit {cifarkit.__version__}" in run(python, "-m", "cifarkit", "doctor", "--steps", "0")
    assert "val_acc" in run(str(tmp_path / "venv" / "bin" / "cifarkit"), "train", "--tiny")
    assert len([*outside.glob("runs/*/report.html")]) == 1


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= {*citation}  # what version 1.2.0 of the format requires
    assert (citation["title"], citation["version"]) == ("cifarkit", cifarkit.__version__)
    assert citation["license"] == "Apache-2.0"
    assert all({"name"} == {*author} for author in citation["authors"])


def test_workflows_run_the_script_on_every_supported_python(setup: configparser.ConfigParser) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    jobs = workflow["jobs"].values()
    assert all("bash .ci/run" in [step.get("run") for step in job["steps"]] for job in jobs)
    stated = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert workflow["jobs"]["newest"]["strategy"]["matrix"]["python"] == stated


def test_the_oldest_packages_are_those_of_setup(setup: configparser.ConfigParser) -> None:
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    extras = setup["options.extras_require"]
    stated = [Requirement(line) for line in (setup["options"]["install_requires"] + extras["safetensors"]).split()]
    for requirement in stated:
        (bound,) = requirement.specifier
        assert oldest[requirement.name].startswith(bound.version)
        assert bound.operator == ">="
        assert oldest[requirement.name] in requirement.specifier


def test_readme_states_the_python_that_setup_allows(setup: configparser.ConfigParser) -> None:
    first = re.search(r"Python (3\.\d+\.\d+)", (ROOT / "README.md").read_text())
    assert first
    assert setup["options"]["python_requires"].startswith(f">={first[1]}")


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
