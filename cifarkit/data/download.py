"""Fetch one large file over a slow or broken line: mirrors, resumption, checksums."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from cifarkit.checks import check_integer
from cifarkit.data.expected import Expected

_CHUNK = 1 << 16
_PROGRESS = 1 << 16  # bytes an attempt must add to count as progress, so that a line cut often still ends
_MAX_PAUSE_SECONDS = 30.0
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP states worth another attempt at the same address


class DownloadError(OSError):
    """No mirror delivered the file; the message lists each with its reason and tells how to do it by hand."""


def download(
    urls: Sequence[str],
    path: str | Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
    attempts: int = 3,
    timeout_seconds: float = 30.0,
    backoff_seconds: float = 1.0,
) -> Path:
    """Download a file from the first mirror that delivers it whole, and return its path.

    A partial file, ``<path>.part``, is kept when the line fails and continued by the next attempt, mirror or call;
    it is renamed to path only after its checks. A file already at path that passes them is not fetched again.
    Processes that want the same file wait for the first of them (not on Windows). A partial file that is a link is not
    written through: it makes room for one that is begun anew.

    Args:
        urls: mirrors of the same file (http, https or file), tried in this order.
        path: where the file goes; missing folders are made.
        md5, sha256: checksums as hexadecimal digits. Without any, only the mirror that sent a partial file, and
            only while it still names the same version, may continue it.
        size: length of the file in bytes.
        progress: show a bar with the time left; it appears on a terminal only.
        attempts: attempts at one mirror in a row that bring nothing new before the next mirror is tried.
        timeout_seconds: longest silence of the line.
        backoff_seconds: pause before the second attempt, doubled for each further one up to 30 seconds.
    Raises:
        ValueError: if urls, md5, sha256 or attempts is malformed.
        DownloadError: if every mirror failed.
    """
    addresses, attempts, path = _check_urls(urls), check_integer("attempts", attempts, 1), Path(path)
    job = _Job(path, path.with_name(path.name + ".part"), Expected(md5, sha256, size), progress, timeout_seconds)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a file is to be downloaded there; move it, or give another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        job.remove_links()
        if not path.exists() or job.expected.problem(path) is not None:
            if not job.is_whole:
                _try_mirrors(job, addresses, attempts, backoff_seconds)
            job.finish()
    return path


class _MirrorError(Exception):
    """An attempt that failed at the other end; whether the same address deserves another one, and from the start."""

    def __init__(self, reason: str, *, again: bool, anew: bool = False) -> None:
        super().__init__(reason)
        self.again, self.anew = again, anew


def _try_mirrors(job: _Job, addresses: Sequence[str], attempts: int, backoff_seconds: float) -> None:
    lines = [f"could not download {job.path.name}:"]
    for url in addresses:
        fault = _try_mirror(job, url, attempts, backoff_seconds)
        if fault is None:
            return
        lines.append(f"  {url}: {fault}")
    lines.append(f"Fetch it by hand and put it at {job.path}{job.expected}.")
    if job.part.exists():
        lines.append(f"{job.part} keeps what arrived; the next call continues it.")
    raise DownloadError("\n".join(lines))


def _try_mirror(job: _Job, url: str, attempts: int, backoff_seconds: float) -> _MirrorError | None:
    """Fetch into the partial file until it is whole, or return the last fault."""
    job.resumable_origin(url)  # drops a part of another file, whose length is none to get beyond
    failed, furthest, restarted = 0, job.position, False
    while True:
        start = job.position
        try:
            job.fetch(url)
            problem = job.expected.problem(job.part)
            if problem is None:
                return None
            job.discard()  # when continued, it may mix two versions: fetch it once from the start
            fault = _MirrorError(f"sent a damaged file, {problem}", again=start > 0, anew=True)
        except _MirrorError as error:
            fault = error
        if fault.anew and not restarted:  # once, or a mirror that sends other bytes each time would never end
            furthest, restarted = 0, True
        failed = 0 if job.position >= furthest + _PROGRESS else failed + 1
        furthest = max(furthest, job.position)
        if not fault.again or failed >= attempts:
            return fault
        time.sleep(min(backoff_seconds * 2 ** max(failed - 1, 0), _MAX_PAUSE_SECONDS))


@dataclass(frozen=True)
class _Job:
    path: Path
    part: Path
    expected: Expected
    progress: bool
    timeout_seconds: float

    @property
    def position(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def is_whole(self) -> bool:
        """Whether the partial file is known to be the file, as after a kill just before it got its name."""
        has_checksum = self.expected.md5 is not None or self.expected.sha256 is not None
        return has_checksum and self.expected.problem(self.part) is None

    @property
    def origin_file(self) -> Path:
        """Where the address and version of the partial file are noted."""
        return self.part.with_name(self.part.name + ".json")

    def remove_links(self) -> None:
        """Remove what stands in the place of the partial file and its note and leads elsewhere, or is no file at all.

        Another name of a file, a hard link, leads elsewhere as well.
        """
        for file in (self.part, self.origin_file):
            if os.path.lexists(file) and not (stat.S_ISREG(file.lstat().st_mode) and file.lstat().st_nlink == 1):
                file.unlink()

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.origin_file.unlink(missing_ok=True)

    def finish(self) -> None:
        self.part.replace(self.path)
        self.origin_file.unlink(missing_ok=True)

    def fetch(self, url: str) -> None:
        """Append to the partial file, or start it anew, until the server has sent everything."""
        origin = self.resumable_origin(url)
        start = self.position
        headers = {"User-Agent": "cifarkit", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if origin["url"] == url and origin["version"]:
                headers["If-Range"] = origin["version"]
        response = self._open(Request(url, headers=headers), start)
        if response is None:
            return
        with response:
            resumed = getattr(response, "status", None) == 206
            total = self._total(response, start if resumed else 0, resumed)
            version = _version(response)
            if resumed and origin["url"] == url and origin["version"] and version not in (None, origin["version"]):
                self.discard()
                raise _MirrorError("the file changed between two attempts", again=True, anew=True)
            if not resumed:
                self.discard()  # before the new note, which must never describe the old bytes
            with _open_no_link(self.origin_file, os.O_TRUNC) as note:
                note.write(json.dumps({"url": url, "version": version}).encode())
            self._receive(response, start if resumed else 0, total)

    def resumable_origin(self, url: str) -> dict[str, Any]:
        """Return where the partial file came from; drop it if it cannot be trusted to belong to url's file."""
        origin: dict[str, Any] = {"url": None, "version": None}
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):  # none, or a damaged one
            note = json.loads(self.origin_file.read_text())
            origin |= {name: text for name, text in note.items() if isinstance(text, str) and text.isprintable()}
        same = origin["url"] == url and origin["version"] is not None
        if not (same or self.expected.md5 or self.expected.sha256):
            self.discard()
        return origin

    def _open(self, request: Request, start: int) -> Any:
        """Return the response; None if the server says that the partial file is whole."""
        try:
            return urlopen(request, timeout=self.timeout_seconds)
        except HTTPError as error:
            error.close()
            if error.code != 416:
                raise _MirrorError(f"HTTP {error.code} {error.reason}", again=error.code in _TEMPORARY) from None
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None
            self.discard()
            raise _MirrorError("HTTP 416, the partial file is longer than the file", again=True, anew=True) from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise _MirrorError(f"no connection, {reason or type(error).__name__}", again=True) from None
        except ValueError as error:  # letters that an address cannot have, for one
            raise _MirrorError(f"no address that can be asked, {error}", again=False) from None

    def _total(self, response: Any, start: int, resumed: bool) -> int | None:
        """Read the length of the whole file from the headers, and check that the server sends the right piece."""
        content_range, length = response.headers.get("Content-Range", ""), response.headers.get("Content-Length")
        total = int(length) if length and re.fullmatch(r"[0-9]{1,18}", length) else None
        if resumed:
            piece = re.fullmatch(rf"bytes {start}-\d+/(\d{{1,18}}|\*)", content_range)
            if piece is None:
                self.discard()
                raise _MirrorError(f"sent {content_range!r} when asked for bytes from {start}", again=True)
            total = None if piece[1] == "*" else int(piece[1])
        if self.expected.size is not None and total not in (None, self.expected.size):
            raise _MirrorError(f"offers {total} bytes instead of {self.expected.size}", again=False)
        return total

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        hidden = None if self.progress else True  # None: shown on a terminal only
        bar = tqdm(total=total, initial=start, desc=self.path.name, unit="B", unit_scale=True, disable=hidden)
        with bar, _open_no_link(self.part, os.O_APPEND if start else os.O_TRUNC) as file:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
                if self.expected.size is not None and file.tell() > self.expected.size:  # it might never end
                    raise _MirrorError(f"sends more than {self.expected.size} bytes", again=False)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and self.position < total:
            raise _MirrorError(f"the line was cut after {self.position} of {total} bytes", again=True)


def _open_no_link(path: Path, how: int) -> BinaryIO:
    """Open a file to write, and fail if a link has taken its name."""
    flags = os.O_WRONLY | os.O_CREAT | how | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(path, flags, 0o666), "ab" if how == os.O_APPEND else "wb")  # noqa: PTH123  (a descriptor)


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield what arrives; faults of the line are told apart here from a full disk, which the caller meets."""
    while True:
        try:
            chunk = response.read1(_CHUNK)  # returns what is there, so a stall loses nothing
        except TimeoutError:
            raise _MirrorError("the line fell silent", again=True) from None
        except (OSError, HTTPException) as error:
            raise _MirrorError(f"the line broke, {error or type(error).__name__}", again=True) from None
        if not chunk:
            return
        yield chunk


def _version(response: Any) -> str | None:
    """Return what If-Range may carry: a strong ETag, else the date of the last change (RFC 9110, section 13.1.5)."""
    tag, changed = response.headers.get("ETag"), response.headers.get("Last-Modified")
    return str(tag) if tag and not tag.startswith("W/") else changed


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes that download into folder waiting; a lock on the folder itself leaves no file behind."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks; a lone process needs none
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_urls(urls: Sequence[str]) -> list[str]:
    if isinstance(urls, str):
        raise ValueError(f"urls must be a sequence of addresses, got the string {urls!r}; try [{urls!r}]")
    wrong = [url for url in urls if not re.match(r"(https?|file)://", url)]
    if wrong or not urls:
        raise ValueError(f"urls={list(urls)} must hold addresses that begin with http://, https:// or file://")
    return list(urls)
