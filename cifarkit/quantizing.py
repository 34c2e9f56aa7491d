"""A network in use that multiplies in eight bits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarkit.folding import fold_batchnorm, trace_copy
from cifarkit.layout import EitherLayout

_ENGINE = "x86"
_AT_A_TIME = 32  # images, since the network is asked in fp32, too
_ALIKE = 0.2  # of the deviation of the logits over the images


class QuantizedNetwork(nn.Module):
    """Copy a network with its convolutions in eight bits, by PyTorch's static quantisation.

    Weights have a scale for each filter, activations one for each tensor, from the range they take on the images
    given. Linear layers, whose logits would be coarse, and what PyTorch cannot quantise stay in fp32. Once made, the
    logits of an image depend on no other.

    Args:
        model: of floating point on the CPU, in evaluation mode; its weights are copied.
        images: (N, C, H, W), several of those it is going to see; on them the copy is held against the model.
    Raises:
        TypeError: if model is no module, or images are no tensor of floating point.
        ValueError: if there is no such copy, or its logits are not near the model's; the message says why.
    Source: Jacob et al. 2018, arXiv 1712.05877.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or not isinstance(images, Tensor) or not images.is_floating_point():
            got = f"{type(model).__name__} and {images.dtype if isinstance(images, Tensor) else type(images).__name__}"
            raise TypeError(f"give a torch.nn.Module and images (N, C, H, W), float as in training; got {got}")
        if images.dim() != 4:
            raise ValueError(f"images must be (N, C, H, W); got shape {tuple(images.shape)}")
        devices = {str(parameter.device) for parameter in model.parameters()} - {"cpu"}
        if devices:
            raise ValueError(f"the model is on {min(devices)}, and eight bits are for the CPU")
        if not cpu_has_vnni() or _ENGINE not in torch.backends.quantized.supported_engines:
            raise ValueError("this processor has no VNNI, or PyTorch was built without it")
        if not any(isinstance(part, nn.Conv2d) for part in model.modules()):
            raise ValueError("the model has no convolution, and eight bits are for these")
        try:
            original = copy.deepcopy(model).float().eval()
        except Exception as error:  # copying runs code of the model's own
            raise ValueError(f"the model cannot be copied: {error}") from error
        traced = fold_batchnorm(original) or trace_copy(original)
        if traced is None:
            raise ValueError("torch.fx cannot follow the model's forward pass, or the model has hooks")
        asked = EitherLayout(original)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            outputs = [asked(batch) for batch in torch.split(images.cpu().float(), _AT_A_TIME)]
            if not isinstance(outputs[0], Tensor):
                raise TypeError(f"model returns a {type(outputs[0]).__name__}; it must return logits (B, K), a tensor")
            expected = torch.cat(outputs)
            batches = torch.split(images.cpu().float().contiguous(memory_format=asked.layout), _AT_A_TIME)
            try:
                self.network = _convert(traced, batches)
                found = torch.cat([self.network(batch) for batch in batches])
            except Exception as error:  # of whatever kind PyTorch raises for an operation it does not know
                raise ValueError(f"PyTorch cannot quantise the model: {error}") from error
        _check_alike(found, expected)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K), float32, of images (B, C, H, W); autocast changes nothing."""
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.network(images.float())
        return logits


def cpu_has_vnni() -> bool:
    """Tell whether this processor adds up products of eight bits in 32; elsewhere sums overflow in 16."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("vnni", "avx512_vnni"))


def _convert(traced: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Find the ranges of the activations and return the network in eight bits."""
    with _x86_engine(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # is to be removed, too, some day
        from torch.ao.quantization import (
            MinMaxObserver,
            QConfig,
            default_per_channel_weight_observer,
            get_default_qconfig_mapping,
        )
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        in_range = MinMaxObserver.with_args(quant_min=0, quant_max=255)  # PyTorch's default leaves a bit unused
        whole_range = QConfig(in_range, default_per_channel_weight_observer)  # type: ignore[no-untyped-call]
        mapping = get_default_qconfig_mapping(_ENGINE).set_global(whole_range).set_object_type(nn.Linear, None)
        observed = prepare_fx(traced, mapping, (batches[0],))
        for batch in batches:
            observed(batch)
        quantized: nn.Module = convert_fx(observed)
    return quantized


def _check_alike(found: Tensor, expected: Tensor) -> None:
    deviation = torch.linalg.vector_norm(expected - expected.mean(0))
    if not deviation > 1e-5 * torch.linalg.vector_norm(expected):  # equal images differ by rounding
        raise ValueError("the logits of the images do not differ, so there is nothing to judge eight bits by")
    share = float(torch.linalg.vector_norm(found - expected) / deviation)
    if not share <= _ALIKE:  # a NaN is not alike either
        raise ValueError(f"eight bits change the logits by {share:.2f} of their deviation; {_ALIKE} is the most taken")


@contextmanager
def _x86_engine() -> Iterator[None]:
    """Choose the kernels that weights are packed for, the default on such processors."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine
