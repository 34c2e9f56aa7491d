"""Do task, optimizers, callbacks and checkpoint belong together?"""

from __future__ import annotations

import warnings
from typing import Any

from cifarkit.training.config import describe_optimizer
from cifarkit.training.task import Task


def require_own_parameters(task: Task) -> None:
    """Raise ValueError if an optimizer holds parameters that are not the task's."""
    own = {id(parameter) for parameter in task.parameters()}
    for name, optimizer in task.optimizers.items():
        strangers = [item for group in optimizer.param_groups for item in group["params"] if id(item) not in own]
        if strangers:
            raise ValueError(
                f"optimizer {name!r} holds {len(strangers)} parameters that are not the task's, the first of shape "
                f"{tuple(strangers[0].shape)}; build the optimizer from the network that the task trains"
            )


def require_same_task(task: Task, state: dict[str, Any]) -> None:
    """Raise ValueError unless the state of a run belongs to this task, its networks and its optimizers."""
    if "format_version" not in state:
        raise ValueError("the checkpoint is of no run and cannot be resumed; if it holds weights, use load_weights")
    saved, own = state["task"], task.state_dict()
    advice = "build the task that wrote the checkpoint, or load single networks with load_weights"
    for key in [*own, *saved]:
        if key not in saved or key not in own:
            where = "only in this task" if key in own else "only in the checkpoint"
            raise ValueError(f"the checkpoint belongs to another model: {key!r} is {where}; {advice}")
        if own[key].shape != saved[key].shape:
            raise ValueError(
                f"the checkpoint belongs to another model: {key!r} has shape {tuple(saved[key].shape)} there "
                f"and {tuple(own[key].shape)} in this task; {advice}"
            )
    for name, optimizer in task.optimizers.items():
        there, here = state["config"]["optimizers"].get(name), describe_optimizer(optimizer)
        kinds = [side and (side["class"], [group["params"] for group in side["groups"]]) for side in (there, here)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"the checkpoint belongs to another optimizer: {name!r} is {kinds[0]} there and {kinds[1]} here, "
                "class and parameters of each group"
            )


def is_of_this_metric(state: dict[str, Any], callback: Any) -> bool:
    """Tell whether a saved state is about the metric that its callback watches, and warn if it is not."""
    own = {"monitor": callback.monitor or "", "mode": callback.mode}
    saved = {name: state.get(name, value) for name, value in own.items()}  # older checkpoints do not say
    if saved != own:
        warnings.warn(f"{type(callback).__name__} begins anew: it was saved with {saved} and has {own}", stacklevel=2)
    return saved == own
