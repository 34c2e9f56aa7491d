"""Random numbers: keyed by sample whatever the batch, of the right law, and states that can be put back."""

import dataclasses
import io
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.seeding import Draws, RngState, seed_everything


def many(seed: int = 0, epoch: int = 0, samples: int = 20_000) -> Draws:
    return Draws(seed, epoch, torch.arange(samples))


def global_numbers() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(-(2**70), 2**70),
    st.integers(0, 1000),
    st.lists(st.integers(0, 2**40), min_size=2, max_size=20, unique=True),
)
def test_a_sample_draws_the_same_numbers_in_any_batch(seed: int, epoch: int, samples: list[int]) -> None:
    def draw(chosen: list[int]) -> list[Tensor]:
        draws = Draws(seed, epoch, torch.tensor(chosen))
        return [draws.uniform(2, 3), draws.integers(0, 100), draws.bernoulli(0.5), draws.normal(2)]

    together, backwards, alone = draw(samples), draw(samples[::-1]), draw(samples[1:2])
    for whole, reverse, single in zip(together, backwards, alone, strict=True):
        assert torch.equal(whole, reverse.flip(0))
        assert torch.equal(whole[1:2], single)


def test_one_call_or_several_take_the_same_numbers() -> None:
    at_once = many().uniform(4)
    draws = many()
    assert torch.equal(at_once, torch.stack([draws.uniform() for _ in range(4)], 1))


def test_streams_of_seeds_epochs_and_samples_are_unrelated() -> None:
    base = many().uniform()
    others = [many(seed=1).uniform(), many(seed=-1).uniform(), many(epoch=1).uniform(), base.roll(1)]
    second = many()
    second.uniform()
    for other in [*others, second.uniform()]:
        correlation = float(torch.corrcoef(torch.stack([base, other]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(len(base))


def test_uniform_has_flat_bins_and_stays_inside() -> None:
    values = many().uniform(5)
    counts = torch.histc(values, 50, 0, 1)
    expected = values.numel() / 50
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert float(((counts - expected) ** 2 / expected).sum()) < 85  # chi-squared, 49 degrees: once in 1,000
    scaled = many().uniform(5, low=-3, high=5)
    torch.testing.assert_close(scaled, values * 8 - 3)


def test_integers_bernoulli_and_normal_follow_their_law() -> None:
    integers = many().integers(-2, 5, 3)
    assert integers.dtype == torch.int64
    assert torch.unique(integers).tolist() == list(range(-2, 5))
    shares = (integers + 2).flatten().bincount() / integers.numel()
    assert float((shares - 1 / 7).abs().max()) < 0.006
    assert float(many().bernoulli(0.3).float().mean()) == pytest.approx(0.3, abs=0.013)
    assert not many().bernoulli(0.0).any()
    assert many().bernoulli(1.0).all()
    normal = many(samples=50_000).normal()
    moments = [float((normal**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.12)
    assert normal.isfinite().all()


def test_shapes_and_dtypes() -> None:
    draws = Draws(0, 0, torch.tensor([3, 1]))
    assert len(draws) == 2
    assert draws.uniform().shape == draws.bernoulli(0.5).shape == (2,)
    assert draws.uniform(4, 5).shape == draws.normal(4, 5).shape == (2, 4, 5)
    assert draws.uniform().dtype == draws.normal().dtype == torch.float32
    assert draws.bernoulli(0.5).dtype == torch.bool
    assert Draws(0, 0, torch.zeros(0, dtype=torch.int64)).uniform(3).shape == (0, 3)


def test_at_epoch_starts_fresh_streams_of_the_same_samples() -> None:
    draws = many(seed=5, epoch=7)
    draws.uniform(3)
    assert torch.equal(draws.at_epoch(2).uniform(), many(seed=5, epoch=2).uniform())
    assert torch.equal(draws.at_epoch(7).uniform(), many(seed=5, epoch=7).uniform())


def test_random_follows_the_global_seed() -> None:
    torch.manual_seed(0)
    first, second = Draws.random(8).uniform(), Draws.random(8).uniform()
    torch.manual_seed(0)
    assert torch.equal(first, Draws.random(8).uniform())
    assert not torch.equal(first, second)
    assert len(set(first.tolist())) == 8


def test_integers_refuses_an_impossible_span() -> None:
    with pytest.raises(ValueError, match=r"integers\(low=3, high=3\) has nothing to draw from; high must exceed low"):
        many().integers(3, 3)
    with pytest.raises(ValueError, match=r"spans more than the 2\*\*32 values"):
        many().integers(0, 2**32 + 1)
    assert int(many().integers(0, 2**32).max()) > 2**31


def test_seed_everything_repeats_every_generator() -> None:
    assert seed_everything(123) == 123
    first = global_numbers()
    seed_everything(123)
    assert global_numbers() == first
    seed_everything(124)
    assert global_numbers() != first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_everything_names_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed} is out of range; give an integer from 0 to 4294967295"):
        seed_everything(seed)


@pytest.mark.parametrize(("seed", "kind"), [("0", "str"), (1.5, "float"), (True, "bool"), (None, "NoneType")])
def test_a_seed_that_is_no_integer_is_named(seed: Any, kind: str) -> None:
    for use in (seed_everything, lambda value: Draws(value, 0, torch.arange(3))):
        with pytest.raises(TypeError, match=f"seed={seed!r} is a {kind}; give an integer"):
            use(seed)


def test_a_seed_may_come_from_numpy() -> None:
    assert type(seed_everything(np.int64(3))) is int
    assert torch.equal(Draws(np.int64(-3), 0, torch.arange(5)).uniform(), many(-3, samples=5).uniform())


def test_deterministic_asks_for_deterministic_kernels() -> None:
    try:
        seed_everything(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_states_of_more_gpus_than_there_are_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(device))
    dataclasses.replace(RngState.capture(), torch_cuda=[torch.zeros(16, dtype=torch.uint8)] * 8).restore()
    assert restored == [0, 1]


def test_a_state_survives_a_checkpoint_file() -> None:
    seed_everything(9)
    np.random.randn()  # leaves a second normal number in store
    random.gauss(0, 1)  # so does Python's
    state = RngState.capture()
    expected = global_numbers()
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    seed_everything(1)
    RngState.from_state_dict(loaded).restore()
    assert global_numbers() == expected
    state.restore()
    assert global_numbers() == expected
