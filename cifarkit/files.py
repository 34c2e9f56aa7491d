"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_STARTED = time.time()  # of this process, about


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
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write to a full disk does not say to which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def start_writeback(file: BinaryIO) -> None:
    """Let the disk begin with what was written so far instead of waiting for ``fsync``, where the system can.

    What is on the disk already leaves the system's cache, so that the next part needs no new memory: in a virtual
    machine, where each new page is first got from the host, that takes longer than the writing.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    file.flush()
    with contextlib.suppress(OSError):  # it is no more than a hint
        # Of what it is told will not be needed, Linux forgets what is clean, and begins to write the rest.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not flush folders; the file itself is on the disk
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, names: str = ".+") -> None:
    """Remove the temporary files of :func:`atomic_file` whose process was killed while it wrote.

    Args:
        names: regular expression of the files that were written; others are left.
    """
    for temporary in folder.glob(".*.tmp"):
        found = re.fullmatch(rf"\.(?:{names})\.(\d+)-[0-9a-f]{{8}}\.tmp", temporary.name)
        is_folder = temporary.is_dir() and not temporary.is_symlink()
        if found and not is_folder and _is_abandoned(temporary, int(found[1])):
            temporary.unlink(missing_ok=True)


def _is_abandoned(temporary: Path, process: int) -> bool:
    if process == os.getpid():  # in a container each start may have the same number
        return temporary.lstat().st_mtime < _STARTED
    return not _is_running(process)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a number no process can have is in a name somebody made up
        return False
    except OSError:  # it runs and belongs to somebody else, or the system cannot tell
        return True
    return True


def write_atomically(content: bytes, path: str | Path) -> None:
    """Write a whole file by :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """Read a whole file, but nothing that might never end.

    Args:
        most: bytes that such a file can have; None for any number.
    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a folder, a pipe or a device, or larger than that.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{shown(path)} is a folder, a pipe or a device; give a file")
    with path.open("rb") as file:
        content = file.read(-1 if most is None else most + 1)  # not judged by its size, which may be wrong
    if most is not None and len(content) > most:
        raise ValueError(f"{shown(path)} is larger than {most / 1e6:g} MB, too large for what it should be")
    return content


def shown(path: str | Path) -> str:
    """Return a path for a message, its control characters escaped: a terminal would obey them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))


def why_unreadable(error: Exception) -> str:
    """Return the line of an error of ``torch.load`` that says what was refused; its first one advises to load it."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for word in ("GLOBAL", "nsupported", "Unpickler error") for line in lines if word in line]
    return shown([*told, *lines, type(error).__name__][0])


def require_plain_zip(content: bytes) -> None:
    """Refuse a zip file that unpacks to more than it holds; what ``torch.save`` writes is not compressed.

    Raises:
        ValueError: if it does, as a file made to fill the memory would.
        zipfile.BadZipFile: if it is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > len(content):
        raise ValueError(f"it would unpack {len(content)} bytes to {total}, which torch.save never does")
