"""The fuzzer of the file readers runs, and finds nothing in a bounded time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarkit.data import load_npz, read_images
from cifarkit.generation.folder import read_picture
from cifarkit.training import load_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("reader", "start"),
    [
        (load_npz, b"PK\x03\x04"),
        (load_checkpoint, b"PK\x03\x04"),
        (read_images, b"\x89PNG\r\n\x1a\n"),
        (read_images, b"GIF89a"),
        (read_images, b"II*\0"),
    ],
)
def test_bytes_of_any_kind_are_refused(reader: object, start: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "any.file"

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.binary(max_size=300))
    def refuses(rest: bytes) -> None:
        path.write_bytes(start + rest)
        with pytest.raises(ValueError, match=r"any\.file"):
            reader(path)  # type: ignore[operator]

    refuses()


def test_a_damaged_picture_of_an_export_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert read_picture(tmp_path / "a.png") is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzzer needs fork")
def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/fuzz_readers.py", "--tiny", "--seconds", "20", "--findings", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaign needs fork")
def test_a_tiny_campaign_loses_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/crash_campaign.py", "--tiny", "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # all resumed, and bit-identical in the end
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ") and line.count("|") == 11]
    assert len(lines) == 8  # the heads and six faults
    for line in lines[2:]:
        _, _, times, went_on, *_, silently, _, _, _ = (cell.strip() for cell in line.split("|"))
        assert (went_on, silently) == (f"{times} of {times}", "0")
