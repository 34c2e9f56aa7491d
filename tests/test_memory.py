"""The allocator keeps what it was given, where there is one that can be told to."""

import subprocess
import sys

import pytest

from cifarkit.memory import keep_freed_memory

PROGRAM = """
import resource, torch
from cifarkit.memory import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    torch.ones(3_000_000)  # 12 MB, 2,930 pages
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_second_call_only_repeats_the_answer() -> None:
    assert keep_freed_memory() is keep_freed_memory()


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc to tell")
def test_freed_pages_are_used_again_without_a_fault() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, faults = result.stdout.split()
    assert kept == "True"
    assert int(faults) < 20 * 2930  # 200 * 2,930 if every tensor were mapped anew


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory.__wrapped__() is False


def test_the_environment_leaves_the_allocator_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARKIT_KEEP_MEMORY", "0")
    assert keep_freed_memory.__wrapped__() is False
