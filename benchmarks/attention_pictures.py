"""Pictures of what graph attention can and cannot do, for docs/attention.md: a good minute on one quiet core.

    python benchmarks/attention_pictures.py

1. A look-up: each of 16 nodes asks for another one by name and must give that node's value. Three single layers learn
   it with the same budget; their weights on one new example are drawn, one row a query.
2. What the cells of a feature map attend to, over drawn shapes, in a network trained for twelve short epochs.

The pictures go to docs/images, the figures behind them to docs/data/attention_pictures.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from report import Report, Table, arguments, destination
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit import ClassificationTask, Loader, Trainer, data, models, plots, schedules, seed_everything, transforms
from cifarkit.plots.figure import finish, new_figure

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
NODES, VALUES, WIDTH = 16, 8, 32
SEEDS = (0, 1, 2)
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "graph attention": models.GraphAttention,
    "dynamic=True (GATv2)": partial(models.GraphAttention, dynamic=True),
    "self-attention": models.SelfAttention,
}


@dataclass(frozen=True)
class Lookup:
    """What one trained layer does on new examples."""

    right: float  # share of right answers
    dependence: float  # query_dependence, mean over the examples
    rankings: float  # different orders of the keys among the queries of an example, mean over the examples
    weights: Tensor  # (N, N) on the first example
    asked: Tensor  # (N,) node that each query should look at


def draw_lookups(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw nodes (B, N, features), the values asked for (B, N), and the nodes that hold them (B, N).

    A node knows its name, the name it asks for, its value, and how popular it is. The more popular is asked for more
    often, so that a layer that cannot look up has something to prefer.
    """
    names = torch.rand(count, NODES, generator=generator).argsort(1)
    popularity = 1.5 * torch.randn(count, NODES, generator=generator)
    chances = popularity.softmax(1).repeat_interleave(NODES, 0)  # (B, N) -> (B * N, N), one row a query
    asked = torch.multinomial(chances, 1, generator=generator).view(count, NODES)
    values = torch.randint(VALUES, (count, NODES), generator=generator)
    codes = [F.one_hot(names, NODES), F.one_hot(names.gather(1, asked), NODES), F.one_hot(values, VALUES)]
    return torch.cat([*codes, popularity[:, :, None]], dim=2).float(), values.gather(1, asked), asked


def learn_lookup(layer: Callable[[int, int], nn.Module], seed: int, steps: int) -> Lookup:
    """Train embedding, one attention layer and a linear map; then question them about 256 new examples."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(2 * NODES + VALUES + 1, WIDTH), layer(WIDTH, 1), nn.Linear(WIDTH, VALUES))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        nodes, answers, _ = draw_lookups(64, generator)
        loss = F.cross_entropy(network(nodes).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nodes, answers, asked = draw_lookups(256, torch.Generator().manual_seed(99))
    with torch.no_grad():
        right = (network(nodes).argmax(2) == answers).float().mean().item()
        network.double()  # so that no two weights are equal by rounding
        weights = network[1].weights(network[0](nodes.double()))[:, 0]  # (B, N, N)
    rankings = [len(torch.unique(example.argsort(1), dim=0)) for example in weights]
    dependence = models.query_dependence(weights).mean().item()
    return Lookup(right, dependence, statistics.mean(rankings), weights[0], asked[0])


def draw_rankings(found: dict[str, Sequence[Lookup]], path: Path | None) -> None:
    """Draw the weights of each layer's first seed, keys sorted by the weight they get on average."""
    figure = new_figure(8.4, 3.4)
    for index, (axes, (name, runs)) in enumerate(zip(figure.subplots(1, len(found)), found.items(), strict=True)):
        order = runs[0].weights.mean(0).argsort(descending=True)
        places = order.argsort()[runs[0].asked]  # the column that each query should look at
        rows = places.argsort(stable=True)
        shown = runs[0].weights[rows][:, order]
        picture = axes.imshow(shown.numpy(), cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=1))
        axes.scatter(places[rows], np.arange(NODES), s=16, facecolors="none", edgecolors="white", linewidths=1.2)
        title = f"{name}\nquery dependence {runs[0].dependence:.3f}\nright answers {100 * runs[0].right:.0f} %"
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("keys, by mean weight", fontsize=9)
        if index == 0:
            axes.set_ylabel("queries", fontsize=9)
    bar = figure.colorbar(picture, ax=figure.axes, ticks=[0, 0.05, 0.25, 0.5, 1], shrink=0.75, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=8.5, length=0)
    bar.outline.set_visible(False)
    bar.set_label("weight; circle: the node asked for", fontsize=9)
    finish(figure, path)


def draw_maps(kind: str, epochs: int, path: Path | None) -> tuple[float, float]:
    """Train a small hybrid on drawn shapes, draw its attention, and return accuracy and query dependence."""
    seed_everything(0)
    train_set, test_set = data.shapes(4000, seed=0), data.shapes(500, seed=1)
    normalize = transforms.Normalize(*train_set.mean_std())
    layers = []
    for before, after, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 2)):  # 32 x 32 pixels -> 8 x 8 cells
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
    model = models.HybridClassifier(nn.Sequential(*layers), attention=kind, heads=2, freeze_backbone=False)
    task = ClassificationTask(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    loaders = [Loader(part, 128, shuffle=part is train_set, transform=normalize) for part in (train_set, test_set)]
    run = Trainer(max_epochs=epochs, schedule=schedules.one_cycle()).fit(task, *loaders)
    weights = model.attention_maps(normalize(test_set.images))
    chosen = [1, 3, 7, 9]
    name = {"graph": "Graph attention", "self": "Self-attention"}[kind]
    title = f"{name}, a small network on drawn shapes"
    plots.attention_maps(test_set.images[chosen], weights[chosen], path=path, title=title)
    return run.metrics["val_acc"], models.query_dependence(weights).mean().item()


def spread(values: Sequence[float], digits: int) -> str:
    """Write mean ± sample standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Draw everything."""
    options = arguments(__doc__, "attention_pictures").parse_args()
    steps, epochs = (10, 1) if options.tiny else (400, 12)
    report = Report("attention_pictures", {"seeds": SEEDS, "lookup_steps": steps, "map_epochs": epochs}, ["matplotlib"])
    found = {name: [learn_lookup(layer, seed, steps) for seed in SEEDS] for name, layer in LAYERS.items()}
    draw_rankings(found, None if options.tiny else IMAGES / "attention-ranking.png")
    rows = []
    for name, runs in found.items():
        columns = [[100 * run.right for run in runs], [run.dependence for run in runs], [run.rankings for run in runs]]
        rows.append([name, *(spread(values, digits) for values, digits in zip(columns, (1, 3, 2), strict=True))])
        report.figures[name] = dict(zip(("right_percent", "query_dependence", "rankings"), columns, strict=True))
    heads = ["layer", "right answers, %", "query dependence", f"rankings among {NODES} queries"]
    report.tables.append(Table("Look-up, 3 seeds, 256 new examples", heads, rows))
    rows = []
    for kind in ("graph", "self"):
        accuracy, dependence = draw_maps(kind, epochs, None if options.tiny else IMAGES / f"attention-maps-{kind}.png")
        report.figures[f"maps, {kind}"] = {"test_accuracy": accuracy, "query_dependence": dependence}
        rows.append([kind, f"{accuracy:.3f}", f"{dependence:.3f}"])
    report.tables.append(Table("Shapes, seed 0, 500 new images", ["attention", "accuracy", "query dependence"], rows))
    report.publish(destination(options, "attention_pictures"))


if __name__ == "__main__":
    main()
