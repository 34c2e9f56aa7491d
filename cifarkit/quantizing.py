"""A network in use that multiplies in eight bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarkit.folding import fold_batchnorm, trace_copy

_ENGINE = "onednn"
_ALIKE = 0.2  # of the deviation of the logits; a trained ResNet-18 is at 0.03


class QuantizedNetwork(nn.Module):
    """Copy a network with its convolutions and linear layers in eight bits, by PyTorch's static quantisation.

    Weights have a scale for each filter, activations one for each tensor, from the range they take on the images
    given. What PyTorch cannot quantise stays in fp32. The logits of an image depend on no other image.

    Args:
        model: of floating point on the CPU, in evaluation mode.
        images: (N, C, H, W), some of those it is going to see.
    Raises:
        ValueError: if that cannot be done, or changes the logits of these images by much; the message says which.
    Source: Jacob et al. 2018, arXiv 1712.05877.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        devices = {str(parameter.device) for parameter in model.parameters()} - {"cpu"}
        if devices or not len(images):
            raise ValueError(f"the model is on {min(devices)}" if devices else "there are no images")
        if _ENGINE not in torch.backends.quantized.supported_engines:
            raise ValueError("PyTorch was built without oneDNN for this processor")
        traced = fold_batchnorm(model) or trace_copy(model)
        if traced is None:
            raise ValueError("torch.fx cannot follow the model's forward pass, or the model has hooks")
        images = images.cpu().float().contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            try:
                expected, self.network = _convert(traced.float(), images)
                found = self(images)
            except Exception as error:  # of whatever kind PyTorch raises for an operation it does not know
                raise ValueError(f"PyTorch cannot quantise the model: {error}") from error
        deviation = torch.linalg.vector_norm(expected - expected.mean(0))
        if not torch.linalg.vector_norm(found - expected) <= _ALIKE * deviation:  # a NaN is not alike either
            raise ValueError("eight bits change the logits by much")

    def forward(self, images: Tensor) -> Tensor:
        with _onednn(), torch.autocast("cpu", enabled=False):  # PyTorch asks for the engine at every call
            logits: Tensor = self.network(images.float())
        return logits


def _convert(traced: nn.Module, images: Tensor) -> tuple[Tensor, nn.Module]:
    """Return the logits before, and the quantised network."""
    from torch.ao.quantization import (
        MinMaxObserver,
        QConfig,
        default_per_channel_weight_observer,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    in_range = MinMaxObserver.with_args(quant_min=0, quant_max=255)
    whole_range = QConfig(in_range, default_per_channel_weight_observer)  # type: ignore[no-untyped-call]
    mapping, backend = get_default_qconfig_mapping(_ENGINE).set_global(whole_range), get_onednn_backend_config()
    with _onednn(), torch.autocast("cpu", enabled=False):
        observed = prepare_fx(traced, mapping, (images[:1],), backend_config=backend)
        expected: Tensor = observed(images)
        quantized: nn.Module = convert_fx(observed, backend_config=backend)
    return expected, quantized


@contextmanager
def _onednn() -> Iterator[None]:
    """Choose oneDNN's kernels, and be silent about their module's announced move to another package."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = engine
