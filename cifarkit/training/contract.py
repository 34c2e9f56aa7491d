"""What the loop asks of a task, and says if it is not so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from cifarkit.training.task import Batch, Task, Update


def check_task(task: Task) -> Task:
    """Return the task if it is one and has its optimizers.

    Raises:
        TypeError: if it is something else, a network for example.
    """
    if not isinstance(task, Task):
        advice = "wrap a network, as in ClassificationTask(model, optimizer)"
        raise TypeError(f"task must be a Task; got {type(task).__name__}: {advice}")
    optimizers = getattr(task, "optimizers", None)
    if not isinstance(optimizers, dict) or not all(isinstance(item, Optimizer) for item in optimizers.values()):
        raise TypeError(f"{type(task).__name__}.optimizers must be a dict of name to Optimizer; got {optimizers!r}")
    if not optimizers:
        raise TypeError(f"{type(task).__name__}.optimizers is empty: nothing would be trained")
    return task


def check_trainable(task: Task) -> Task:
    """Return the task if :func:`check_task` does and the loop can step its optimizers.

    Raises:
        TypeError: if it is no task, or the step of an optimizer needs a closure.
    """
    for name, optimizer in check_task(task).optimizers.items():
        closure = signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise TypeError(
                f"the optimizer {name!r} is a {type(optimizer).__name__}, whose step needs a closure, and the loop has "
                "computed the gradients before; use another, such as SGD or AdamW"
            )
    return task


def check_state(task: Task) -> None:
    """Raise TypeError if a part of a task keeps something else than tensors by ``get_extra_state``."""
    for name, module in task.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            state = module.get_extra_state()
            if not isinstance(state, Tensor):
                kind = f"{name or type(task).__name__} of the task keeps a {type(state).__name__} by get_extra_state"
                raise TypeError(f"{kind}, and a checkpoint holds tensors alone; keep them in buffers")


def stages_of(task: Task, batch: Batch) -> Iterator[Update]:
    """Return what the task yields for a batch.

    Raises:
        TypeError: if its ``updates`` returns a loss instead of yielding it.
    """
    updates: Any = task.updates(batch)
    if isinstance(updates, Tensor) or not isinstance(updates, Iterable):
        raise TypeError(
            f"{type(task).__name__}.updates must yield Update objects; it returned {type(updates).__name__}: "
            "write 'yield Update(loss)' in place of 'return loss'"
        )
    return iter(updates)


def check_update(update: Update, task: Task) -> None:
    """Raise TypeError or ValueError unless a task has yielded what the loop can use."""
    if not isinstance(update, Update):
        raise TypeError(f"{type(task).__name__}.updates must yield Update objects; got {type(update).__name__}")
    if update.optimizer not in task.optimizers:
        raise ValueError(f"Update names the optimizer {update.optimizer!r}; the task has {sorted(task.optimizers)}")
    if not isinstance(update.loss, Tensor):
        raise TypeError(f"a loss must be a tensor, before .item(); got {type(update.loss).__name__}")
    if not update.loss.requires_grad:
        raise ValueError(
            f"the loss for the optimizer {update.optimizer!r} has no gradient: what leads to it is frozen or detached; "
            "see cifarkit.unfreeze"
        )
    if update.loss.dim():
        raise ValueError(f"a loss must be a scalar, the mean over the batch; got shape {tuple(update.loss.shape)}")
