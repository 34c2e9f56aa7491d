"""torch.compile as an option that may fail without ending the run."""

from __future__ import annotations

import warnings

from torch import nn


def compile_networks(task: nn.Module) -> None:
    """Compile each network of the task in place; parameter names stay as they are."""
    for network in task.children():
        network.compile()


def fall_back_to_eager(task: nn.Module, error: Exception) -> None:
    """Undo the compilation if it is what failed, and say why; raise any other error again."""
    compiled = [network for network in task.children() if network._compiled_call_impl is not None]
    if not compiled:
        raise error
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if not isinstance(error, TorchDynamoException):
        raise error
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    warnings.warn(
        f"compile=True does not work here ({type(error).__name__}: {reason}); training goes on without it. "
        "It needs a C++ compiler on a CPU, a supported GPU on CUDA",
        stacklevel=2,
    )
    for network in compiled:
        network._compiled_call_impl = None
    task.zero_grad(set_to_none=True)
