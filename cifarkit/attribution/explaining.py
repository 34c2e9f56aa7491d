"""Any explanation by one call, whether it is one of METHODS or the user's own, and a model that stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.scoring import bring_to, check_max_batch
from cifarkit.inference import evaluation_mode

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, images (B, C, H, W), targets (B,) -> maps


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate for a while, and give every part its mode, and every parameter its flag and gradient, back."""
    kept = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in kept:
            parameter.grad = None  # a backward pass would add to it in place
        with evaluation_mode(model):
            yield
    finally:
        for parameter, flag, gradient in kept:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def explainer(
    method: str | Explain, max_batch: int | None, seed: int, options: dict[str, Any]
) -> Callable[..., Tensor]:
    """Return (model, images, targets) -> maps for a name of METHODS, or for a function of that kind.

    What a name stands for takes further options by keyword, which go before those given here.

    Raises:
        TypeError: if method is neither, or options come with a function.
        ValueError: from ``attribute``, for an unknown name or option; or if the maps do not fit the images.
    """
    if isinstance(method, str):
        from cifarkit.attribution.methods import attribute

        return lambda model, images, targets, **more: attribute(
            model, images, targets, method, max_batch=max_batch, seed=seed, **options | more
        )
    if not callable(method) or isinstance(method, type):
        raise TypeError(f"method={method!r}; give a name of METHODS, or a function of (model, images, targets)")
    if options:
        raise TypeError(f"options {sorted(options)} go with a name of METHODS; give them to your function instead")

    def explain(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            pairs = zip(*_split(bring_to(model, images), targets, max_batch), strict=True)
            parts = [method(model, *pair) for pair in pairs]
        return torch.cat([part.detach() for part in parts])

    return explain


def _split(images: Tensor, targets: Tensor, max_batch: int | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    size = check_max_batch(max_batch)
    return torch.split(images, size), torch.split(targets, size)


def method_name(method: str | Explain) -> str:
    """Return what to call an explanation in a sentence."""
    return method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
