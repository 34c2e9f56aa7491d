"""A process set up for work on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cifarkit.memory import keep_freed_memory
from cifarkit.training.precision import Precision


def tune_cpu() -> str:
    """Choose what suits this processor, say so in a line, and return the precision, for ``Trainer(precision=...)``.

    No more threads than there are cores, since they would wait for each other; freed memory is kept, as the Trainer
    does anyway; and bf16 where the processor multiplies it natively.

    Returns:
        "bf16-mixed" or "fp32".
    """
    cores = available_cores()
    torch.set_num_threads(min(torch.get_num_threads(), cores))
    kept = "kept" if keep_freed_memory() else "given back"
    precision = Precision("auto", torch.device("cpu"))
    print(
        f"{precision.reason}; {torch.get_num_threads()} threads for {cores} cores; freed memory is {kept}", flush=True
    )
    return precision.name


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or no limit ("max")
        return cores
