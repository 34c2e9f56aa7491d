"""What a run was started with, in plain JSON types."""

from __future__ import annotations

import inspect
import logging
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision

from cifarkit.files import shown

if TYPE_CHECKING:
    from cifarkit.training.run import Run
    from cifarkit.training.task import Task

_log = logging.getLogger(__name__)
# Settings that say nothing of how the training goes on, or that follow from others.
_NO_SETTINGS = ("total_steps", "device", "callbacks", "loader.batches", "environment")

_LONGEST = 100  # entries of a list that is written down
_SHOWN = (type(None), bool, int, float, str)


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
        "optimizers": describe_optimizers(run.task),
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
        f"{name} {_plainly(saved.get(name))} then and {present[name]} now"
        for name in present
        if name != "seed" and _shown(saved.get(name)) != _shown(present[name])
    ]
    if differences:
        warnings.warn(f"the resumed run may not be equal bit for bit: {', '.join(differences)}", stacklevel=2)


def log_other_settings(saved: Mapping[str, Any], present: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Log which settings of a resumed run are not those it was saved with, and which of the script do not count.

    Args:
        saved: what the checkpoint says; nothing of it is relied upon.
        present: what the run goes on with, its optimizers as they are in the checkpoint.
        given: the optimizers as the script made them.
    """
    others = [f"{name} was {then} and is {now}" for name, then, now in _differences(saved, present)]
    if others:
        _log.warning("the run goes on with other settings than it was saved with: %s", ", ".join(others))
    kept = [*_differences({"optimizers": given}, {"optimizers": present["optimizers"]})]
    if kept:
        texts = [f"{name} is {now}, not {then}" for name, then, now in kept]
        _log.warning("the settings of the checkpoint are kept: %s", ", ".join(texts))


def _differences(saved: Any, present: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Walk the settings of a run beside those in a file, which may be anything: name, there and here, to be shown."""
    names: list[Any] = [*present] if isinstance(present, Mapping) else [*range(len(present))]
    if isinstance(present, Mapping) and isinstance(saved, Mapping):
        names += [key for key in saved if key not in present and re.fullmatch(r"\w{1,50}", str(key))]
    for name in names:
        if f"{where}{name}" in _NO_SETTINGS or (not where and (name not in present or name not in saved)):
            continue  # the last: a setting that one of two versions has not
        there, here = _item(saved, name), _item(present, name)
        if isinstance(here, Mapping) or (isinstance(here, list) and here and isinstance(here[0], Mapping)):
            yield from _differences(there, here, f"{where}{name}.")
        elif (texts := (_shown(there), _shown(here)))[0] != texts[1]:
            yield f"{where}{name}", *texts


def _item(settings: Any, name: Any) -> Any:
    """Return an entry of a dict or list, None if it has none."""
    if isinstance(settings, list):
        return settings[name] if isinstance(name, int) and name < len(settings) else None
    return settings.get(name) if isinstance(settings, Mapping) else None


def _shown(value: Any) -> str:
    """Write a setting on one line, control characters escaped; of anything but plain values only the type."""
    if isinstance(value, list) and len(value) < 20 and all(type(item) in _SHOWN for item in value):
        return f"[{', '.join(map(_shown, value))}]"
    text = repr(value) if type(value) in _SHOWN else f"a {type(value).__name__}"
    return text if len(text) < 100 else f"{text[:97]}..."


def _plainly(value: Any) -> str:
    """Write a setting as :func:`_shown` does, text without its quotes."""
    return shown(value) if type(value) is str and len(value) < 100 else _shown(value)


def describe_optimizers(task: Task) -> dict[str, Any]:
    """Describe each optimizer of a task."""
    return {name: describe_optimizer(item) for name, item in task.optimizers.items()}


def describe_object(item: Any) -> dict[str, Any]:
    """Return the class and those arguments of its constructor that it keeps under the same names."""
    names = list(inspect.signature(type(item).__init__).parameters)[1:]
    return {"class": type(item).__name__} | {name: _plain(getattr(item, name)) for name in names if hasattr(item, name)}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class and the settings of each parameter group, of its parameters only the number.

    The rate is the one that a schedule multiplies, also in the middle of a fit.
    """
    groups = []
    for group in optimizer.param_groups:
        settings = {**group, "params": len(group["params"]), "lr": group.get("base_rate", group["lr"])}
        groups.append({key: _plain(value) for key, value in settings.items() if key != "base_rate"})
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
        long = len(value) > _LONGEST  # a list of all samples, for one
        return f"{type(value).__name__} of {len(value)}" if long else [_plain(item) for item in value]
    if inspect.isroutine(value):
        return value.__qualname__
    shown = repr(value)  # unless it is long, or only an address that differs from run to run
    return type(value).__name__ if len(shown) > 200 or " at 0x" in shown else shown
