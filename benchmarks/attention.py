"""Graph attention by sorting, against the same attention with its weights formed: seconds, memory, growth.

    python benchmarks/attention.py            # about 5 minutes on 2 cores
    python benchmarks/attention.py --tiny     # seconds, to see that it runs

One call is forward and backward of query, key and value, fp32, one image, 8 heads of 64 numbers a node. The peers are
the formula as anyone would write it, leaky_relu(q + k).softmax @ v, cifarkit's own method="dense", and for comparison
PyTorch's scaled_dot_product_attention, which is another attention. Rounds interleave all sides; memory is the highest
resident size of a process of its own, less what it held before the call.

A second table looks at the corners where method="auto" has just begun to sort: the fewest nodes for vectors of 16 to
512 numbers, with just enough pairs, with many heads, and with few queries for many nodes; with and without backward.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor
from torch.nn import functional as F

from cifarkit.models.attention import graph_attention
from cifarkit.models.sorted_attention import fewest_nodes, is_faster_sorted
from cifarkit.plots.figure import BLUE, GREEN, PURPLE, VERMILION, finish, new_figure, strip_axes

HEADS, DIM = 8, 64
SIZES = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
LARGEST_WITH_PAIRS = 4096  # beyond, 8 heads of pairs need tens of GB
AIMS = {1024: 5, 4096: 20}  # nodes -> times as fast as method="dense"
COLORS = {"sorted": BLUE, "dense": VERMILION, "plain formula": PURPLE, "classical (SDPA)": GREEN}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.leaky_relu(query[..., None] + key[:, :, None], 0.2).softmax(-1) @ value


def classical(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


class Corner(NamedTuple):
    """A call at which "auto" has just begun to sort."""

    queries: int
    nodes: int
    heads: int
    dim: int


def corners() -> list[Corner]:
    """Return the corners for short and long vectors, those of most interest first."""
    found = []
    for dim in (64, 512, 16, 256):
        least = fewest_nodes(dim)
        for queries, nodes in ((least, least), (least, 8192), (1536, 1536)):
            if min(queries, nodes) >= least:
                found.append(Corner(queries, nodes, fewest_heads(queries, nodes, dim), dim))
        found.append(Corner(least, least, 32, dim))
    return found


def fewest_heads(queries: int, nodes: int, dim: int) -> int:
    empty = partial(torch.empty, device="meta")
    calls = ((heads, empty(1, heads, queries), empty(1, heads, nodes, dim)) for heads in count(1))
    return next(heads for heads, query, value in calls if is_faster_sorted(query, value))


SIDES: dict[str, Attend] = {
    "sorted": partial(graph_attention, method="sorted"),
    "dense": partial(graph_attention, method="dense"),
    "plain formula": plain_formula,
    "classical (SDPA)": classical,
}


def prepare(
    side: str, nodes: int, heads: int = HEADS, dim: int = DIM, *, queries: int | None = None, backward: bool = True
) -> Callable[[], float]:
    """Return a function that attends once, forward and perhaps backward, and says how many seconds it took."""
    attend, generator, asking = SIDES[side], torch.Generator().manual_seed(nodes), queries or nodes
    own = (dim,) if side.startswith("classical") else ()
    query, key = (torch.randn(1, heads, size, *own, generator=generator) for size in (asking, nodes))
    value, upstream = (torch.randn(1, heads, size, dim, generator=generator) for size in (nodes, asking))
    tensors = tuple(tensor.requires_grad_(backward) for tensor in (query, key, value))

    def run() -> float:
        start = time.perf_counter()
        outputs = attend(*tensors)
        if backward:
            torch.autograd.grad(outputs, tensors, upstream)
        return time.perf_counter() - start

    return run


def peak_bytes(side: str, nodes: int) -> int:
    """Measure in a fresh process what one call adds to the resident memory."""
    command = [sys.executable, __file__, "--memory-of", side, "--nodes", str(nodes)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_own_peak(side: str, nodes: int) -> None:
    run = prepare(side, nodes)
    prepare(side, 64)()  # loads what the first call loads
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def resident(name: str) -> int:
    """Read the resident bytes of this process, now (VmRSS) or at most; getrusage would count those of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def has_pairs(side: str) -> bool:
    return side in ("dense", "plain formula")


def measure(sizes: list[int], rounds: int) -> dict[int, dict[str, list[float]]]:
    """Return nodes -> side -> seconds, one a round; the first call of each is not counted."""
    found = {}
    for nodes in sizes:
        sides = [side for side in SIDES if nodes <= LARGEST_WITH_PAIRS or not has_pairs(side)]
        if nodes > 16384:
            sides = ["sorted"]  # the classical one takes minutes from here on
        runs = {side: prepare(side, nodes) for side in sides}
        for run in runs.values():
            run()
        found[nodes] = take_turns(runs, rounds if nodes < 4096 else max(2, rounds // 3))
        print(nodes, {side: f"{Spread.of(values).median:.4f} s" for side, values in found[nodes].items()}, flush=True)
    return found


def speed_table(times: dict[int, dict[str, list[float]]], memory: dict[int, dict[str, int]]) -> Table:
    columns = ["nodes", *(f"{side}, ms" for side in SIDES), "dense / sorted", "plain / sorted", "MB sorted", "MB dense"]
    rows = []
    for nodes, sides in times.items():
        cells = [Spread.of([1e3 * x for x in sides[side]]).text(1) if side in sides else "" for side in SIDES]
        gains = [ratios(sides[s], sides["sorted"]).text(1) if s in sides else "" for s in ("dense", "plain formula")]
        used = memory.get(nodes, {})
        sizes = [f"{used[side] / 1e6:,.0f}" if side in used else "" for side in ("sorted", "dense")]
        rows.append([f"{nodes:,}", *cells, *gains, *sizes])
    return Table(f"forward + backward, {HEADS} heads of {DIM}, fp32", columns, rows)


def crossover_table(cases: list[Corner], rounds: int) -> tuple[Table, float]:
    """Compare where "auto" has just begun to sort; return the table and the worst median of dense over sorted."""
    rows, worst = [], float("inf")
    for case in cases:
        cells = []
        for backward in (False, True):
            sides = ("sorted", "dense", "plain formula")
            options = {"queries": case.queries, "backward": backward}
            runs = {side: prepare(side, case.nodes, case.heads, case.dim, **options) for side in sides}
            for run in runs.values():
                run()
            found = take_turns(runs, rounds)
            gains = [ratios(found[side], found["sorted"]) for side in ("dense", "plain formula")]
            worst = min(worst, gains[0].median)
            cells += [gain.text(2) for gain in gains]
        rows.append([*map(str, case), *cells])
        print(*rows[-1], flush=True)
    titles = ["queries", "nodes", "heads", "numbers a head"]
    titles += [f"{who} / sorted, {what}" for what in ("forward", "with backward") for who in ("dense", "plain")]
    return Table('where "auto" begins to sort', titles, rows), worst


def draw(times: dict[int, dict[str, list[float]]], path: Path) -> None:
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for side, color in COLORS.items():
        points = [(nodes, Spread.of(sides[side]).median) for nodes, sides in times.items() if side in sides]
        axes.loglog(*zip(*points, strict=True), color=color, marker="o", markersize=4)
        shift = {"dense": (-8, 8), "plain formula": (-8, 26)}.get(side, (6, -3))  # these two end at nearly one point
        align = "right" if side in ("dense", "plain formula") else "left"
        axes.annotate(side, points[-1], shift, textcoords="offset points", color=color, fontsize=9, ha=align)
    axes.set(xlabel="nodes", ylabel="seconds, forward + backward")
    axes.set_xlim(right=max(times) * 6)
    axes.set_title(f"Graph attention, {HEADS} heads of {DIM}", fontsize=11, loc="left")
    strip_axes(axes)
    finish(figure, path)


def main() -> None:
    parser = arguments(__doc__, "attention")
    parser.add_argument("--memory-of", choices=[*SIDES], help="used by the script itself")
    parser.add_argument("--nodes", type=int, default=1024, help="with --memory-of")
    options = parser.parse_args()
    if options.memory_of:
        print_own_peak(options.memory_of, options.nodes)
        return
    sizes, rounds = ([64, 256], 2) if options.tiny else (SIZES, 9)
    report = Report("attention", {"heads": HEADS, "dim": DIM, "rounds": rounds})
    times = measure(sizes, rounds)
    measured = [nodes for nodes in sizes if nodes >= (256 if options.tiny else 1024)]
    memory = {nodes: {s: peak_bytes(s, nodes) for s in ("sorted", "dense") if s in times[nodes]} for nodes in measured}
    crossover, worst = crossover_table(corners()[: 2 if options.tiny else None], 2 * rounds)
    report.tables += [speed_table(times, memory), crossover]
    report.figures |= {"seconds": times, "bytes": memory}
    for nodes, least in AIMS.items():
        if nodes in times:
            dense, plain = (ratios(times[nodes][side], times[nodes]["sorted"]) for side in ("dense", "plain formula"))
            found = f"{dense.text(1)}; {plain.text(1)} × the plain formula"
            report.aim(f'{nodes:,} nodes: at least {least} × method="dense"', found, dense.median >= least)
    if 65536 in times:
        seconds, used = Spread.of(times[65536]["sorted"]), memory[65536]["sorted"]
        found = f"{seconds.text(2)} s, {used / 1e9:.2f} GB"
        report.aim("65,536 nodes × 8 heads: below 4 s and 2 GB", found, seconds.high < 4 and used < 2e9)
    report.aim('never slower than method="dense" where "auto" sorts', f"at least {worst:.2f} × as fast", worst >= 1)
    path = destination(options, "attention")
    if report.publish(path) and path is not None and not options.tiny:
        draw(times, path.parents[1] / "images" / "attention_growth.png")


if __name__ == "__main__":
    main()
