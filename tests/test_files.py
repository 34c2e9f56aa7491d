"""Files appear whole or not at all."""

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from cifarkit.files import atomic_file, start_writeback, write_atomically


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "state.pt", Path.replace
    write_atomically(b"old", path)

    def watched(source: Path, target: Path) -> Path:
        assert path.read_bytes() == b"old"
        assert source.parent == target.parent  # a rename across file systems would not be atomic
        assert source.read_bytes() == b"new"
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_atomically(b"new", path)
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="folders are flushed on POSIX systems only")
@pytest.mark.parametrize(("number", "harmless"), [(errno.EINVAL, True), (errno.EBADF, True), (errno.EIO, False)])
def test_a_file_system_that_does_not_flush_folders(
    number: int, harmless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", flush)
    with nullcontext() if harmless else pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(b"new", tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.pt"
    write_atomically(b"old", path)
    with pytest.raises(TypeError, match="bytes-like"), atomic_file(path) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [item.name for item in path.parent.iterdir()] == ["state.pt"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no such hints")
def test_the_disk_is_told_to_begin_with_all_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def note(descriptor: int, start: int, length: int, advice: int) -> None:
        told.append((os.fstat(descriptor).st_size, start, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", note)
    with atomic_file(tmp_path / "note") as file:
        for text in (b"abc", b"de"):
            file.write(text)
            start_writeback(file)
    assert told == [(size, 0, 0, os.POSIX_FADV_DONTNEED) for size in (3, 5)]
    assert (tmp_path / "note").read_bytes() == b"abcde"


def test_a_file_system_that_takes_no_hints_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    with atomic_file(tmp_path / "note") as file:
        file.write(b"abc")
        start_writeback(file)
    assert (tmp_path / "note").read_bytes() == b"abc"
