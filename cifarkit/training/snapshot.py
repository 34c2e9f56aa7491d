"""Fits on trial, which leave no trace in the task."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cifarkit.training.task import Task


def copied_state(task: Task) -> dict[str, Any]:
    """Return a state_dict of its own, in which a part's extra state need be no tensor."""
    state = task.state_dict().items()
    return {name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state}


@contextmanager
def untouched(task: Task) -> Iterator[None]:
    """Put everything of a task that a fit changes back when the block ends, however it ends."""
    weights = copied_state(task)
    others = {name: buffer.clone() for name, buffer in task.named_buffers() if name not in weights}  # not persistent
    optimizers = {name: copy.deepcopy(optimizer.state_dict()) for name, optimizer in task.optimizers.items()}
    modes = [(module, module.training) for module in task.modules()]
    storages = [(parameter, parameter.data, parameter.grad) for parameter in task.parameters()]
    buffers = [(module, dict(module._buffers)) for module in task.modules()]
    layouts = [(buffer, buffer.data) for buffer in task.buffers()]
    compiled = [(network, network._compiled_call_impl) for network in task.children()]
    try:
        yield
    finally:
        for parameter, storage, gradient in storages:  # a fit may have moved them to a device, or changed their strides
            parameter.data, parameter.grad = storage, gradient
        for module, own in buffers:
            module._buffers.update(own)
        for buffer, storage in layouts:
            buffer.data = storage
        task.load_state_dict(weights)
        for name, buffer in others.items():
            if not torch.equal(task.get_buffer(name), buffer):
                task.get_buffer(name).copy_(buffer)
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        for network, call in compiled:
            network._compiled_call_impl = call
        for module, training in modes:
            module.training = training
