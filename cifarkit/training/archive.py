"""Files of tensors and plain types: written whole or not at all, checked by a checksum, read without running code."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cifarkit.files import atomic_file, read_file, require_plain_zip, shown, start_writeback, why_unreadable

_END_RECORD = b"PK\x05\x06"  # the last record of a zip file; its last two bytes are the length of a comment
_LABEL = b"sha256:"
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of what PyTorch wrote before 1.6, which is no zip file
_LARGE = 1 << 20  # bytes from which hashing is worth a thread
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, set, torch.Size, torch.dtype, torch.device)


def write_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Save tensors and plain types to path, atomically and with a checksum.

    The file is an ordinary ``torch.save`` zip; the SHA-256 of it stands in the zip's comment, so that
    ``torch.load`` reads it without this library. NumPy's scalars are saved as Python's.

    Raises:
        TypeError: if something in the state could not be loaded without running code.
    """
    state = _plain(state, "state")
    with atomic_file(path) as file, ThreadPoolExecutor(1) as helper:
        hashing = _HashingFile(file, helper)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]  # it calls nothing but write and flush
        except RuntimeError:  # what PyTorch makes of a full disk
            if hashing.error is None:
                raise
            raise hashing.error from None
        if hashing.end[:4] != _END_RECORD or hashing.end[-2:] != b"\0\0":
            raise RuntimeError("torch.save wrote a zip file of unknown form; cannot add a checksum")
        comment = _LABEL + hashing.digest.hexdigest().encode()
        file.seek(-2, os.SEEK_END)
        file.write(len(comment).to_bytes(2, "little") + comment)


class _HashingFile:
    """What torch.save writes into. It neither keeps nor copies what it gets, and hashes while it writes."""

    def __init__(self, file: BinaryIO, helper: Executor) -> None:
        self.file, self.helper, self.digest = file, helper, hashlib.sha256()
        self.end = b""  # of all that was written
        self.error: OSError | None = None

    def write(self, content: memoryview) -> int:
        self.end = (self.end + bytes(content[-22:]))[-22:]
        hashed = self.helper.submit(self.digest.update, content) if len(content) > _LARGE else None
        if hashed is None:
            self.digest.update(content)
        try:
            written = self.file.write(content)
            if hashed is not None:
                start_writeback(self.file)
            return written
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashed is not None:
                hashed.result()  # the memory is the writer's own again when this call ends

    def flush(self) -> None:
        self.file.flush()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU after checking that it is whole; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or is no checkpoint; the message names it.
    """
    path = Path(path)
    content = read_file(path)
    zipped = not content.startswith(_OLD_START)
    if zipped:
        _require_checksum(content, path)
    try:
        if zipped:
            require_plain_zip(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damage that no checksum guards against can raise anything
        reason = why_unreadable(error)
        raise ValueError(f"{shown(path)} cannot be read as tensors and plain types: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{shown(path)} holds a {type(state).__name__} where a dict was expected")
    return state


def _plain(value: Any, name: str) -> Any:
    """Return value with NumPy's scalars made Python's; name says where in the state it stands."""
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, name) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, Tensor) or type(value) in _PLAIN_TYPES:
        return value
    raise TypeError(f"{name} holds a {type(value).__name__}; a checkpoint takes tensors and plain Python types only")


def _require_checksum(content: bytes, path: Path) -> None:
    """Check the comment of :func:`write_checkpoint`; files of plain ``torch.save`` have none and pass."""
    length = len(_LABEL) + 64
    start = len(content) - length
    label = length.to_bytes(2, "little") + _LABEL
    if start < 22 or content[start - 22 : start - 18] != _END_RECORD or content[start - 2 : start + 7] != label:
        if content[-22:-18] == _END_RECORD and content[-2:] == b"\0\0":
            return
        raise ValueError(f"{shown(path)} is damaged or no checkpoint: its end is missing ({len(content)} bytes)")
    original = content[: start - 2] + b"\0\0"
    if hashlib.sha256(original).hexdigest().encode() != content[start + 7 :]:
        raise ValueError(f"{shown(path)} is damaged: its SHA-256 does not match its content")
