"""Score every explanation where the right answer is known, beside the figures of trust that need no answer.

    python benchmarks/planted_features.py
    python benchmarks/planted_features.py --tiny     # seconds, to see that it runs

Each image is a drawn shape in dull colours with two squares at random places: a plain one in red, green, blue or
yellow, which is the label, and a black and white chequered one, which tells nothing but has strong edges. A small
network learns the label in seconds, and each method explains images it has not seen. A good map lies on the coloured
square. Two maps that know nothing of the network keep the scale honest, random numbers and the edges of the image; and
guided backpropagation, which points well, is there because it is known to depend little on the upper layers. Figures
are medians over networks trained from several seeds (lowest to highest).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from report import Report, Spread, Table, arguments, destination
from torch import Tensor, nn

import cifarkit
from cifarkit import data, schedules, transforms
from cifarkit.attribution.faithfulness import completeness_error, deletion_curve, insertion_curve
from cifarkit.attribution.localization import localization
from cifarkit.attribution.methods import METHODS, attribute
from cifarkit.attribution.randomization import randomization_check
from cifarkit.attribution.robustness import infidelity, sensitivity

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.75, 0.1), "blue": (0.15, 0.2, 0.95), "yellow": (0.9, 0.85, 0.1)}
SIDE = 6  # pixels of either square
STREAM = 2**43  # an epoch no training reaches, so that squares share no numbers with augmentation
NORMALIZE = transforms.Normalize(0.5, 0.25)
ADD_UP = ("input_x_gradient", "integrated_gradients", "deep_lift", "gradient_shap")  # to the logit, at least nearly
EDGES, RANDOM, GUIDED = "edges of the image", "random numbers", "guided backpropagation"
DIGITS = {"milliseconds": 1}
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Planted(NamedTuple):
    """Images whose label is decided by a coloured square, and where that is, bool (N, H, W)."""

    dataset: data.ImageDataset
    inside: Tensor


def plant(count: int, seed: int) -> Planted:
    """Put a coloured and a chequered square into drawn shapes, apart from each other."""
    images = data.shapes(count, seed=seed).images.float() / 255
    draws = cifarkit.Draws(seed, STREAM, torch.arange(count))
    labels = draws.integers(0, len(COLOURS))
    images = torch.lerp(
        images.mean(1, keepdim=True).expand_as(images), images, 0.4
    )  # dull: no colour is like a label's
    places = draws.integers(0, images.shape[2] - SIDE + 1, 64, 2)  # (N, 64, 2): the first is the label's
    apart = ((places - places[:, :1]).abs() >= SIDE).any(2).float()  # (N, 64)
    decoy = places[torch.arange(count), apart.argmax(1)]  # the first that does not overlap
    inside, chequered = square(places[:, 0], images.shape[2]), square(decoy, images.shape[2])
    colours = torch.tensor([*COLOURS.values()])[labels][:, :, None, None] + 0.05 * draws.normal(*images.shape[1:])
    steps = torch.arange(images.shape[2]) // 2
    chequers = ((steps[:, None] + steps) % 2).float()
    images = torch.where(chequered[:, None], chequers, images)
    images = torch.where(inside[:, None], colours.clamp(0, 1), images)
    return Planted(data.ImageDataset((images * 255).round().to(torch.uint8), labels, tuple(COLOURS)), inside)


def square(corners: Tensor, size: int) -> Tensor:
    """Return where a square is, from its upper left corner (N, 2): bool (N, H, W)."""
    top, left = corners[:, 0, None, None], corners[:, 1, None, None]
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    return (rows >= top) & (rows < top + SIDE) & (columns >= left) & (columns < left + SIDE)


def train(count: int, epochs: int, seed: int) -> nn.Module:
    """Train a small network on planted images."""
    cifarkit.seed_everything(seed)
    model, channels = nn.Sequential(), 3
    for width, stride in ((12, 1), (24, 2), (48, 2)):
        model.extend([nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
        channels = width
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(COLOURS))])
    loader = cifarkit.Loader(plant(count, seed).dataset, 64, shuffle=True, seed=seed, transform=NORMALIZE)
    task = cifarkit.ClassificationTask(model, torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2))
    cifarkit.Trainer(max_epochs=epochs, schedule=schedules.one_cycle(), progress=False).fit(task, loader)
    return model.eval()


def edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return how much each pixel differs from its neighbours, whatever the model."""
    down, right = images.diff(dim=2, append=images[:, :, -1:]), images.diff(dim=3, append=images[..., -1:])
    return down.square() + right.square()


def random_numbers(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return cifarkit.Draws(0, STREAM, torch.arange(len(images))).uniform(*images.shape[1:])


def guided(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    from captum.attr import GuidedBackprop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum says that it sets hooks
        maps: Tensor = GuidedBackprop(model).attribute(images, target=targets)
    return maps


REFERENCES: dict[str, Explain] = {EDGES: edges, RANDOM: random_numbers, GUIDED: guided}


class Case(NamedTuple):
    """A trained network and the images to explain to its users."""

    model: nn.Module
    images: Tensor
    targets: Tensor
    inside: Tensor


def prepare(count: int, epochs: int, explained: int, seed: int) -> tuple[Case, float]:
    """Train a network and choose images it classifies rightly; return its accuracy, too."""
    model, planted = train(count, epochs, seed), plant(max(500, explained), seed + 1_000)
    images, labels = NORMALIZE(planted.dataset.images), planted.dataset.labels
    right = cifarkit.predict(model, images).argmax(1) == labels
    chosen = right.nonzero()[:explained, 0]
    return Case(model, images[chosen], labels[chosen], planted.inside[chosen]), right.float().mean().item()


def judge(name: str, case: Case) -> dict[str, float]:
    """Return every figure of one method on one network, the mean over its images."""
    model, images, targets, inside = case
    method: str | Explain = REFERENCES.get(name, name)

    def explain(count: int) -> Tensor:
        request = model, images[:count], targets[:count]
        return attribute(*request, method) if isinstance(method, str) else method(*request)

    explain(1)  # the first call imports Captum
    start = time.perf_counter()
    maps = explain(len(images))
    seconds = time.perf_counter() - start
    place, few = localization(maps, inside), slice(0, 8)  # the last two explain an image many times
    missed = infidelity(model, images, targets, maps, normalize=True)
    changes = infidelity(model, images, targets, torch.zeros_like(images))  # of a map that foretells nothing
    figures = {
        "mass": place.mass.mean().item(),
        "hit": place.hits.mean().item(),
        "auc": place.auc.mean().item(),
        "deletion": deletion_curve(model, images, targets, maps).area,
        "insertion": insertion_curve(model, images, targets, maps).area,
        "infidelity": (missed / changes).mean().item(),
        "sensitivity": sensitivity(model, images[few], targets[few], method).mean().item(),
        "kept": (check := randomization_check(model, images[few], targets[few], method)).kept,
        "kept without sign": check.kept_absolute,
        "milliseconds": 1e3 * seconds / len(images),
    }
    if name in ADD_UP:
        figures["completeness"] = completeness_error(model, images, targets, maps).median().item()
    print(f"{name}: {place}\n  {check}", flush=True)
    return figures


def tables(found: dict[str, list[dict[str, float]]]) -> list[Table]:
    """Write the figures of all methods, one list entry a network."""
    answers = {"mass": "mass inside", "hit": "pointing game", "auc": "ROC area"}
    doubts = {
        "deletion": "deletion area ↓",
        "insertion": "insertion area ↑",
        "completeness": "completeness error ↓",
        "infidelity": "infidelity, best scale, of 1 ↓",
        "sensitivity": "sensitivity ↓",
    }
    checks = {"kept": "rank correlation kept ↓", "kept without sign": "without sign ↓", "milliseconds": "ms an image"}
    titles = {
        "where the map lies": answers,
        "figures that need no answer": doubts,
        "weights made random, and time": checks,
    }
    made = []
    for title, columns in titles.items():
        rows = []
        for name, runs in found.items():
            spreads = {key: Spread.of([run[key] for run in runs]) for key in columns if key in runs[0]}
            cells = [spreads[key].text(DIGITS.get(key, 3)) if key in spreads else "" for key in columns]
            rows.append([name, *cells])
        made.append(Table(title, ["method", *columns.values()], rows))
    return made


def middle(runs: list[dict[str, float]], key: str) -> float:
    return Spread.of([run[key] for run in runs]).median


def main() -> None:
    options = arguments(__doc__, "planted_features").parse_args()
    count, epochs, explained, seeds = (300, 1, 2, 1) if options.tiny else (4_000, 6, 64, 3)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*METHODS, *REFERENCES)}
    accuracies = []
    for seed in range(seeds):
        case, accuracy = prepare(count, epochs, explained, seed)
        accuracies.append(accuracy)
        print(f"network {seed}: accuracy {accuracy:.1%} on new images", flush=True)
        for name, runs in found.items():
            runs.append(judge(name, case))
    settings = {"images": count, "epochs": epochs, "explained": explained, "seeds": seeds, "side": SIDE}
    report = Report("planted_features", settings, packages=("captum",))
    report.tables += tables(found)
    report.figures |= {"methods": found, "accuracies": accuracies, "chance": case.inside.float().mean().item()}
    report.aim("every network knows the label: at least 98 %", f"{min(accuracies):.1%}", min(accuracies) >= 0.98)
    blind = max(middle(found[name], "auc") for name in (EDGES, RANDOM))
    worst = min(METHODS, key=lambda name: middle(found[name], "auc"))
    least = middle(found[worst], "auc")
    report.aim("every method finds the square better than the blind maps", f"{worst} {least:.3f}", least > blind)
    kept = max(middle(found[name], "kept") for name in ("saliency", "grad_cam"))
    report.aim("the gradient and Grad-CAM pass the randomisation check", f"at most {kept:.2f} kept", kept < 0.5)
    kept = min(middle(found[name], "kept") for name in (EDGES, GUIDED))
    report.aim("edges and guided backpropagation fail it", f"at least {kept:.2f} kept", kept >= 0.5)
    report.publish(destination(options, "planted_features"))


if __name__ == "__main__":
    main()
