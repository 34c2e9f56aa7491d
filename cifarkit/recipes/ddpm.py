"""Diffusion models: a plain one of 2020, and what a CPU learns best with in two hours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifarkit import transforms
from cifarkit.checks import check_integer, check_number
from cifarkit.data import ImageDataset, Loader
from cifarkit.diffusion import NoiseSchedule, as_denoiser
from cifarkit.diffusion.denoiser import NetworkDenoiser, check_target
from cifarkit.diffusion.noise_levels import check_log_snr
from cifarkit.files import read_file, shown, write_atomically
from cifarkit.models import UNet
from cifarkit.training import (
    DiffusionTask,
    ExponentialMovingAverage,
    Muon,
    Trainer,
    distributed,
    muon_groups,
    own_part,
    schedules,
)

_FILE = "recipe.json"
_LARGEST = 100_000  # bytes


@dataclass(frozen=True)
class DiffusionRecipe:
    """Train a class-conditional :class:`UNet` through the ordinary Loader, task and Trainer.

    How long is up to the caller: ``training.plan_updates`` tells how many updates fit into some minutes.

    Attributes:
        base_channels, multipliers, patch, dropout: of the UNet.
        target, label_dropout, min_snr, log_snr: of the :class:`DiffusionTask`.
        linear: DDPM's noise schedule instead of the cosine one.
        batch_size: images an update, of all processes together.
        lr: peak rate of Adam.
        muon: peak rate of :class:`Muon` for the kernels of convolutions; None leaves them to Adam as well.
        ema: decay of the average of the weights; None remembers a twentieth of the updates.
    Raises:
        TypeError, ValueError: if one is of another kind or out of range.
    Source: Ho et al. 2020, arXiv 2006.11239; the cosine schedule: Nichol and Dhariwal 2021, arXiv 2102.09672.
    """

    base_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    patch: int = 1
    dropout: float = 0.0
    target: str = "noise"
    label_dropout: float = 0.1
    min_snr: float | None = None
    log_snr: tuple[float, float] | None = None
    linear: bool = False
    batch_size: int = 128
    lr: float = 5e-4
    muon: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.multipliers, (tuple, list)) or not self.multipliers:
            raise ValueError(f"multipliers={self.multipliers!r} must hold an integer a level, such as (1, 2, 2)")
        if not isinstance(self.linear, bool):
            raise TypeError(f"linear={self.linear!r} must be True or False")
        factors = (check_integer(f"multipliers[{index}]", item, 1) for index, item in enumerate(self.multipliers))
        values: dict[str, Any] = {"multipliers": tuple(factors), "log_snr": check_log_snr(self.log_snr)}
        values |= {
            name: check_integer(name, getattr(self, name), 1) for name in ("base_channels", "patch", "batch_size")
        }
        values |= {"lr": check_number("lr", self.lr, 0, above=True), "target": check_target(self.target)}
        values |= {"dropout": check_number("dropout", self.dropout, 0, 1, below=True)}
        values |= {"label_dropout": check_number("label_dropout", self.label_dropout, 0, 1)}
        for name in ("muon", "min_snr"):
            if getattr(self, name) is not None:
                values[name] = check_number(name, getattr(self, name), 0, above=True)
        if self.ema is not None:
            values["ema"] = check_number("ema", self.ema, 0, 1, below=True)
        for name, value in values.items():  # plain numbers and tuples, of NumPy's and of JSON's lists
            object.__setattr__(self, name, value)

    @staticmethod
    def load(folder: str | Path) -> DiffusionRecipe:
        """Read the recipe of the run in a folder, from its recipe.json.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged.
        """
        path = Path(folder) / _FILE
        try:
            return DiffusionRecipe(**json.loads(read_file(path, _LARGEST)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{shown(path)} holds no recipe of a diffusion model ({shown(str(error))}); put it back"
            ) from None

    @distributed.process_group()
    def of_run(self, folder: str | Path) -> DiffusionRecipe:
        """Return the recipe that the run in a folder goes on with; note this one there if it begins.

        Its checkpoint would put up with another target. A line says so if this recipe is another. Of several processes
        rank 0 reads and writes.

        Raises:
            ValueError: if the file, recipe.json, is damaged, or a run beside it has begun without.
        """
        path = Path(folder) / _FILE
        kept = DiffusionRecipe(**distributed.from_first_rank(lambda: self._kept(path)))
        changed = [item.name for item in fields(self) if getattr(self, item.name) != getattr(kept, item.name)]
        if changed and distributed.rank() == 0:
            named = ", ".join(f"{name}={getattr(kept, name)!r}" for name in changed)
            print(f"{path} holds, with {named}; a run that goes on keeps its recipe", flush=True)
        return kept

    def _kept(self, path: Path) -> dict[str, Any]:
        """Return the recipe of a file if a run beside it has begun; write this one otherwise."""
        if any(path.parent.glob("*.pt")):
            if not path.exists():
                raise ValueError(
                    f"{shown(path.parent)} holds a run without {_FILE}, so nobody knows how it was trained; give "
                    "another folder"
                )
            return asdict(self.load(path.parent))
        write_atomically(json.dumps(asdict(self), indent=1).encode() + b"\n", path)
        return asdict(self)

    def tiny(self) -> DiffusionRecipe:
        """Return the same with a network of seconds, to see that a script works."""
        return replace(self, base_channels=8, multipliers=(1, 1))

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """How noise is added."""
        return NoiseSchedule.linear() if self.linear else NoiseSchedule.cosine()

    def network(self, num_classes: int, image_shape: Sequence[int]) -> UNet:
        """Make the network for images of (C, H, W)."""
        return UNet(
            base_channels=self.base_channels,
            multipliers=self.multipliers,
            patch=self.patch,
            dropout=self.dropout,
            num_classes=num_classes,
            channels=image_shape[0],
        )

    def task(self, train_set: ImageDataset) -> DiffusionTask:
        """Make the network and its optimizer.

        Raises:
            ValueError: if the network cannot take the sides of the images.
        """
        network = self.network(train_set.num_classes, train_set.image_shape)
        if any(side % network.multiple for side in train_set.image_shape[1:]):
            sides, levels = train_set.image_shape[1:], len(self.multipliers)
            fits, size = not any(side % 2 ** (levels - 1) for side in sides), " x ".join(map(str, sides))
            raise ValueError(
                f"images of {size} do not fit patch={self.patch} and {levels} levels, which take "
                f"sides that are multiples of {network.multiple}; {'give patch=1' if fits else 'resize them'}"
            )
        optimizer: Optimizer = torch.optim.Adam(network.parameters(), self.lr)
        if self.muon is not None:
            optimizer = Muon(muon_groups(network, self.muon, self.lr, 0.0, adam=True))
        return DiffusionTask(
            network,
            optimizer,
            self.noise_schedule,
            target=self.target,
            label_dropout=self.label_dropout,
            min_snr=self.min_snr,
            log_snr=self.log_snr,
        )

    def loader(self, train_set: ImageDataset, *, seed: int = 0, device: str | torch.device = "cpu") -> Loader:
        """Make the batches: images in [-1, 1], each mirrored or not; of several processes each makes its part."""
        batch_size = max(1, self.batch_size // distributed.world_size())
        to_signed = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(0.5, 0.5)])
        choices: dict[str, Any] = {"transform": to_signed, "device": device, **own_part()}
        return Loader(train_set, batch_size, shuffle=True, seed=seed, **choices)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the Trainer, all but its end."""
        return {"precision": "auto", "schedule": schedules.cosine(warmup=0.05), "gradient_clip_val": 1.0}

    def trainer(self, **options: Any) -> Trainer:
        """Make the Trainer; options are further arguments of it, ``max_steps`` or ``max_epochs`` among them."""
        return Trainer(**(self.settings() | options))

    def average(self, updates: int) -> ExponentialMovingAverage:
        """Make the average for a run of so many updates; its weights are those to sample from."""
        return ExponentialMovingAverage(1 - 1 / max(10, updates / 20) if self.ema is None else self.ema)

    def denoiser(self, network: UNet, labels: Tensor | None, *, guidance: float = 0.0) -> NetworkDenoiser:
        """Make the trained network ready for a sampler with :attr:`noise_schedule`; see :func:`as_denoiser`."""
        return as_denoiser(network, labels, guidance=guidance, target=self.target, schedule=self.noise_schedule)


DDPM = {
    "plain": DiffusionRecipe(),
    "strong": DiffusionRecipe(patch=2, target="velocity", log_snr=(2.4, 2.4), batch_size=64, muon=0.015),
}
"""plain: noise, at steps drawn alike, by Adam. strong: velocity, at steps drawn by log SNR, by Muon, on 2 x 2 pixels at
once, with 6.5 M parameters. What strong reached in two hours on two cores stands in docs/results.md."""
