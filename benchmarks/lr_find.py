"""How good the suggested learning rate is: lr_find against pytorch-lr-finder and Lightning's tuner.

    python benchmarks/lr_find.py            # about 6 minutes on 2 cores
    python benchmarks/lr_find.py --tiny     # a minute, to see that it runs

For each of four pairs of network and optimizer, short runs at a constant rate over a logarithmic grid show what the
best rate reaches on held-out images. Then each finder sweeps the same untrained network over the same shuffled
batches, and a run with its suggestion is held against the best of the grid, at equal initial weights and equal order
of the images. The peers run twice: over the range their documentation shows, and over the range of cifarkit.
CIFARKIT_DATA names a folder with cifar10-train.npz; without it the images are the built-in shapes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from report import Report, Spread, Table, arguments, destination
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock

from cifarkit import ClassificationTask, lr_find
from cifarkit.data import load_npz, shapes

BATCH_SIZE = 128
FIRST_SEED = 100  # the rule behind the suggestion was chosen on seeds 0 and 1
GRID = [10 ** (exponent / 2) for exponent in range(-8, 2)]  # two rates a decade from 1e-4 to 3.2
Images = tuple[Tensor, Tensor, Tensor, Tensor]  # training images and labels, held-out images and labels
IMAGES: list[Tensor] = []  # of the process, set by start_worker
Finder = Callable[[nn.Module, torch.optim.Optimizer, DataLoader[Any], int], "float | None"]


# The pairs.


def convolutions() -> nn.Module:
    """Three convolutions and no normalisation: it minds its learning rate."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
                         nn.Linear(128, 10))  # fmt: skip


def residual() -> nn.Module:
    """A ResNet-8 with BatchNorm on half resolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for before, after in ((16, 16), (16, 32), (32, 64)):
        stride = after // before
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        layers.append(BasicBlock(before, after, stride, shortcut))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def momentum(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=5e-4)


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, float], torch.optim.Optimizer]]] = {
    "plain CNN, SGD with momentum": (convolutions, momentum),
    "plain CNN, AdamW": (convolutions, torch.optim.AdamW),
    "MLP, SGD": (mlp, torch.optim.SGD),
    "ResNet-8, SGD with momentum": (residual, momentum),
}


# The finders: each returns its suggestion or None.


def ours(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any], steps: int) -> float | None:
    sweep = lr_find(ClassificationTask(model, optimizer), loader, steps=steps)
    return sweep.suggestion


def pytorch_lr_finder(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any], steps: int, *, low: float, high: float
) -> float | None:
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder  # type: ignore[import-untyped]

    finder = LRFinder(model, optimizer, nn.CrossEntropyLoss())
    finder.range_test(loader, start_lr=low, end_lr=high, num_iter=steps)
    figure, axes = plt.subplots()
    try:
        return float(finder.plot(ax=axes)[1])  # the only way to its suggestion
    except RuntimeError:  # fewer points than it needs
        return None
    finally:
        plt.close(figure)


def lightning_tuner(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any], steps: int, *, low: float, high: float
) -> float | None:
    import lightning
    from lightning.pytorch.tuner.tuning import Tuner

    for name in ("lightning.pytorch", "lightning.fabric"):  # importing it sets their levels
        logging.getLogger(name).setLevel(logging.ERROR)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    switches = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = lightning.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **switches)  # type: ignore[arg-type]
        sweep: Any = Tuner(trainer).lr_find(
            Classifier(), loader, min_lr=low, max_lr=high, num_training=steps, update_attr=False
        )
    found = sweep.suggestion()
    return None if found is None else float(found)


FINDERS: dict[str, Finder] = {
    "cifarkit, 1e-6 to 10": ours,
    "pytorch-lr-finder, 1e-7 to 100": partial(pytorch_lr_finder, low=1e-7, high=100.0),
    "pytorch-lr-finder, 1e-6 to 10": partial(pytorch_lr_finder, low=1e-6, high=10.0),
    "Lightning, 1e-8 to 1": partial(lightning_tuner, low=1e-8, high=1.0),
    "Lightning, 1e-6 to 10": partial(lightning_tuner, low=1e-6, high=10.0),
}
OURS = next(iter(FINDERS))


# One pair and seed: the grid, then the suggestions.


def build(pair: str, seed: int, learning_rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return equal weights for equal seeds."""
    make_network, make_optimizer = PAIRS[pair]
    torch.manual_seed(seed)
    model = make_network()
    return model, make_optimizer(model.parameters(), learning_rate)


def batches(seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*IMAGES[:2]), BATCH_SIZE, shuffle=True, drop_last=True, generator=generator)


def short_run(pair: str, seed: int, learning_rate: float, epochs: int) -> float:
    """Train at a constant rate in plain PyTorch and return the accuracy on held-out images, in [0, 1]."""
    model, optimizer = build(pair, seed, learning_rate)
    loader = batches(seed)
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(inputs) for inputs in torch.split(IMAGES[2], 500)])
    return float((logits.argmax(1) == IMAGES[3]).float().mean())


def silenced(finder: Finder, pair: str, seed: int, steps: int) -> float | None:
    """Ask a finder for its suggestion without its prints and bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return finder(*build(pair, seed, 1e-3), batches(seed), steps)


def examine(pair: str, seed: int, *, epochs: int, steps: int, grid: Sequence[float]) -> dict[str, Any]:
    """Return the accuracies over the grid, and each finder's suggestion with the accuracy it reaches."""
    found: dict[str, Any] = {"pair": pair, "seed": seed}
    found["grid"] = [short_run(pair, seed, rate, epochs) for rate in grid]
    for name in available():
        rate = silenced(FINDERS[name], pair, seed, steps)
        # Without a suggestion there is no run: it counts as guessing among the ten classes.
        found[name] = {"rate": rate, "accuracy": 0.1 if rate is None else short_run(pair, seed, rate, epochs)}
    return found


def available() -> list[str]:
    """Return the finders whose packages are installed."""
    missing = []
    for module, prefix in (("torch_lr_finder", "pytorch-lr-finder"), ("lightning", "Lightning")):
        try:
            __import__(module)
        except ImportError:
            missing.append(prefix)
    return [name for name in FINDERS if not name.startswith(tuple(missing))]


def start_worker(training: int, held_out: int) -> None:
    """Prepare a process: networks this small run faster as one process a core than on all cores."""
    torch.set_num_threads(1)
    os.environ["MPLBACKEND"] = "Agg"
    warnings.filterwarnings("ignore")
    IMAGES[:] = read_images(training, held_out)


# The report.


def images_from() -> str:
    return "CIFAR-10" if "CIFARKIT_DATA" in os.environ else "shapes"


def read_images(training: int, held_out: int) -> Images:
    """Read images normalised to zero mean and unit deviation, and split them."""
    count = training + held_out
    folder = os.environ.get("CIFARKIT_DATA")
    dataset = shapes(count) if folder is None else load_npz(Path(folder) / "cifar10-train.npz")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    inputs, labels = dataset.images[order].float() / 255, dataset.labels[order]
    inputs = (inputs - inputs.mean((0, 2, 3), keepdim=True)) / inputs.std((0, 2, 3), keepdim=True)
    return inputs[:training], labels[:training], inputs[training:], labels[training:]


def summarise(pair: str, runs: Sequence[dict[str, Any]], grid: Sequence[float], report: Report) -> None:
    """Hold each finder's accuracy against the best of the grid, which is the rate with the best mean over the seeds."""
    means = [statistics.mean(accuracies) for accuracies in zip(*(run["grid"] for run in runs), strict=True)]
    best = means.index(max(means))
    nearness: dict[str, float] = {}
    rows = [["best of the grid", f"{grid[best]:.2g}", f"{means[best]:.1%}", "1"]]
    for name in available():
        rates = ", ".join("none" if run[name]["rate"] is None else f"{run[name]['rate']:.2g}" for run in runs)
        mean = statistics.mean(run[name]["accuracy"] for run in runs)
        nearness[name] = mean / means[best]
        spread = Spread.of([run[name]["accuracy"] / run["grid"][best] for run in runs])
        rows.append([name, rates, f"{mean:.1%}", f"{nearness[name]:.3f} ({spread.low:.3f} to {spread.high:.3f})"])
    report.tables.append(Table(pair, ["finder", "rate, one a seed", "accuracy", "÷ best of the grid"], rows))
    for kind, spans in (("over their own ranges", ("1e-7 to 100", "1e-8 to 1")), ("over our range", ("1e-6 to 10",))):
        peers = [name for name in nearness if name != OURS and name.endswith(spans)]
        if peers:
            peer = max(peers, key=nearness.__getitem__)
            found = f"{nearness[OURS]:.3f} against {nearness[peer]:.3f} of {peer}"
            report.aim(f"{pair}: at least as near as the better peer {kind}", found, nearness[OURS] >= nearness[peer])


def main() -> None:
    options = arguments(__doc__, "lr_find").parse_args()
    sizes = (1024, 500) if options.tiny else (5_000, 5_000)
    seeds, epochs, steps, grid = (1, 1, 30, GRID[::4]) if options.tiny else (3, 3, 100, GRID)
    settings = {"data": images_from(), "images": sizes, "epochs": epochs, "batch_size": BATCH_SIZE,
                "sweep_steps": steps, "first_seed": FIRST_SEED, "seeds": seeds, "grid": grid}  # fmt: skip
    report = Report("lr_find", settings, ["lightning", "torch-lr-finder"])
    jobs = [(pair, seed) for pair in reversed(PAIRS) for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
    context = get_context("spawn")  # a fork would inherit PyTorch's thread pools, which may hang
    with ProcessPoolExecutor(os.cpu_count(), context, start_worker, sizes) as pool:
        runs = list(pool.map(partial(examine, epochs=epochs, steps=steps, grid=grid), *zip(*jobs, strict=True)))
    report.figures["runs"] = runs
    for pair in PAIRS:
        summarise(pair, [run for run in runs if run["pair"] == pair], grid, report)
    report.publish(destination(options, "lr_find"))


if __name__ == "__main__":
    main()
