"""The recipe "ddpm" of the command ``train``: a class-conditional diffusion model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cifarkit import training, transforms
from cifarkit.commands.shared import SettingsWriter, flags_of, own_part, recorded_flags
from cifarkit.data import ImageDataset, Loader
from cifarkit.training import schedules

if TYPE_CHECKING:
    from cifarkit.models.unet import UNet


def build_network(settings: dict[str, Any]) -> UNet:
    """Build the U-Net that the settings of a run describe."""
    from cifarkit.models.unet import UNet

    return UNet(**settings["network"])


def describe(args: argparse.Namespace, train_set: ImageDataset) -> dict[str, Any]:
    """Return the settings of a run, or raise ValueError if the network cannot take the images."""
    shape = {"base_channels": 8, "multipliers": [1, 1]} if args.tiny else {"base_channels": args.base_channels}
    channels, *sides = train_set.image_shape
    if channels != 3:  # of three, runs of before say nothing either
        shape["channels"] = channels
    settings: dict[str, Any] = {
        "kind": "diffusion model",
        "network": {"num_classes": train_set.num_classes, "patch": 2, **shape},
        "classes": list(train_set.classes),
        "image_shape": list(train_set.image_shape),
        "flags": flags_of(args),
    }
    with torch.device("meta"):  # for a look only
        multiple = build_network(settings).multiple
    if any(side % multiple for side in sides):
        raise ValueError(
            f"--recipe ddpm takes images whose sides are multiples of {multiple} pixels; those of --data {args.data} "
            f"have {sides[0]} x {sides[1]}; resize them, the pictures of a folder by --size"
        )
    return settings


def fit(
    settings: dict[str, Any], train_set: ImageDataset, val_set: ImageDataset, folder: Path, resume: Path | str
) -> training.Run:
    """Train with a moving average, whose samples are drawn as the run goes."""
    from cifarkit.diffusion import NoiseSchedule
    from cifarkit.training.tasks.diffusion import DiffusionTask

    args = recorded_flags(settings)
    to_signed = transforms.Normalize(0.5, 0.5)  # to [-1, 1]
    augment = transforms.Compose([transforms.RandomHorizontalFlip(), to_signed])
    part = own_part()
    loader = Loader(train_set, 128 // part["world_size"], shuffle=True, seed=args.seed, transform=augment, **part)
    network = build_network(settings)
    task = DiffusionTask(network, torch.optim.Adam(network.parameters(), 5e-4), NoiseSchedule.cosine())
    epochs = 1 if args.tiny else args.epochs
    average = training.ExponentialMovingAverage(0.9 if args.tiny else 0.999)
    trainer = training.Trainer(
        max_epochs=epochs,
        precision="auto",
        schedule=schedules.cosine(warmup=0.05),
        gradient_clip_val=1.0,
        callbacks=[
            average,
            _sample_grid(train_set, folder, max(1, epochs // 10), average, 2 if args.tiny else 31),
            training.ModelCheckpoint(folder, every_n_steps=500),
        ],
        loggers=[SettingsWriter(folder, settings), training.CSVLogger(folder)],
    )
    return trainer.fit(task, loader, Loader(val_set, 500, transform=to_signed, **part), resume=resume)


def _sample_grid(train_set: ImageDataset, folder: Path, every: int, average: Any, steps: int) -> Any:
    """Make the callback that draws a row of samples of each class, from the same noise each time."""
    from cifarkit.diffusion import NoiseSchedule, as_denoiser, draw_noise, sample_ddim
    from cifarkit.training.samples import SampleGrid

    labels = torch.arange(min(10, train_set.num_classes)).repeat_interleave(8)
    noise = draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))
    schedule = NoiseSchedule.cosine()

    def sample(task: Any) -> torch.Tensor:
        return sample_ddim(as_denoiser(task.model, labels), noise, schedule, steps=steps)

    return SampleGrid(sample, folder / "samples", every_n_epochs=every, average=average)
