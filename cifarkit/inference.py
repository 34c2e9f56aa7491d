"""Networks in use rather than in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.checks import check_integer, check_number
from cifarkit.folding import fold_batchnorm
from cifarkit.layout import EitherLayout, lay_out
from cifarkit.memory import keep_freed_memory
from cifarkit.quantizing import QuantizedNetwork

_WORTH_FREEZING = 500  # evaluations; with fewer, folding takes longer than it saves
_COMPARED = 4
_CALIBRATED = 64
_PRECISIONS = ("auto", "fp32", "bf16", "bf16-mixed", "int8")


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, and every part back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


# Not inference_mode: its tensors can be neither changed in place nor used where gradients are wanted, and a model that
# caches one would fail in its next training step.
@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 512,
    precision: str = "auto",
    views: int = 1,
    unsure: float = 1.0,
) -> Tensor:
    """Classify images in batches, in evaluation mode and without gradients.

    Args:
        model: images (B, C, H, W) -> logits (B, K).
        images: (N, C, H, W) float, transformed (normalised) as in training; brought to the model's device and dtype
            batchwise.
        batch_size: images at a time.
        precision: "fp32", "bf16" (or "bf16-mixed"), or "auto": bf16 where the processor computes it natively. "int8"
            is for many images on a processor with VNNI (``QuantizedNetwork``): each call
            first reads the ranges of the activations off up to 64 of the images, so that logits depend a little on
            which are given. Where it does not work "auto" is used, and a warning says why.
        views: 1, 2 (with the mirror image) or 6 (also moved by one pixel along both diagonals, weighted 1/4 and 1/4
            against 1/2 for the centre; Jordan 2024, arXiv 2404.00498, section 3.5). Logits are averaged.
        unsure: share of the images that get more than one view: those whose two largest logits are closest.
    Returns:
        logits (N, K), float32, on the CPU; an ordinary tensor.
    Raises:
        ValueError: for a wrong shape, batch_size, precision, number of views or share.
        TypeError: if model is no module or returns no tensor, images are no tensor of floating point, or batch_size is
            no integer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps images to logits")
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        raise TypeError(f"images is a {kind}; give a tensor (N, C, H, W), float and transformed as in training")
    if images.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W); got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be float, transformed as in training; got {images.dtype}")
    batch_size = check_integer("batch_size", batch_size, 1)
    if views not in (1, 2, 6):
        raise ValueError(f"views={views} is not offered; use 1, 2 (mirror) or 6 (mirror and shifts)")
    unsure = check_number("unsure", unsure, 0, 1)
    if precision not in _PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; use 'auto', 'fp32', 'bf16' or 'int8'")
    device = device_of(model)
    dtype = dtype_of(model, images.dtype)

    if device.type == "cpu":
        keep_freed_memory()

    def classify(part: Tensor, views: int) -> Tensor:
        batches = (chunk.to(device, dtype) for chunk in torch.split(part, batch_size))
        return torch.cat([_average_views(network, batch, views).float().cpu() for batch in batches])

    eight_bits = precision == "int8"
    with evaluation_mode(model), inference_autocast("auto" if eight_bits else precision, device):
        quantized = _quantized(model, images) if eight_bits else None
        network = EitherLayout(quantized or frozen_copy(model, images, views * len(images)), copies=True)
        if views == 1 or unsure == 1:
            return classify(images, views)
        logits = classify(images, 1)
        best = logits.topk(min(2, logits.shape[1]), dim=1).values
        closest = (best[:, 0] - best[:, -1]).argsort()[: round(unsure * len(images))]
        if len(closest):
            logits[closest] = classify(images[closest], views)
    return logits


def _quantized(model: nn.Module, images: Tensor) -> QuantizedNetwork | None:
    """Return a copy in eight bits, or None, with a warning, where there cannot be one."""
    chosen = torch.linspace(0, len(images) - 1, min(_CALIBRATED, len(images))).long()
    try:
        return QuantizedNetwork(model, images[chosen.to(images.device)])
    except ValueError as error:
        warnings.warn(
            f"precision='int8' does not work here: {error}; 'auto' is used", stacklevel=4
        )  # over no_grad's wrapper
    return None


def frozen_copy(model: nn.Module, images: Tensor, evaluations: int) -> nn.Module:
    """Return a copy of the network with its BatchNorms folded, or the network itself where a copy is not as good.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W), some of those it will see; on the first ones the copy is held against the model.
        evaluations: images that it is going to classify; for a few a copy is not worth making.
    """
    folded = fold_batchnorm(model) if evaluations >= _WORTH_FREEZING else None
    if folded is None:
        return model
    few = images[:_COMPARED].to(device_of(model), dtype_of(model, images.dtype))  # in bf16 for a network in bf16
    original = EitherLayout(model)
    with torch.autocast(few.device.type, enabled=False):
        expected = original(few.clone())  # which the model may change in place
        if original.layout is torch.contiguous_format:  # which a copy made before is not in
            return model
        if not isinstance(expected, Tensor):  # which is said when it is asked
            return model
        found = folded(few.clone())
    alike = torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return lay_out(folded, torch.channels_last) if alike else model


def _average_views(network: EitherLayout, images: Tensor, views: int) -> Tensor:
    def classify(batch: Tensor) -> Tensor:
        logits = network(batch)
        if not isinstance(logits, Tensor):
            raise TypeError(f"model returns a {type(logits).__name__}; it must return logits (B, K), a tensor")
        return logits

    def mirrored(shifted: Tensor) -> Tensor:
        return 0.5 * classify(shifted).float() + 0.5 * classify(shifted.flip(3)).float()

    if views == 1:
        return classify(images)
    if views == 2:
        return mirrored(images)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    up_left, down_right = padded[:, :, :height, :width], padded[:, :, 2:, 2:]
    return 0.5 * mirrored(images) + 0.25 * mirrored(up_left) + 0.25 * mirrored(down_right)


def cpu_has_bf16() -> bool:
    """Tell whether this processor multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere fp32 is faster."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()) or cpu_has_amx()


def cpu_has_amx() -> bool:
    """Tell whether this processor has units for matrices of bf16, many times as fast as what adds them up."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def has_native_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bf16 faster than fp32."""
    if device.type == "cpu":
        return cpu_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def device_of(module: nn.Module, otherwise: torch.device | None = None) -> torch.device:
    """Return the device of a module's first parameter; if it has none, the other one given, or else the CPU."""
    return next((parameter.device for parameter in module.parameters()), otherwise or torch.device("cpu"))


def dtype_of(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Return the dtype of a module's first weight of floating point; if it has none, the other one."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), otherwise)


def inference_autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Open autocast to bf16 for "bf16" or "bf16-mixed", or for "auto" where it is native; else close the caller's.

    Raises:
        ValueError: if precision is not "auto", "fp32" or "bf16".
    """
    if precision == "bf16-mixed":  # the Trainer's name
        precision = "bf16"
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={precision!r} is unknown; use 'auto', 'fp32' or 'bf16'")
    if precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "fp32"
    return _autocast(device.type, precision == "bf16")


@contextmanager
def _autocast(device: str, enabled: bool) -> Iterator[None]:
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        yield
        return
    with torch.autocast(device, torch.bfloat16 if enabled else None, enabled=enabled):
        try:
            yield
        finally:
            torch.clear_autocast_cache()  # in the caller's autocast the casts would live on, without a gradient
