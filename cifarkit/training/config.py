"""What a run was started with, in plain JSON types."""

from __future__ import annotations

import inspect
import logging
import platform
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision

if TYPE_CHECKING:
    from cifarkit.training.run import Run

_log = logging.getLogger(__name__)
# Settings that say nothing of how the training goes on, or that follow from others.
_NO_SETTINGS = ("total_steps", "device", "callbacks", "loader.batches", "environment")


def describe(run: Run) -> dict[str, Any]:
    """Return the settings of trainer, task, optimizers and loader, and the versions they ran on."""
    trainer, loader = run.trainer, run.train_loader
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "total_steps": run.total_steps,
        "precision": trainer.precision.name,
        "device": str(trainer.device),
        "accumulate_grad_batches": {str(epoch): factor for epoch, factor in trainer.accumulation.factors.items()},
        "gradient_clip_val": trainer.clip_bound,
        "gradient_clip_algorithm": trainer.clip_algorithm,
        "schedule": _describe_function(trainer.schedule),
        "compile": trainer.compile,
        "callbacks": [describe_object(callback) for callback in trainer.callbacks],
        "task": describe_object(run.task),
        "networks": {name: _describe_network(network) for name, network in run.task.named_children()},
        "optimizers": {name: describe_optimizer(item) for name, item in run.task.optimizers.items()},
        "loader": describe_object(loader) | {"batches": run.batches_in_epoch},
        "environment": describe_environment(),
    }


def describe_environment() -> dict[str, Any]:
    """Return versions and settings that decide whether two runs can be equal bit for bit."""
    from cifarkit import __version__

    return {
        "cifarkit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
    }


def warn_of_differences(saved: Mapping[str, Any]) -> None:
    """Warn if a run continues in an environment in which it cannot be expected to be equal bit for bit."""
    present = describe_environment()
    differences = [
        f"{name} {saved.get(name)} then and {present[name]} now"
        for name in present
        if name != "seed" and saved.get(name) != present[name]
    ]
    if differences:
        warnings.warn(f"the resumed run may not be equal bit for bit: {', '.join(differences)}", stacklevel=2)


def log_other_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Log which settings of a resumed run differ from those it was saved with."""
    then, now = dict(_settings(saved)), dict(_settings(present))
    changed = [name for name in now if name in then and then[name] != now[name]]
    kept = [name for name in changed if name.startswith("optimizers.")]
    others = [name for name in changed if name not in kept]
    if others:
        differences = ", ".join(f"{name} was {then[name]} and is {now[name]}" for name in others)
        _log.warning("the run goes on with other settings than it was saved with: %s", differences)
    if kept:
        differences = ", ".join(f"{name} is {then[name]}, not {now[name]}" for name in kept)
        _log.warning("optimizers go on with the settings in the checkpoint: %s", differences)


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested mappings and lists of mappings: ("loader.batch_size", 128)."""
    for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            if name not in _NO_SETTINGS:
                yield from _settings(value, f"{name}.")
        elif name not in _NO_SETTINGS:
            yield name, value


def describe_object(item: Any) -> dict[str, Any]:
    """Return the class and those arguments of its constructor that it keeps under the same names."""
    names = list(inspect.signature(type(item).__init__).parameters)[1:]
    return {"class": type(item).__name__} | {name: _plain(getattr(item, name)) for name in names if hasattr(item, name)}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class and the settings of each parameter group, of its parameters only the number."""
    groups = [
        {key: _plain(value) for key, value in {**group, "params": len(group["params"])}.items()}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _describe_network(network: torch.nn.Module) -> dict[str, Any]:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trainable = sum(count for count, requires_grad in counts if requires_grad)
    return {"class": type(network).__name__, "parameters": sum(count for count, _ in counts), "trainable": trainable}


def _describe_function(function: Any) -> str:
    """Name a function, and of one made by another (``cosine(warmup=0.1)``) the maker with what it was given."""
    name = str(getattr(function, "__qualname__", type(function).__name__)).split(".")[0]
    given = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return f"{name}({', '.join(f'{key}={_plain(value)}' for key, value in sorted(given.items()))})"


def _plain(value: Any) -> Any:
    """Return a value of a JSON type as it is, a sequence of them as a list, and of anything else what it is called."""
    if value is None or type(value) in (bool, int, float, str):  # no subclasses: an enum member cannot be saved
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if inspect.isroutine(value):
        return value.__qualname__
    shown = repr(value)  # unless it is long, or only an address that differs from run to run
    return type(value).__name__ if len(shown) > 200 or " at 0x" in shown else shown
