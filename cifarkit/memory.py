"""The C library's allocator, told to keep what a training loop frees and asks for again at once."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # M_... in glibc's malloc.h
_MAPPED_BYTES = 2**30, 2**25  # tensors above are mapped; glibc before 2.35 takes no more than the second
_KEPT_BYTES = 2**31 - 1  # the largest an int of mallopt can say; one above never happens in small-image work


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed pages instead of giving them back to the system, for the rest of the process.

    A tensor of some megabytes is otherwise mapped when it is made and unmapped when it dies, and the kernel zeroes
    every page of the next one, which is a good part of the time of preparing a batch. The price is that the process
    stays as large as it once was. Only the first call does anything; on a CPU the Trainer, the
    Loader, :func:`cifarkit.predict`, :func:`cifarkit.attribution.attribute` and :func:`cifarkit.tune_cpu` make it.
    CIFARKIT_KEEP_MEMORY=0 in the environment leaves the allocator as it is.

    Returns:
        whether the allocator took it; False if that was set and on systems without glibc, and with another allocator
        it has no effect.
    Source: the manual page mallopt(3).
    """
    if not sys.platform.startswith("linux") or os.environ.get("CIFARKIT_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    taken = [any(mallopt(_MMAP_THRESHOLD, value) == 1 for value in _MAPPED_BYTES)]
    taken += [mallopt(option, value) == 1 for option, value in ((_TRIM_THRESHOLD, _KEPT_BYTES), (_TOP_PAD, 2**26))]
    return all(taken)
