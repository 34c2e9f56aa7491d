"""A model of denoising-diffusion-pytorch in the loop of the others: its network, loss and samplers as it comes.

Only labels are dropped as seldom as ours are. Which of its widths and memory layouts is fastest depends on the
processor, so all are timed before the training, and the fastest of about our size is taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import generators_shared as shared
import torch
from report import Spread
from torch import Tensor, nn

import cifarkit
from cifarkit import Task, Update, data, generation, transforms
from cifarkit.files import write_atomically

PACKAGE = "denoising_diffusion_pytorch"
# Width and multipliers: 7.6 and 7.2 million parameters, where ours has 6.5. The first has its own multipliers; the
# second has a width that vector units like, and narrower deep layers to be of like size.
SHAPES = ("28-1-2-4-8", "32-1-2-4-6")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TRIALS, TRIAL_STEPS = 3, 5


class Choice(NamedTuple):
    """What the peer is built with: width and multipliers as one word, layout, and what it predicts."""

    shape: str
    layout: str
    objective: str


class PeerTask(Task):
    """Train the peer's model by its own loss; batches are (images in [0, 1], labels)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, layout: str) -> None:
        super().__init__()
        self.model, self.optimizers, self.layout = model, {"model": optimizer}, LAYOUTS[layout]

    def updates(self, batch: tuple[Tensor, ...]) -> Iterator[Update]:
        images, labels = batch
        first: Tensor = self.model.get_parameter("model.init_conv.weight")
        if not first.is_contiguous(memory_format=self.layout):  # the Trainer makes everything channels_last
            self.to(memory_format=self.layout)
        yield Update(self.model(images.contiguous(memory_format=self.layout), classes=labels), "model")


def is_installed() -> bool:
    """Tell whether the peer is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def build(choice: Choice, num_classes: int, steps: int = 1000, eta: float = 1.0) -> nn.Module:
    """Build the peer for so many sampling steps; 1,000 are its ancestral walk."""
    peer = importlib.import_module(f"{PACKAGE}.classifier_free_guidance")
    peer.tqdm = lambda items, **_: items  # its bars would fill the log
    width, *multipliers = map(int, choice.shape.split("-"))
    network = peer.Unet(width, num_classes, cond_drop_prob=0.1, dim_mults=tuple(multipliers))

    def without_guidance(*inputs: Any, **_: Any) -> tuple[Tensor, Tensor]:
        # Its own returns one tensor if cond_scale is 1 where two are unpacked (2.3.4), which fails or mixes images up.
        predicted = network(*inputs, cond_drop_prob=0.0)
        return predicted, predicted

    network.forward_with_cond_scale = without_guidance
    walk = {"sampling_timesteps": steps, "ddim_sampling_eta": eta}
    return peer.GaussianDiffusion(network, image_size=32, objective=choice.objective, **walk)


def make_task(choice: Choice, num_classes: int, rate: float) -> PeerTask:
    """Build model and Adam from seed 0."""
    cifarkit.seed_everything(0)
    model = build(choice, num_classes)
    return PeerTask(model, torch.optim.Adam(model.parameters(), rate), choice.layout)


def sample_from(model: nn.Module, layout: str) -> Callable[[Tensor, generation.SampleGenerators], Tensor]:
    """Sample by the peer's own walk in bf16."""
    model = model.eval().to(memory_format=LAYOUTS[layout])

    def sample(labels: Tensor, generators: generation.SampleGenerators) -> Tensor:
        torch.manual_seed(generators.initial_seed() % 2**31)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            images = model.sample(classes=labels)
        return images.float() * 2 - 1

    return sample


def choose(
    shapes: list[str], objective: str, rate: float, loader: data.Loader, num_classes: int, folder: Path
) -> tuple[Choice, dict[str, float]]:
    """Take the fastest of shapes and layouts, or what was taken before; return also the seconds of an update of all.

    All are timed in turn, so that what slows the machine meanwhile hits all of them.
    """
    kept = folder / "choice.json"
    if kept.exists():
        content = json.loads(kept.read_text())
        return Choice(**content["choice"]), content["seconds_an_update"]
    choices = [Choice(shape, layout, objective) for shape in shapes for layout in LAYOUTS]
    found: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for _ in range(TRIALS):
        for choice, seconds in found.items():
            task = make_task(choice, num_classes, rate)
            seconds.append(shared.seconds_an_update(task, loader, TRIAL_STEPS))
    medians = {choice: Spread.of(seconds).median for choice, seconds in found.items()}
    best = min(choices, key=lambda choice: medians[choice])
    timed = {f"{choice.shape}, {choice.layout}": median for choice, median in medians.items()}
    print(f"the peer: {best.shape}, {best.layout}, is the fastest of", timed, flush=True)
    write_atomically(json.dumps({"choice": best._asdict(), "seconds_an_update": timed}).encode(), kept)
    return best, timed


def read_choice(folder: Path) -> Choice:
    """Return what the training in a folder was done with."""
    return Choice(**json.loads((folder / "choice.json").read_text())["choice"])


def train(
    train_set: data.ImageDataset,
    folder: Path,
    shapes: list[str],
    objective: str,
    rate: float,
    *,
    seconds: float,
    most_minutes: float,
    tiny: bool,
) -> dict[str, Any]:
    """Choose and train the peer for as many seconds as the DDPM took; return the row."""
    flip = transforms.RandomHorizontalFlip()
    loader = data.Loader(train_set, 16 if tiny else 64, shuffle=True, seed=0, transform=flip)
    choice, timed = choose(shapes, objective, rate, loader, train_set.num_classes, folder)
    task = make_task(choice, train_set.num_classes, rate)
    # It has neither validation nor grids, so nearly all of the DDPM's time can go to updates.
    run = shared.fit_in_minutes(task, loader, folder, seconds / 60, tiny, share=0.97, most_minutes=most_minutes)
    size = sum(part.numel() for part in task.model.parameters())
    found = {"parameters": size, "choice": choice._asdict(), "seconds_an_update": timed}
    return found | shared.read_end(folder / "last.pt", run.stopped_because)
