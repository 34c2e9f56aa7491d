"""Spectral normalisation that steps once for each change of a weight, however often the weight is used."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cifarkit.models.sorted_attention import no_autocast

Layer = TypeVar("Layer", bound=nn.Module)

_FIRST_STEPS = 15  # of the power iteration, when the layer is made


def normalize_spectrum(layer: Layer) -> Layer:
    """Make a layer use its weight over the weight's largest singular value, and return it.

    A step of the power iteration is made when the layer is in training mode and the weight has changed, so that
    micro-batches of one update see the same network. ``torch.nn.utils.parametrizations.spectral_norm`` makes one each
    time the weight is used. A copy of the layer begins as if the step for its weight had been made.

    Source: Miyato et al. 2018, "Spectral normalization for generative adversarial networks", algorithm 1.
    """
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.get_parameter("weight")))
    layer.register_state_dict_pre_hook(_step_before_saving)  # type: ignore[no-untyped-call]
    return layer


class SpectralNorm(nn.Module):
    """Map a weight to the weight over its largest singular value, as a matrix of its first dimension by the rest."""

    left: Tensor  # (rows,), about the first left singular vector

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("left", F.normalize(torch.randn(len(weight)), dim=0))
        self._seen: tuple[int, int] | None = None  # which weight, and which version of it, was used last in training
        for _ in range(_FIRST_STEPS):
            self._iterate(weight.detach().flatten(1))

    def forward(self, weight: Tensor) -> Tensor:
        with no_autocast(weight):
            self.follow(weight)
            if self.training:
                self._seen = id(weight), weight._version
            matrix = weight.flatten(1)
            # For a unit vector left and right = M^T left over its length, left^T M right is the length of M^T left.
            largest: Tensor = torch.linalg.vector_norm(matrix.T @ self.left)
            return weight / largest

    def follow(self, weight: Tensor) -> None:
        """Make the step that is due, in training mode, if a weight has changed since it was used; others are new."""
        if self.training and self._seen is not None and self._seen[0] == id(weight):
            if self._seen[1] != weight._version:
                self._iterate(weight.detach().flatten(1))
            self._seen = id(weight), weight._version

    def _iterate(self, matrix: Tensor) -> None:
        # A new tensor, because the graph of an earlier loss may still hold the old one.
        right = F.normalize(matrix.T @ self.left, dim=0)
        self.left = F.normalize(matrix @ right, dim=0)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._seen = None  # the vector was saved for the weight that is loaded with it


def _step_before_saving(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Bring the vector up to the weight that is saved with it; the step is the one that the next pass would make."""
    if parametrize.is_parametrized(layer, "weight"):
        chain: Any = layer.parametrizations["weight"]  # type: ignore[index]
        for part in chain:
            if isinstance(part, SpectralNorm):
                with no_autocast(chain.original):
                    part.follow(chain.original)
