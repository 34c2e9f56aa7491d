"""Any entry of a run's checkpoint replaced by any value: the run goes on, or says what is wrong, in plain letters."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run_states import StopInside, fit, make_loader, make_task

from cifarkit.training import NonFiniteLossError
from cifarkit.training.archive import load_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:fp16-mixed is meant for GPUs",
    "ignore:the resumed run may not be equal",
    "ignore:.*holds the checkpoints of another run",
)
NUMBERS = [-1, 0, 1, 2.5, 10**40, -(10**40), 10**400, 2**62, math.nan, math.inf, -math.inf, True, 1j]
THINGS = ["", "x\x1b[2J", b"x", None, [], {}, (), [1], [math.nan], {"a": 1}, {1}, torch.float32, torch.Size([1])]
TENSORS = [
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(2, dtype=torch.long),
    torch.zeros(3, dtype=torch.complex64),
    torch.tensor([True]),
    torch.zeros(1).expand(8, 8),
    torch.full((2, 3, 3, 3), math.nan),
    torch.eye(3).to_sparse(),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every entry, those of tuples included, but for the many numbers of random states."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield (*path, key)
        if key not in ("python", "numpy"):
            yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with one entry replaced."""
    if not path:
        return new
    key, *rest = path
    changed = {**value} if isinstance(value, dict) else [*value]
    changed[key] = put(value[key], tuple(rest), new)
    return changed if isinstance(value, dict | list) else tuple(changed)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_strange_value_anywhere_is_named_or_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    fit(make_task(), make_loader(), tmp_path / "run", StopInside())
    state = load_checkpoint(tmp_path / "run" / "last.pt")

    @settings(max_examples=80, deadline=None, database=None)
    @given(st.sampled_from([*places(state)]), st.sampled_from([*NUMBERS, *THINGS, *TENSORS]))
    def is_named_or_harmless(path: tuple[Any, ...], new: Any) -> None:
        write_checkpoint(put(state, path, new), tmp_path / "changed.pt")
        try:
            fit(make_task(), make_loader(), tmp_path / "again", resume=tmp_path / "changed.pt")
        except (ValueError, NonFiniteLossError) as error:
            assert str(error).isprintable(), (path, new)  # noqa: PT017  (no error is allowed too)

    is_named_or_harmless()
