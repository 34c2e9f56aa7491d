"""Classifiers that are trained in a given time on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cifarkit import transforms
from cifarkit.checks import check_integer, check_number
from cifarkit.data import ImageDataset, Loader
from cifarkit.models import SpeedNet
from cifarkit.training import ClassificationTask, Muon, SelectiveTask, Trainer, distributed, muon_groups, own_part

_WHITENING_IMAGES = 5_000
_SIDE = 32  # pixels of the images that the recipes were made for
_SGD_LR = 0.7  # of the kernels without Muon
UNSURE = 0.25
"""Share of the test images that get six views instead of one."""


@dataclass(frozen=True)
class SpeedRecipe:
    """Train a :class:`SpeedNet` in a given time, through the ordinary Loader, task and Trainer.

    Rates are peaks for a batch of 500, reached at once and lowered linearly to 0; SGD's are in units of a mean loss.

    Attributes:
        epochs: passes over the training images.
        widths, depth: of the SpeedNet.
        sides: {first epoch: side of the crops in pixels, of images of 32}; smaller crops take less time. Larger or
            smaller images are cropped to the same share.
        padding: pixels added around the image before a crop of full size.
        cutout: side of a square that is blanked, 0 for none.
        batch_size: images that the network is trained on in an update, of all processes together.
        keep: share of the images that are trained on, those a proxy finds hardest (:class:`SelectiveTask`); 1 is all.
        select_from: epoch from which the hardest are chosen; before it, the share is drawn at random.
        proxy_widths: of the proxy, a SpeedNet as well.
        kernel_lr: of :class:`Muon`'s orthogonal steps, the relative change of a filter.
        kernel_momentum: of the same, in [0, 1).
        head_lr, bias_lr: of the linear head and of the BatchNorm biases, by SGD with momentum 0.85.
        weight_decay: of head and biases, the share they lose in an update at the peak rate, before momentum, which
            makes it 6.7 times as much.
        label_smoothing: share of each label that is spread over all classes.
        muon: step the kernels by Muon; false steps them by SGD at a rate of 0.7.
        whiten: set the stem from the images and freeze it; false learns it.
        alternating_flip: mirror each image in every other epoch; false draws anew each time.
    Raises:
        TypeError: if what should be a number is of another kind.
        ValueError: if one is out of range.
    Source: Jordan 2024, arXiv 2404.00498, and its successor with Muon (Jordan et al. 2024).
    """

    epochs: int = 8
    widths: tuple[int, int, int] = (64, 256, 256)
    depth: int = 2
    sides: Mapping[int, int] = field(default_factory=lambda: {0: 24, 5: 32})
    padding: int = 2
    cutout: int = 0
    batch_size: int = 500
    keep: float = 1.0
    select_from: int = 0
    proxy_widths: tuple[int, int, int] = (16, 32, 32)
    kernel_lr: float = 0.1
    kernel_momentum: float = 0.85
    head_lr: float = 0.02
    bias_lr: float = 26.0
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    muon: bool = True
    whiten: bool = True
    alternating_flip: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "depth", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        for name in ("padding", "cutout", "select_from"):
            check_integer(name, getattr(self, name), 0)
        for name in ("widths", "proxy_widths"):
            widths = getattr(self, name)
            if not isinstance(widths, tuple | list) or len(widths) != 3:
                raise ValueError(f"{name}={widths!r} must be three positive integers, such as (64, 256, 256)")
            for index, width in enumerate(widths):
                check_integer(f"{name}[{index}]", width, 1)
        if not isinstance(self.sides, Mapping) or 0 not in self.sides:
            raise ValueError(f"sides={self.sides!r} must map epochs, 0 among them, to sides, such as {{0: 24, 5: 32}}")
        for epoch, side in self.sides.items():
            check_integer(f"sides[{epoch!r}]", side, 1)
        check_number("keep", self.keep, 0, 1, above=True)
        check_number("kernel_momentum", self.kernel_momentum, 0, 1, below=True)
        check_number("label_smoothing", self.label_smoothing, 0, 1, below=True)
        for name in ("kernel_lr", "head_lr", "bias_lr"):
            check_number(name, getattr(self, name), 0, above=True)
        check_number("weight_decay", self.weight_decay, 0)

    def loader(self, train_set: ImageDataset, *, seed: int = 0, device: str | torch.device = "cpu") -> Loader:
        """Make the batches: crops that grow with the epochs, each image mirrored in every other epoch.

        Of several processes each makes its part of every batch. Fewer images than a batch has make none.
        """
        normalize = transforms.Normalize(*train_set.mean_std())
        side_of_images = min(train_set.image_shape[1:])

        flip = transforms.AlternatingFlip() if self.alternating_flip else transforms.RandomHorizontalFlip()

        def augment(side: int) -> transforms.Compose:
            """Crop to that side of an image of 32 pixels, mirror and normalise."""
            side = round(side * side_of_images / _SIDE)
            crop = transforms.RandomCrop(side, self.padding if side >= side_of_images else 0)
            cutout = [transforms.Cutout(self.cutout)] if self.cutout else []
            return transforms.Compose([crop, flip, *cutout, normalize])

        stages = transforms.ByEpoch({epoch: augment(side) for epoch, side in self.sides.items()})
        batch_size = max(1, self._images_a_batch // distributed.world_size())
        choices: dict[str, Any] = {"transform": stages, "device": device, **own_part()}
        return Loader(train_set, batch_size, shuffle=True, drop_last=True, seed=seed, **choices)

    def task(self, train_set: ImageDataset) -> ClassificationTask:
        """Make the network, its stem whitened and frozen, and the optimizer; and the same for the proxy, if any.

        Both take images of as many channels as those of the set.
        """
        model, optimizer = self._network(train_set, self.widths, self.depth)
        if self.keep == 1:
            return ClassificationTask(model, optimizer, label_smoothing=self.label_smoothing)
        proxy, proxy_optimizer = self._network(train_set, self.proxy_widths, 2)
        return SelectiveTask(
            model,
            optimizer,
            proxy,
            proxy_optimizer,
            keep=self.keep,
            start=self.select_from * (len(train_set) // self._images_a_batch),
            label_smoothing=self.label_smoothing,
        )

    @property
    def _images_a_batch(self) -> int:
        return round(self.batch_size / self.keep)

    def _network(self, train_set: ImageDataset, widths: tuple[int, int, int], depth: int) -> tuple[SpeedNet, Muon]:
        channels = train_set.image_shape[0]
        model = SpeedNet(train_set.num_classes, widths=widths, depth=depth, channels=channels)
        if self.whiten:
            model.whiten(normalized_sample(train_set, _WHITENING_IMAGES))
            model.stem.requires_grad_(False)
        decay = self.weight_decay / self.head_lr
        kernels, *others = muon_groups(
            model, self.kernel_lr, self.head_lr, decay, bias_lr=self.bias_lr, other_momentum=0.85
        )
        kernels["momentum"] = self.kernel_momentum
        if not self.muon:
            kernels |= {"lr": _SGD_LR, "momentum": 0.85, "orthogonal": False, "keep_norm": False}
            kernels["weight_decay"] = self.weight_decay / _SGD_LR
        return model, Muon([kernels, *others])

    def trainer(self, **options: Any) -> Trainer:
        """Make the Trainer; options are further arguments of it, such as callbacks and loggers."""
        settings: dict[str, Any] = {"max_epochs": self.epochs, "precision": "auto", "schedule": to_zero}
        return Trainer(**(settings | options))


def to_zero(progress: float) -> float:
    """Fall linearly from 1 to 0."""
    return 1 - progress


def normalized_sample(images: ImageDataset, count: int) -> Tensor:
    """Return the same count images of the set every time, spread over it, float and normalised."""
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    sample: Tensor = transforms.Normalize(*images.mean_std())(images.images[chosen])
    return sample


SPEEDRUN = {
    "1-minute": SpeedRecipe(epochs=5, widths=(32, 64, 64), sides={0: 24, 3: 32}),
    "4-minutes": SpeedRecipe(epochs=14, widths=(32, 128, 128), sides={0: 24, 6: 32}, keep=0.5),
    "8-minutes": SpeedRecipe(epochs=17, widths=(48, 192, 192), sides={0: 24, 7: 32}, keep=0.5),
    "15-minutes": SpeedRecipe(epochs=20, sides={0: 24, 8: 32}, keep=0.5),
    "95-percent": SpeedRecipe(epochs=32, widths=(128, 384, 384), sides={0: 24, 10: 32}, padding=4, keep=0.5),
    "96-percent": SpeedRecipe(
        epochs=45, widths=(128, 384, 512), depth=3, sides={0: 24, 15: 32}, padding=4, cutout=12, keep=0.5
    ),
}
"""Named by what they aim at: minutes on two cores without AMX, or accuracy on CIFAR-10. What a recipe has reached, if
it has been run at full size, stands in docs/results.md."""

TINY = SpeedRecipe(epochs=2, widths=(8, 16, 16), sides={0: 24, 1: 32}, batch_size=50, bias_lr=2.0)
"""Seconds, to see that a script works."""
