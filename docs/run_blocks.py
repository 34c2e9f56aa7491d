"""Run every Python and bash block of README.md and the documentation on tiny settings.

    python docs/run_blocks.py              # all pages, some minutes on two cores
    python docs/run_blocks.py faq howto    # pages whose name contains one of the words

The blocks of a page run in their order, the Python ones in one process, in a folder that is thrown away. It holds small
drawn stand-ins for the files that the pages speak of: CIFAR below data/, pictures in pets/ and new/, photo.jpg. Sizes
that readers see stay as they are; :func:`make_small` cuts them down while a block runs. A block is left out where the
line before it says so, in a comment that readers do not see:

    <!-- blocks: skip, needs an account -->     never run; the reason is printed
    <!-- blocks: needs lightning -->            run where that package is installed

Cells of docs/quickstart.md and docs/guides are left to the build of the documentation, which runs them in order.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES, EPOCHS, STEPS = 120, 2, 12  # the most of each while a block runs
CIFAR_IMAGES = 1_600  # of the stand-in for its training images, as many as any --tiny takes
PAGE_SECONDS = 900  # a page that takes longer is taken to hang; generous, as the machine may be shared

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\s`]*)")
NOTE = re.compile(r"^\s*<!-- blocks: (?P<what>skip|needs)[, ]+(?P<rest>.+?) -->\s*$")
SCRIPT = re.compile(
    r"^(\w+=\S+ )*((python|torchrun( --[\w-]+ \d+)*) (examples|benchmarks)/\w+\.py|"
    r"python -m cifarkit (train|lr-find))\b"
)
LEFT_OUT = {  # commands of several pages, each with why it is not run
    r"pip install|^pre-commit install": "installs packages",
    r"^(git clone|cd cifarkit$)": "fetches the repository",
    r"--nnodes": "needs several machines",
    r"^(pytest|bash \.ci/run|sphinx-build)": "has a stage of its own in .ci/run",
}
PREPARED = {  # what fragments in pages of reference take for granted
    "docs/api/attribution.md": (
        "import torch; from cifarkit import models\n"
        "model = models.SpeedNet(10, widths=(8, 16, 16)).eval(); images = torch.rand(4, 3, 32, 32); mean = std = 0.5"
    ),
    "docs/api/generation.md": (
        "from cifarkit import Loader, data, transforms\n"
        "real, made, augment = data.shapes(100), data.shapes(100, seed=1), transforms.Normalize(0.5, 0.5)"
    ),
    "docs/guides/explain.md": (
        "import torch; from cifarkit import attribution, data, models, plots, transforms\n"
        "model = models.SpeedNet(10, widths=(8, 16, 16)).eval(); normalize = transforms.Normalize(0.5, 0.25)"
    ),
    "docs/distributed.md": "from cifarkit import data\ntrain_set = data.shapes(100)",
    "docs/report.md": (
        "import torch; from pathlib import Path\n"
        "for name in ('2026-11-24-quickstart', 'with-cutout', 'without'):\n"
        "    Path('runs', name).mkdir(parents=True)\n"
        "    Path('runs', name, 'metrics.csv').write_text('epoch,step,val_acc\\n0,10,0.5\\n1,20,0.6\\n')\n"
        "images = torch.rand(2, 3, 32, 32)"
    ),
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page, line: where it begins, the page relative to the repository.
        language: of the fence, "" if it names none.
        text: without the fences.
        skip: why it is not run, "" if it is.
    """

    page: str
    line: int
    language: str
    text: str
    skip: str = ""

    @property
    def place(self) -> str:
        """Page, line and language, to be printed."""
        return f"{self.page}:{self.line} {self.language}"


def find_pages() -> list[Path]:
    """Return README.md, CONTRIBUTING.md and the pages of docs, without what a build has left."""
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(pages)]


def find_blocks(path: Path) -> list[Block]:
    """Return the outermost fenced blocks of a page.

    Raises:
        ValueError: if a fence is not closed.
    """
    page, blocks, skip = path.relative_to(ROOT).as_posix(), [], ""
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = FENCE.match(line)
        if fence:
            inside = list(_until_closed(lines, fence["ticks"]))
            if inside[-1] is None:
                raise ValueError(f"{page}:{number}: the block that begins here does not end")
            text = "\n".join(row[len(fence["indent"]) :] for row in inside[:-1])
            blocks.append(Block(page, number, fence["language"], text, skip))
        if line.strip():
            skip = _reason(line)
    return blocks


def _until_closed(lines: Iterator[tuple[int, str]], ticks: str) -> Iterator[str | None]:
    for _, line in lines:
        yield line
        if line.strip() == ticks:
            return
    yield None


def _reason(line: str) -> str:
    note = NOTE.match(line)
    if note is None:
        return ""
    if note["what"] == "skip":
        return note["rest"]
    return "" if importlib.util.find_spec(note["rest"]) else f"needs {note['rest']}, which is not installed"


def tiny_command(text: str) -> tuple[str, str]:
    """Return what is run of a bash block, examples and benchmarks with --tiny, and why parts are left out."""
    kept, reasons = [], []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for part in re.sub(r"\s+#.*|^#.*", "", line).split(" && "):
            reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, part)), None)
            if reason:
                reasons.append(reason)
            elif part.strip():
                kept.append(f"{part} --tiny" if SCRIPT.match(part) and "--tiny" not in part else part)
    return "\n".join(kept), ", ".join(dict.fromkeys(reasons))


def make_folder(folder: Path) -> None:
    """Fill a folder with what the pages speak of: data/, pets/, new/, a photo, CIFAR as .npz, and the scripts."""
    from PIL import Image

    from cifarkit import data

    (folder / "data").mkdir(parents=True)
    for count, seed, part in ((CIFAR_IMAGES, 0, "train"), (IMAGES, 1, "test")):
        for name in ("cifar10", "cifar100"):
            data.shapes(count, seed=seed).save(folder / "data" / f"{name}-{part}.npz")
        shutil.copy(folder / "data" / f"cifar10-{part}.npz", folder)
    pictures = data.shapes(40, seed=2).images.permute(0, 2, 3, 1).numpy()
    for index, picture in enumerate(pictures):
        place = folder / ("new" if index < 4 else f"pets/{'cat' if index % 2 else 'dog'}")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).resize((48, 40)).save(place / f"{index:02}.png")
    Image.fromarray(pictures[0]).resize((640, 480)).save(folder / "photo.jpg")
    for name in ("examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def make_small() -> None:
    """Cut down what blocks ask for: images, epochs, updates, sizes of sweeps and recipes; and fetch no weights."""
    from cifarkit import data, models, recipes, training

    def at_most(function: Any, **bounds: int) -> Any:
        @functools.wraps(function)
        def bounded(*args: Any, **options: Any) -> Any:
            for name, bound in bounds.items():
                if options.get(name) is not None:
                    options[name] = min(options[name], bound)
            return function(*args, **options)

        return bounded

    draw = data.shapes
    data.shapes = lambda count, **options: draw(min(count, IMAGES), **options)
    training.Trainer.__init__ = at_most(training.Trainer.__init__, max_epochs=EPOCHS, max_steps=STEPS)
    import cifarkit

    cifarkit.lr_find = training.lr_find = at_most(functools.partial(training.lr_find, steps=STEPS), steps=STEPS)
    for name in ("resnet18", "resnet34"):
        build = getattr(models, name)
        setattr(models, name, functools.partial(_without_download, build))
    for name, recipe in recipes.SPEEDRUN.items():
        recipes.SPEEDRUN[name] = dataclasses.replace(recipes.TINY, keep=recipe.keep)


def _without_download(build: Any, *args: Any, **options: Any) -> Any:
    if options.get("weights") == "DEFAULT":
        options["weights"] = None
    return build(*args, **options)


def run_page(blocks: list[Block], folder: Path) -> None:
    """Run the blocks of a page in a process of its own, and note each in results.jsonl of the folder."""
    os.chdir(folder)
    log = os.open("output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    make_small()
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(PREPARED.get(blocks[0].page, ""), names)
    for block in blocks:
        start, where = time.monotonic(), os.lseek(log, 0, os.SEEK_END)
        problem, note = "", block.skip
        if not note and block.language == "python":
            problem = _run_python(block, names)
        elif not note:
            command, note = tiny_command(block.text)
            if command:
                problem, note = _run_bash(command), f"runs {command.splitlines()[-1]}"
        sys.stdout.flush()
        output = Path("output.txt").read_bytes()[where:].decode(errors="replace")[-1500:] if problem else ""
        row = {"seconds": time.monotonic() - start, "problem": problem, "note": note, "output": output}
        with Path("results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if problem:
            break  # those after it may need what it made


def _run_python(block: Block, names: dict[str, Any]) -> str:
    try:
        exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
    except (Exception, SystemExit):
        return traceback.format_exc().strip()
    return ""


def _run_bash(command: str) -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=False, stdin=subprocess.DEVNULL)
    return f"exit code {done.returncode} of: {command}" if done.returncode else ""


def run_pages(pages: dict[str, list[Block]], scratch: Path, jobs: int) -> list[str]:
    """Run pages beside each other, print a line a block, and return what failed."""
    # Forked, a page starts with PyTorch imported; elsewhere that costs some seconds a page.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    waiting, running, failures = list(pages), {}, []
    while waiting or running:
        while waiting and len(running) < jobs:
            page = waiting.pop(0)
            folder = scratch / page.replace("/", "-")
            shutil.copytree(scratch / "prepared", folder, symlinks=True)
            process = context.Process(target=run_page, args=(pages[page], folder))
            process.start()
            running[page] = (process, folder, time.monotonic())
        for page, (process, folder, start) in list(running.items()):
            if process.is_alive() and time.monotonic() - start > PAGE_SECONDS:
                process.kill()
            process.join(0.05)
            if not process.is_alive():
                failures += _tell(pages[page], folder, process.exitcode or 0)
                del running[page]
    return failures


def _tell(blocks: list[Block], folder: Path, code: int) -> list[str]:
    """Print a line for each block of a finished page, and return its failures."""
    failures = []
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for block, row in zip(blocks, rows, strict=False):
        word = "FAIL" if row["problem"] else "skip" if row["note"] and not row["note"].startswith("runs ") else "ok"
        print(f"{word:4} {row['seconds']:6.1f} s  {block.place}  {row['note']}".rstrip(), flush=True)
        if row["problem"]:
            failures.append(f"{block.place}\n{row['output']}\n{row['problem']}")
    missing = blocks[len(rows) :]
    if missing and not failures:
        output = (folder / "output.txt").read_text(errors="replace")[-1500:]
        failures.append(f"{missing[0].place}\n{output}\nits process ended with exit code {code}, or was too slow")
    for block in missing:
        print(f"none       s  {block.place}  not reached", flush=True)
    return failures


def choose_blocks(words: list[str]) -> dict[str, list[Block]]:
    """Return the blocks to run by page; a bash block that an earlier page has too is run once."""
    pages: dict[str, list[Block]] = {}
    seen: dict[str, str] = {}
    for path in find_pages():
        for block in find_blocks(path):
            if block.language not in ("python", "bash") or (words and not any(word in block.page for word in words)):
                continue
            first = seen.setdefault(block.text, block.page) if block.language == "bash" else block.page
            repeated = first != block.page and not block.skip
            block = dataclasses.replace(block, skip=f"the same as in {first}") if repeated else block
            pages.setdefault(block.page, []).append(block)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run only pages whose name contains one of them")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="pages at a time")
    args = parser.parse_args()
    start = time.monotonic()
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}
    os.environ.pop("CIFARKIT_DATA", None)  # blocks that want it say so
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)  # so that no thread is started before a fork
    pages = choose_blocks(args.words)
    with tempfile.TemporaryDirectory() as scratch:
        make_folder(Path(scratch, "prepared"))
        failures = run_pages(pages, Path(scratch), args.jobs)
    for failure in failures:
        print(f"\n== FAILED: {failure}")
    count = sum(map(len, pages.values()))
    took = f"{time.monotonic() - start:.0f} s, {sum(os.times()[:4]):.0f} s of processor time"
    print(f"\n{count} blocks of {len(pages)} pages in {took}; {len(failures)} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
