"""The comparison's images in the manner of torchvision's CIFAR-10, which a user of Lightning would import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torchvision


class CIFAR10(torchvision.datasets.CIFAR10):  # type: ignore[misc, unused-ignore]
    """torchvision's class with its cost per image (array to picture, then transform), reading <root>/train.npz."""

    def __init__(self, root: str | Path, train: bool = True, transform: Callable[..., Any] | None = None) -> None:
        with np.load(Path(root) / ("train.npz" if train else "val.npz")) as content:
            self.data, self.targets = content["images"], content["labels"].tolist()
        self.transform, self.target_transform = transform, None
