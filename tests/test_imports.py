"""Imports point one way and importing the package stays light: the rules of the design, read from the code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cifarkit"
GROUND = {"seeding", "inference", "files", "folding", "labels", "checks", "memory", "layout", "quantizing"}
ROOMS = {  # what each room may import, besides itself
    "seeding": GROUND,
    "inference": GROUND,
    "files": GROUND,
    "folding": GROUND,
    "labels": GROUND,
    "checks": GROUND,
    "memory": GROUND,
    "layout": GROUND,
    "quantizing": GROUND,
    "data": GROUND,
    "transforms": GROUND,
    "models": GROUND,
    "diffusion": GROUND,
    "attribution": GROUND,
    "plots": GROUND,
    "generation": GROUND | {"data", "diffusion"},
    "recipes": GROUND | {"data", "transforms", "models", "diffusion", "training"},
    "reporting": GROUND,
    "sharing": GROUND | {"training"},
    "cpu": GROUND | {"training"},
    "doctor": GROUND | {"cpu", "models", "training"},
    "training": GROUND | {"plots"},  # the LR finder's sweep draws itself
}
ROOMS["commands"] = GROUND | set(ROOMS)
ROOMS["__main__"] = {"commands"}
LEVELS = {  # inside training: a module imports those of its own level and below; one not listed here counts as the top
    name: level
    for level, names in enumerate(
        [
            ["task"],
            [
                "contract",
                "snapshot",
                "batchnorm",
                "schedules",
                "precision",
                "distributed",
                "meters",
                "fallback",
                "clipping",
                "interrupts",
                "accumulation",
                "config",
                "loading",
                "compatibility",
                "muon",
                "archive",
                "weights",
                "position",
                "kinds",
                "moments",
                "structure",
                "evaluation",
            ],
            ["callbacks", "averaging", "loggers", "trackers", "checkpoint", "progress", "resuming"],
            ["run"],
            ["trainer"],
            ["lr_finder", "estimate"],
        ]
    )
    for name in names
}
HEAVY = {"captum", "matplotlib", "tensorboard", "wandb", "safetensors"}  # only inside the functions that need them
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def runtime_nodes(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Walk the code, leaving out ``if TYPE_CHECKING`` and, if wanted, what only runs when a function is called."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if not inside_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from runtime_nodes(child, inside_functions=inside_functions)


def names_imported(source: str, module: str, *, is_package: bool, inside_functions: bool = True) -> set[str]:
    """Dotted names that the source of a module imports; of ``from a import b`` both a and a.b."""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(source), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def imports_of(module: str, *, inside_functions: bool = True) -> set[str]:
    path = MODULES[module]
    is_package = path.name == "__init__.py"
    return names_imported(path.read_text(), module, is_package=is_package, inside_functions=inside_functions)


def room_violations(module: str, imported: set[str]) -> set[str]:
    """What a module imports although its room may not."""
    room = module.split(".")[1]
    allowed = ROOMS[room] | {room}
    if module == "cifarkit.training.tasks.diffusion":
        allowed = allowed | {"diffusion"}
    known = {name for name in imported if name.startswith("cifarkit.")}
    return {name for name in known if name.split(".")[1] in ROOMS and name.split(".")[1] not in allowed}


def level_violations(module: str, imported: set[str]) -> set[str]:
    """Which modules of a higher level a module of training imports; tasks stand on the ground floor and on level 1."""
    prefix = "cifarkit.training."
    names = {name.removeprefix(prefix).split(".")[0] for name in imported if name.startswith(prefix)} & {*LEVELS}
    own = module.removeprefix(prefix).split(".")[0]
    floor = 1 if own == "tasks" else LEVELS.get(own, max(LEVELS.values()))
    return {name for name in names if LEVELS[name] > floor}


@pytest.mark.parametrize("module", [name for name in MODULES if name.count(".")])
def test_rooms_enter_only_the_rooms_below(module: str) -> None:
    assert module.split(".")[1] in ROOMS, f"give {module} a place in ROOMS, as the design describes"
    assert not room_violations(module, imports_of(module))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cifarkit.training.")])
def test_training_imports_down_its_levels(module: str) -> None:
    imported = imports_of(module)
    assert not level_violations(module, imported)
    assert module.startswith("cifarkit.training.tasks") or not any("training.tasks" in name for name in imported)


def test_no_two_modules_need_each_other() -> None:
    needs = {name: (imports_of(name, inside_functions=False) & {*MODULES}) - {name} for name in MODULES}
    inner = {name: {need for need in needs[name] if not name.startswith(f"{need}.")} for name in MODULES}
    done: set[str] = set()
    while ready := {name for name in inner if name not in done and inner[name] <= done}:
        done |= ready
    assert not {*MODULES} - done, "these modules import each other in a circle"


@pytest.mark.parametrize("module", [*MODULES])
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    imported = imports_of(module, inside_functions=False)
    assert not {name for name in imported if name.split(".")[0] in HEAVY or name.startswith("torch.utils.tensorboard")}
    assert not {name for name in imported if name.split(".")[0] in {"examples", "tests", "benchmarks"}}


def test_the_walk_sees_what_it_should() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from cifarkit.training.trainer import Run
from .base import Transform
from ..data import Loader
def draw():
    import matplotlib
"""
    module = "cifarkit.transforms.geometry"
    found = names_imported(source, module, is_package=False)
    assert {"cifarkit.transforms.base", "cifarkit.data.Loader", "matplotlib"} <= found
    assert "cifarkit.training.trainer" not in found
    assert "matplotlib" not in names_imported(source, module, is_package=False, inside_functions=False)
    assert room_violations(module, found) == {"cifarkit.data", "cifarkit.data.Loader"}
    assert room_violations("cifarkit.training.trainer", {"cifarkit.diffusion.schedule"})
    assert not room_violations("cifarkit.training.tasks.diffusion", {"cifarkit.diffusion.schedule"})
    assert level_violations("cifarkit.training.callbacks", {"cifarkit.training.trainer.Run"}) == {"trainer"}
    assert not level_violations("cifarkit.training.lr_finder", {"cifarkit.training.trainer.Trainer"})


def test_importing_the_package_is_light() -> None:
    program = f"""
import sys, torch, torchvision
before = set(sys.modules)
import cifarkit
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & {HEAVY!r}))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
