"""download against a local server that cuts the line, stalls, ignores Range, sends rubbish or is not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cifarkit.data.download import DownloadError, download

BODY = os.urandom(400_000)
MD5 = hashlib.md5(BODY).hexdigest()
FAST: dict[str, Any] = {"timeout_seconds": 20, "backoff_seconds": 0.01}


@dataclass
class Site:
    """What the server does, and what it was asked."""

    address: str = ""
    body: bytes = BODY
    tag: str | None = '"v1"'
    status: int = 200
    cut: int | None = None  # bytes of body after which the line is cut
    stall: bool = False  # go silent instead of cutting
    ranges: bool = True
    failures: int = 10**9  # answers that misbehave before the server recovers
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header of each request


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.asked.append((self.path, asked))
            broken = len(state.asked) <= state.failures
            if "missing" in self.path or (broken and state.status != 200):
                self.send_error(404 if "missing" in self.path else state.status)
                return
            start = int(asked.split("=")[1].rstrip("-")) if asked and state.ranges else 0
            if self.headers["If-Range"] not in (None, state.tag):
                start = 0
            if start >= len(state.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.body)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.body) - 1}/{len(state.body)}")
            self.send_header("Content-Length", str(len(state.body) - start))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            end = start + state.cut if broken and state.cut is not None else None
            self.wfile.write(state.body[start:end])
            if end is not None and state.stall:
                time.sleep(1.5)  # longer than the caller waits

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_whole_file_and_nothing_else(site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = download([f"{site.address}/file"], tmp_path / "new" / "file", md5=MD5, size=len(BODY))
    assert path.read_bytes() == BODY
    assert listing(path.parent) == ["file"]
    assert capfd.readouterr().err == ""  # no bar where there is no terminal


@pytest.mark.parametrize("progress", [True, False])
def test_bar_on_a_terminal(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    download([f"{site.address}/file"], tmp_path / "file", progress=progress)
    assert ("file: 100%" in terminal.getvalue()) == progress


def test_a_good_file_is_not_fetched_again_and_a_damaged_one_is(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for before, requests in ((BODY, 0), (b"damaged", 1)):
        path.write_bytes(before)
        download([f"{site.address}/file"], path, sha256=hashlib.sha256(BODY).hexdigest(), **FAST)
        assert path.read_bytes() == BODY
        assert len(site.asked) == requests


@pytest.mark.parametrize("checksum", [MD5, None])
def test_cut_line_is_resumed(site: Site, tmp_path: Path, checksum: str | None) -> None:
    site.cut = 150_000
    path = download([f"{site.address}/file"], tmp_path / "file", md5=checksum, attempts=1, **FAST)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in site.asked] == [None, "bytes=150000-", "bytes=300000-"]


def test_silent_line_is_resumed(site: Site, tmp_path: Path) -> None:
    site.cut, site.stall, site.failures = 150_000, True, 1
    path = download([f"{site.address}/file"], tmp_path / "file", timeout_seconds=0.7, backoff_seconds=0.01)
    assert path.read_bytes() == BODY
    assert site.asked[1] == ("/file", "bytes=150000-")


def test_a_second_call_continues_the_first(site: Site, tmp_path: Path) -> None:
    site.cut, site.failures = 50_000, 1
    with pytest.raises(DownloadError, match=r"cut after 50000 of 400000 bytes(.|\n)*file\.part keeps what arrived"):
        download([f"{site.address}/file"], tmp_path / "file", attempts=1, **FAST)
    assert download([f"{site.address}/file"], tmp_path / "file", attempts=1, **FAST).read_bytes() == BODY
    assert site.asked[1][1] == "bytes=50000-"
    assert listing(tmp_path) == ["file"]


def test_another_mirror_continues_when_a_checksum_is_known(site: Site, tmp_path: Path) -> None:
    site.cut, site.failures = 50_000, 1
    urls = [f"{site.address}/one", f"{site.address}/two"]
    assert download(urls, tmp_path / "file", md5=MD5, attempts=1, **FAST).read_bytes() == BODY
    assert site.asked == [("/one", None), ("/two", "bytes=50000-")]


def test_another_mirror_starts_anew_without_a_checksum(site: Site, tmp_path: Path) -> None:
    site.cut, site.failures = 50_000, 1
    urls = [f"{site.address}/one", f"{site.address}/two"]
    assert download(urls, tmp_path / "file", attempts=1, **FAST).read_bytes() == BODY
    assert site.asked[1] == ("/two", None)


def test_server_that_ignores_range(site: Site, tmp_path: Path) -> None:
    site.cut, site.failures, site.ranges = 150_000, 1, False
    assert download([f"{site.address}/file"], tmp_path / "file", **FAST).read_bytes() == BODY


@pytest.mark.parametrize("checksum", [True, False])
def test_file_that_changed_at_the_server(site: Site, tmp_path: Path, checksum: bool) -> None:
    path, part = tmp_path / "file", tmp_path / "file.part"
    part.write_bytes(b"old" * 1000)
    part.with_name("file.part.json").write_text(json.dumps({"url": f"{site.address}/file", "version": '"v0"'}))
    assert download([f"{site.address}/file"], path, md5=MD5 if checksum else None, **FAST).read_bytes() == BODY


def test_partial_file_of_unknown_origin(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"rubbish")
    assert download([f"{site.address}/file"], tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY
    assert [asked for _, asked in site.asked] == ["bytes=7-", None]  # continued, found damaged, fetched anew


@pytest.mark.parametrize("length", [400_000, 400_001])
def test_partial_file_that_is_whole_or_too_long(site: Site, tmp_path: Path, length: int) -> None:
    (tmp_path / "file.part").write_bytes((BODY + b"x")[:length])
    assert download([f"{site.address}/file"], tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY


@pytest.mark.parametrize("part", [os.urandom(300_000), os.urandom(500_000)], ids=["damaged", "too long"])
def test_progress_after_a_part_was_thrown_away_is_counted_from_the_start(
    site: Site, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "file.part").write_bytes(part)
    site.cut = 80_000
    path = download([f"{site.address}/file"], tmp_path / "file", md5=MD5, attempts=2, **FAST)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in site.asked][-4:] == [f"bytes={start}-" for start in range(80_000, 400_000, 80_000)]


def test_progress_after_a_part_of_unknown_origin_was_dropped_is_counted_from_the_start(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 300_000)
    site.cut = 80_000
    path = download([f"{site.address}/file"], tmp_path / "file", attempts=2, **FAST)
    assert path.read_bytes() == BODY
    assert site.asked[0] == ("/file", None)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_mirror_that_is_never_done_comes_to_an_end(site: Site, tmp_path: Path, ranges: bool) -> None:
    site.body, site.cut, site.ranges = os.urandom(len(BODY)), 150_000, ranges
    with pytest.raises(DownloadError, match="could not download file"):
        download([f"{site.address}/file"], tmp_path / "file", md5=MD5, attempts=2, **FAST)
    assert len(site.asked) < 20


@pytest.mark.parametrize("checksum", [{"md5": MD5}, {"sha256": hashlib.sha256(BODY).hexdigest()}])
def test_a_whole_part_is_used_without_a_line(tmp_path: Path, checksum: dict[str, str]) -> None:
    (tmp_path / "file.part").write_bytes(BODY)
    (tmp_path / "file.part.json").write_text("{}")
    path = download(["http://127.0.0.1:1/refused"], tmp_path / "file", attempts=1, **checksum, **FAST)
    assert path.read_bytes() == BODY
    assert listing(tmp_path) == ["file"]


def test_every_fault_is_listed_with_the_way_by_hand(site: Site, tmp_path: Path) -> None:
    site.body = b"not the file"
    urls = [f"{site.address}/missing", f"{site.address}/file", "http://127.0.0.1:1/refused"]
    with pytest.raises(DownloadError) as caught:
        download(urls, tmp_path / "file", md5=MD5, attempts=2, **FAST)
    lines = str(caught.value).splitlines()
    patterns = [
        "could not download file:",
        r"  http.*/missing: HTTP 404 Not Found",
        rf"  http.*/file: sent a damaged file, md5 is {hashlib.md5(site.body).hexdigest()} instead of {MD5}",
        r"  http.*/refused: no connection, .*refused",
        rf"Fetch it by hand and put it at {re.escape(str(tmp_path / 'file'))} \(md5 {MD5}\)\.",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line)
    assert listing(tmp_path) == []  # the damaged partial file is gone
    assert len(site.asked) == 2  # neither 404 nor a damaged whole file is asked for twice


def test_missing_on_the_first_mirror(site: Site, tmp_path: Path) -> None:
    urls = [f"{site.address}/missing", f"{site.address}/file"]
    assert download(urls, tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY


def test_an_address_that_cannot_be_asked_leaves_the_next_mirror(site: Site, tmp_path: Path) -> None:
    urls = [f"{site.address}/donn\u00e9es", f"{site.address}/file"]
    assert download(urls, tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY
    with pytest.raises(DownloadError, match="no address that can be asked"):
        download(urls[:1], tmp_path / "other", md5=MD5, **FAST)


def test_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.status, site.failures = 503, 2
    assert download([f"{site.address}/file"], tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY
    assert len(site.asked) == 3


def test_wrong_length_is_refused_before_it_is_fetched(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="offers 400000 bytes instead of 7"):
        download([f"{site.address}/file"], tmp_path / "file", size=7, **FAST)
    assert listing(tmp_path) == []


def test_a_full_disk_is_no_fault_of_the_mirror(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        download([f"{site.address}/file"], tmp_path / "file", md5=MD5, **FAST)
    assert len(site.asked) == 1


def test_two_callers_fetch_once(site: Site, tmp_path: Path) -> None:
    def fetch() -> None:
        download([f"{site.address}/file"], tmp_path / "file", md5=MD5, timeout_seconds=5)

    callers = [threading.Thread(target=fetch) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (tmp_path / "file").read_bytes() == BODY
    assert len(site.asked) == 1


def test_a_mounted_folder_is_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_bytes(BODY)
    urls = [(tmp_path / "absent").as_uri(), (tmp_path / "mirror").as_uri()]
    assert download(urls, tmp_path / "file", md5=MD5, **FAST).read_bytes() == BODY


def test_a_folder_in_the_place_of_the_file_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ValueError, match=r"file is a folder, and a file is to be downloaded there; move it"):
        download([(tmp_path / "mirror").as_uri()], tmp_path / "file", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"urls": "http://x"}, "got the string 'http://x'"),
        ({"urls": []}, r"urls=\[\] must hold addresses"),
        ({"urls": ["ftp://x"]}, r"urls=\['ftp://x'\] must hold addresses"),
        ({"md5": "c58f"}, "md5='c58f' must be 32 hexadecimal digits"),
        ({"sha256": MD5}, "sha256=.* must be 64 hexadecimal digits"),
        ({"attempts": 0}, "attempts=0 must be at least 1"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        download(**{"urls": ["http://127.0.0.1:1/"], "path": tmp_path / "file", **arguments})
    with pytest.raises(TypeError, match=r"attempts=2\.5 is a float; give an integer"):
        download(["http://127.0.0.1:1/"], tmp_path / "file", attempts=2.5)  # type: ignore[arg-type]
