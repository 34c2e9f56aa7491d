"""Several processes that train as one, started by torchrun: who they are, what they exchange and agree on.

Every process runs the same script on its own part of each batch. Between backward and the optimizer's step the
gradients are added up, laid end to end in one exchange; no network is wrapped, so tasks, judged networks, compiled
networks and checkpoints are what they are in one process. What DistributedDataParallel has over this is that it sends
some gradients while backward still computes others. With one process nothing here does or costs anything.
"""

from __future__ import annotations

import functools
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from cifarkit.training.interrupts import InterruptGuard

Result = TypeVar("Result")

_PATIENCE_SECONDS = 5  # at the end of a group
_LONGEST_WAIT_SECONDS = 1_800  # for the others at its start, as PyTorch's own


def rank() -> int:
    """Return the number of this process among all, from 0; rank 0 is the one that writes."""
    return dist.get_rank() if _is_open() else _announced()[0]


def world_size() -> int:
    """Return how many processes train together, 1 without torchrun."""
    return dist.get_world_size() if _is_open() else _announced()[1]


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started, and part from them at the end.

    Nothing happens with one process, or where a group is open already: it is used, and left open. On GPUs it is left
    open after an error, too, as its end would wait for processes that may wait for this one.

    Raises:
        ValueError: if the environment names several processes but not where they meet, as MASTER_ADDR does.
        TimeoutError: if some of them have not come after half an hour.
    """
    own, processes = _announced()
    cuda, hook = processes > 1 and _has_a_gpu_each(), sys.excepthook
    with torch.cuda.device(_local_rank()) if cuda else nullcontext():  # what NCCL takes to be this process's own
        if _is_open() or processes == 1:
            yield
            return
        meeting_point = PrefixStore("cifarkit", _meeting_point())
        store = PrefixStore(_new_name(meeting_point, own, processes), meeting_point)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=own, world_size=processes)
        failed = False
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            if not (failed and cuda):  # NCCL would wait for processes that wait for this one, and say nothing
                _await_the_others(store)
                dist.destroy_process_group()
            sys.excepthook = hook  # to which each group adds the number of the process once more


def own_device(device: str | torch.device) -> str | torch.device:
    """Return the device for this process: one of several takes the GPU of its number where "auto" or "cuda" is asked.

    >>> own_device("cpu")
    'cpu'
    """
    if world_size() > 1 and str(device) in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{_local_rank()}"
    return device


# What the processes exchange. All of them must call these at the same points.


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, by rank; any that can be pickled."""
    if not _is_shared():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_every_rank(holds: bool) -> bool:
    """Tell whether something holds on all ranks."""
    return holds if not _is_shared() else bool(_reduced([int(holds)], dist.ReduceOp.MIN)[0])


def from_first_rank(make: Callable[[], Result]) -> Result:
    """Let rank 0 do something while the others wait; all get its result.

    Raises:
        RuntimeError: on the other ranks, if it failed on rank 0, which raises the error itself.
    """
    if not _is_shared():
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except BaseException as error:
            dist.broadcast_object_list([None, f"{type(error).__name__}: {error}"])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise RuntimeError(f"rank 0 failed: {outcome[1]}")
    result: Result = outcome[0]
    return result


def add_up(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the sum over all ranks of each number, by name."""
    totals: dict[str, float] = {}
    for part in gather(dict(numbers)):
        for name, number in part.items():
            totals[name] = totals.get(name, 0) + number
    return totals


@torch.no_grad()
def share_weights(task: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0, bit for bit."""
    if not _is_shared():
        return
    for tensor in [*task.parameters(), *task.buffers()]:
        flat = tensor.flatten().clone()  # gloo sends no channels_last
        dist.broadcast(flat.view(torch.uint8), 0)
        tensor.copy_(flat.view(tensor.shape))


@torch.no_grad()
def average_gradients(optimizer: Optimizer, samples: int) -> int:
    """Make each gradient, a mean over ``samples`` samples of this rank, that over all ranks; return their number.

    A parameter that has a gradient on one rank counts as zero on those where it has none; without one on any rank it
    keeps none, so that the optimizer passes it over as it does in one process.
    """
    if not _is_shared():
        return samples
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    total, *users = _reduced([samples, *(item.grad is not None for item in parameters)], dist.ReduceOp.SUM)
    used = [item for item, count in zip(parameters, users, strict=True) if count]
    for item in used:
        item.grad = torch.zeros_like(item) if item.grad is None else item.grad
    if used:
        gradients = [item.grad for item in used]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(samples / total)
        dist.all_reduce(flat)
        _copy_back(flat, gradients)
    return total


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Average the running means and variances of BatchNorm over the ranks, each of which has seen other images."""
    if not _is_shared():
        return
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    both = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
    statistics = [tensor for tensor in both if tensor is not None]
    if statistics:
        # In float64 the mean of equal numbers is that number, so frozen layers stay as they are.
        flat = torch.cat([tensor.flatten().double() for tensor in statistics])
        dist.all_reduce(flat)
        _copy_back(flat / world_size(), statistics)


# What the processes agree on.


def heed(guard: InterruptGuard | None, reason: str | None = None) -> str | None:
    """Between two updates, leave on a signal to any rank; return why to stop, which any rank may know.

    Raises:
        Interrupted: if a signal has come.
    """
    if not _is_shared():
        if guard is not None:
            guard.check()
        return reason
    noted = guard.signal_number if guard is not None else None
    # The guard is asked once: a signal that comes later waits for the next time, as the other ranks do not know of it.
    signal_number, stopping = _reduced([noted or 0, reason is not None], dist.ReduceOp.MAX)
    if signal_number and guard is not None:
        guard.signal_number = signal_number
        guard.check()
    return next(item for item in gather(reason) if item is not None) if stopping else None


def require_alike(**settings: Any) -> None:
    """Raise ValueError if a setting differs between the ranks, which would wait for each other in vain."""
    for name, *values in zip(settings, *gather([*settings.values()]), strict=True):
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{name} must be the same on every rank; got {', '.join(map(str, values))} on ranks 0 to "
                f"{len(values) - 1}. Rank 0 alone writes, so callbacks and loggers need no condition"
            )


def _is_open() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_shared() -> bool:
    """Tell whether there is anyone to exchange with."""
    return _is_open() and dist.get_world_size() > 1


def _announced() -> tuple[int, int]:
    """Return the rank and world size that torchrun has put into the environment."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def _has_a_gpu_each() -> bool:
    """Tell whether every process of this machine has a GPU of its own."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return torch.cuda.is_available() and max(here, _local_rank() + 1) <= torch.cuda.device_count()


def _local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank()))


@functools.cache
def _meeting_point() -> Store:
    """Return the store that torchrun or rank 0 holds, which stays open for all groups of this process."""
    store: Store = next(iter(rendezvous("env://")))[0]
    return store


def _new_name(store: Store, own: int, processes: int) -> str:
    """Return a name for a group, the same on all ranks and never used before.

    The keys of earlier groups, also of processes that torchrun has restarted since, are still in the store and would
    lead to closed sockets. So each rank says hello by a number, rank 0 answers with those it has heard, which may be
    old ones at first, and an answer holds when every rank has found its own number in it.
    """
    mine, accepted, deadline = secrets.token_hex(4), "", time.monotonic() + _LONGEST_WAIT_SECONDS
    store.set(f"hello/{own}", mine)
    while time.monotonic() < deadline:
        if own == 0:
            store.set("name", "-".join(store.get(f"hello/{other}").decode() for other in range(processes)))
        name = store.get("name").decode()
        numbers = name.split("-")
        if name != accepted and len(numbers) == processes and numbers[own] == mine:
            accepted = name
            store.add(f"accepted/{name}", 1)
        if accepted and store.add(f"accepted/{accepted}", 0) == processes:
            return accepted
        time.sleep(0.01)
    raise TimeoutError(f"process {own} has waited {_LONGEST_WAIT_SECONDS} seconds for the {processes - 1} others")


def _await_the_others(store: Store) -> None:
    """Wait until all ranks have read what was last sent to them, which closing the connection might cut off."""
    with suppress(RuntimeError):  # one that has failed alone, or was killed, never comes; nor does a store it held
        store.set(f"left/{rank()}", "")
        store.wait([f"left/{other}" for other in range(world_size())], timedelta(seconds=_PATIENCE_SECONDS))


def _reduced(numbers: Sequence[int], operation: Any) -> list[int]:
    """Reduce integers over all ranks; on the CPU if the group can, so that no GPU has to be waited for."""
    device = "cpu" if "cpu" in dist.get_backend_config() else "cuda"
    exchanged = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(exchanged, operation)
    values: list[int] = exchanged.tolist()
    return values


def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Fill tensors with what was laid end to end."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
