"""Mix each image and its label with those of its neighbour in the batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarkit.checks import check_number
from cifarkit.seeding import Draws
from cifarkit.transforms.base import draws_for, to_dtype, to_float
from cifarkit.transforms.erase import box_mask

_TRIES = 8  # each is accepted with probability 0.95 or more, so all fail once in 10**10


class Mix(ABC):
    """Mix image i with image i - 1 of the batch, the first with the last; the batch is taken to be shuffled.

    The share of each image is drawn for it alone, Beta(alpha, alpha): with alpha 1 uniform, with a small one close to
    0 or 1.

    Args:
        alpha: above 0.
    Raises:
        TypeError: if alpha is no number.
        ValueError: if alpha is not above 0, or a label is not in [0, num_classes).
    """

    needs_labels = True  # so Compose and the Loader, which have none, refuse it

    def __init__(self, alpha: float) -> None:
        self.alpha = check_number("alpha", alpha, 0, above=True)

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W), uint8 or floating point, normalised or not.
            labels: (B,) int64, from 0 to num_classes - 1.
            num_classes: K.
            draws: of the B images; None takes random numbers keyed by PyTorch's global state.
        Returns:
            images in the shape and dtype given, and soft labels (B, K) float32 whose rows sum to 1.
        """
        draws = draws_for(images, draws)
        soft = one_hot(labels, num_classes, len(images))
        parameters = self.parameters(draws, images.shape[2], images.shape[3]).to(images.device)
        mixed, share = self.apply(images, parameters)
        share = share.to(soft.device)[:, None]  # (B, 1)
        return mixed, share * soft + (1 - share) * soft.roll(1, 0)

    @abstractmethod
    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, ...), how each image of the given size is mixed."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed images, and the share (B,) float32 that each image keeps of itself."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha})"


class Mixup(Mix):
    """Average pairs of images: share * image + (1 - share) * neighbour, and the labels alike.

    Source: Zhang et al. 2017, arXiv 1710.09412, equation 1; a share for each image, where the paper's code draws one
    for the batch.
    """

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B,) float32, the share of each image."""
        return draw_beta(draws, self.alpha)

    def apply(self, images: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        floats = to_float(images)
        share = parameters.to(floats.dtype)[:, None, None, None]
        return to_dtype(share * floats + (1 - share) * floats.roll(1, 0), images.dtype), parameters


class CutMix(Mix):
    """Paste a box of the neighbour into each image; labels weigh by the pixels that are really kept.

    The box has sides sqrt(1 - share) of the image's and a uniform centre; what exceeds the border is cut off.

    Source: Yun et al. 2019, arXiv 1905.04899, section 3.1; a box for each image.
    """

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, 4) int64, top, left, bottom and right of each box, the last two excluded."""
        size = torch.tensor([height, width])
        sides = ((1 - draw_beta(draws, self.alpha)).sqrt().cpu()[:, None] * size).round().long()  # (B, 2)
        centre = torch.stack([draws.integers(0, height), draws.integers(0, width)], dim=1).cpu()
        start = centre - sides // 2
        return torch.cat([start.clamp(min=0), torch.minimum(start + sides, size)], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (parameters[:, 2:] - parameters[:, :2]).prod(dim=1)
        share = 1 - pixels.float() / (images.shape[2] * images.shape[3])
        return torch.where(box_mask(images, parameters), images.roll(1, 0), images), share


def draw_beta(draws: Draws, alpha: float) -> Tensor:
    """Draw (B,) float32 from Beta(alpha, alpha), as a ratio G1 / (G1 + G2) of Gamma(alpha) variates.

    A fixed number of tries keeps the streams of all samples in step; logarithms keep a small alpha from 0 / 0.

    Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables"; alpha < 1 as in section 6.
    """
    d = alpha + 1 - 1 / 3  # of Gamma(alpha + 1)
    normal, uniform = draws.normal(2, _TRIES), 1 - draws.uniform(2, _TRIES)  # uniform in (0, 1]
    v = (1 + normal / (9 * d) ** 0.5) ** 3
    positive = v.clamp(min=1e-30)
    accepted = (v > 0) & (uniform.log() < normal.square() / 2 + d * (1 - v + positive.log()))
    first = accepted.int().argmax(dim=2, keepdim=True)
    log_gamma = (d * positive.gather(2, first)[:, :, 0]).log() + (1 - draws.uniform(2)).log() / alpha  # (B, 2)
    return torch.sigmoid(log_gamma[:, 0] - log_gamma[:, 1])


def one_hot(labels: Tensor, num_classes: int, batch_size: int) -> Tensor:
    """Return (B, K) float32 with a 1 at each label, once the labels (B,) int64 are found to be right."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels is a {type(labels).__name__}; give an int64 tensor ({batch_size},)")
    if labels.dtype != torch.int64 or labels.shape != (batch_size,):
        raise ValueError(
            f"labels is {labels.dtype} of shape {tuple(labels.shape)}; give int64 ({batch_size},), one for each image"
        )
    # On a GPU the check would wait for the device, and the kernel checks anyhow.
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but num_classes={num_classes} "
            f"allows 0 to {num_classes - 1}"
        )
    return F.one_hot(labels, num_classes).float()
