"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes its name only when the block ends: a crash leaves the old file or the new.

    It is written under a temporary name in the same folder, which is made if absent, flushed to the disk, then renamed.

    Raises:
        OSError: if it cannot be written, on a full disk for example; the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # make the new name itself survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of :func:`atomic_file` whose process was killed while it wrote."""
    for temporary in folder.glob(".*.tmp"):
        found = re.search(r"\.(\d+)-[0-9a-f]{8}\.tmp$", temporary.name)
        if found and not _is_running(int(found[1])):
            temporary.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs and belongs to somebody else, or the system cannot tell
        return True
    return True


def write_atomically(content: bytes, path: str | Path) -> None:
    """Write a whole file by :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)
