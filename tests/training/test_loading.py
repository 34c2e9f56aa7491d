"""Loaders as the loop needs them: a look at one begins at its first batch, and does not move it."""

import pytest
import torch

from cifarkit import data
from cifarkit.training.loading import generator_states, undisturbed


def make_loader(kind: str) -> data.Loader | data.MixedLoader:
    loader = data.Loader(data.shapes(40), 10)
    return loader if kind == "plain" else data.MixedLoader(loader, data.shapes(40), 0.5)


@pytest.mark.parametrize("kind", ["plain", "mixed"])
@pytest.mark.parametrize("samples", [20, 40])  # used up, of 40
def test_a_copy_begins_with_the_epoch(kind: str, samples: int) -> None:
    loader = make_loader(kind)
    position = {**loader.state_dict(), "samples": samples}
    loader.load_state_dict(position)
    with undisturbed(loader) as batches:
        assert torch.equal(next(iter(batches))[0], next(iter(make_loader(kind)))[0])
    assert loader.state_dict() == position


def test_a_list_is_looked_at_as_it_is() -> None:
    with undisturbed([1, 2]) as batches:
        assert list(batches) == [1, 2]
    assert generator_states([1, 2]) == []
