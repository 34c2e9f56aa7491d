"""What a run was started with, in plain JSON types."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from cifarkit.training.run import Run


def describe(run: Run) -> dict[str, Any]:
    """Return the settings of trainer, task, optimizers and loader, and the versions they ran on."""
    trainer = run.trainer
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "total_steps": run.total_steps,
        "precision": trainer.precision.name,
        "device": str(trainer.device),
        "accumulate_grad_batches": {str(epoch): factor for epoch, factor in trainer.accumulation.factors.items()},
        "gradient_clip_val": trainer.clip_bound,
        "gradient_clip_algorithm": trainer.clip_algorithm,
        "schedule": _name(trainer.schedule),
        "compile": trainer.compile,
        "callbacks": [type(callback).__name__ for callback in run.callbacks],
        "task": type(run.task).__name__,
        "networks": {name: _describe_network(network) for name, network in run.task.named_children()},
        "optimizers": {name: _describe_optimizer(item) for name, item in run.task.optimizers.items()},
        "batches": run.batches_in_epoch,
        "batch_size": getattr(run.train_loader, "batch_size", None),
        "transform": repr(getattr(run.train_loader, "transform", None)),
        "environment": describe_environment(),
    }


def describe_environment() -> dict[str, Any]:
    """Return versions and settings that decide whether two runs can be equal bit for bit."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
    }


def _describe_network(network: torch.nn.Module) -> dict[str, Any]:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trainable = sum(count for count, requires_grad in counts if requires_grad)
    return {"class": type(network).__name__, "parameters": sum(count for count, _ in counts), "trainable": trainable}


def _describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [
        {key: value for key, value in group.items() if isinstance(value, (bool, int, float, str, list, tuple))}
        for group in ({**group, "params": len(group["params"])} for group in optimizer.param_groups)
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__)).split(".")[0]
