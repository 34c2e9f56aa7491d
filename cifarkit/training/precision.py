"""Number formats of the loop: fp32, or 16 bits where it is safe with fp32 weights."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from cifarkit.inference import cpu_has_bf16, has_native_bf16

SMALLEST_SCALE = 2.0**-24  # GradScaler begins at 2**16 and halves: 41 overflows in a row are no accident
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}


class Precision:
    """Autocast and gradient scaling for one device.

    Args:
        name: "fp32", "bf16-mixed" or "fp16-mixed", which keep weights and optimizer state in fp32; or "auto", the
            fastest that is safe on the device: bf16-mixed where it computes bf16 natively, else fp32.
        device: where the loop runs.
    Attributes:
        name: what it is, never "auto".
        reason: why "auto" chose it, in a sentence; None if it was asked for.
    Raises:
        ValueError: if the name is unknown or the device cannot do it.
    Source: Micikevicius et al. 2018, "Mixed precision training".
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name != "auto" and name not in PRECISIONS:
            known = ", ".join(map(repr, ("auto", *PRECISIONS)))
            raise ValueError(f"precision={name!r} is unknown; choose one of {known}")
        self.reason: str | None = None
        if name == "auto":
            native = has_native_bf16(device)
            name = "bf16-mixed" if native else "fp32"
            kind = "processor" if device.type == "cpu" else f"device ({device.type})"
            self.reason = (
                f"precision {name}: this {kind} computes bf16 {'natively' if native else 'slowly or not at all'}"
            )
        self.name, self.device, self.dtype = name, device, PRECISIONS[name]
        if self.dtype is not None:
            _require_support(name, self.dtype, device)

    def autocast(self) -> AbstractContextManager[object]:
        """Open the region in which forward and loss run; backward stays outside, as PyTorch advises."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Make a gradient scaler, which does nothing except in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def step_scaled(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Step unless fp16 overflowed, adapt the scale, and tell whether the optimizer stepped."""
    scale_before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= scale_before  # a smaller scale means that the step was skipped


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device; "auto" is CUDA if there is one, else the CPU.

    Raises:
        ValueError: if PyTorch knows no such device or finds none here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} cannot be used here; 'auto' and 'cpu' can ({reason})") from error
    return chosen


def _require_support(name: str, dtype: torch.dtype, device: torch.device) -> None:
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        raise ValueError(f"precision={name!r} is not supported on device {str(device)!r}; use 'fp32'")
    if kind == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision={name!r} is not supported by this GPU; use 'fp16-mixed' or 'fp32'")
    if kind == "cpu" and dtype is torch.bfloat16 and not cpu_has_bf16():
        warnings.warn("this processor has no bf16 arithmetic: bf16-mixed will be slower than fp32", stacklevel=4)
    if kind == "cpu" and dtype is torch.float16:
        warnings.warn("fp16-mixed is meant for GPUs; on a CPU bf16-mixed or fp32 is usually faster", stacklevel=4)
