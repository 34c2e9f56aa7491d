"""Loaders as the loop needs them: a look at one begins at its first batch, and does not move it."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cifarkit import data
from cifarkit.training.loading import generator_states, undisturbed
from cifarkit.training.position import Position


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


def lasting_workers() -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(torch.arange(8.0)), 2, shuffle=True, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize("batches", [0, 2])  # at an epoch's beginning, and inside
def test_workers_that_last_are_warned_about_where_they_cannot_be_continued(batches: int) -> None:
    earlier, later = Position(lasting_workers()), Position(lasting_workers())
    later.load_state_dict(earlier.state_dict(batches))
    with pytest.warns(UserWarning, match="may not be equal bit for bit: a DataLoader with persistent_workers=True"):
        later.open(1, batches)


def test_workers_that_last_are_not_warned_about_from_the_first_epoch_on() -> None:
    position = Position(lasting_workers())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2):
            assert len(list(position.open(epoch, 0))) == 4
