"""What the first update finds not to work, done without: a compiler that fails, a layout that a network refuses."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from cifarkit.layout import lay_out, refuses_channels_last
from cifarkit.seeding import RngState
from cifarkit.training.task import Task


class FirstAttempt:
    """What an update that fails may have changed before: random states and buffers, which are those of BatchNorm.

    Made once the batches are drawn, whose random numbers must not be drawn again.
    """

    def __init__(self, task: nn.Module) -> None:
        self.task, self.random = task, RngState.capture()
        self.buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}

    @torch.no_grad()
    def undo(self) -> None:
        """Put all of it back, so that a run resumed before its second attempt goes on as one that was not."""
        self.random.restore()
        for name, before in self.buffers.items():
            self.task.get_buffer(name).copy_(before)


def compile_networks(task: nn.Module) -> None:
    """Compile each network of the task in place; parameter names stay as they are."""
    for network in task.children():
        network.compile()


def fall_back_to_usual_layout(task: Task, error: Exception) -> bool:
    """Change to PyTorch's usual layout if a network has just refused channels_last; tell whether that was it.

    A network that a task first uses after an earlier one has stepped is not helped by it.
    """
    if task.layout is torch.contiguous_format or not refuses_channels_last(error):
        return False
    warnings.warn(
        "a network takes its feature maps for vectors by view, which channels_last does not allow; images keep the "
        "usual layout, in which convolutions take longer. Use flatten(1) or reshape instead of view",
        stacklevel=2,
    )
    task.layout = torch.contiguous_format
    lay_out(task, task.layout)
    task.zero_grad(set_to_none=True)
    torch.clear_autocast_cache()
    return True


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
