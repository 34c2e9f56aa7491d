"""Loader: every sample once over all shards, the same pixels whatever the batch, a position that is one number."""

import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import v2

from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import Draws, RngState
from cifarkit.transforms import Compose, CutMix, Mixup, Normalize, RandomCrop, RandomHorizontalFlip


def numbered(count: int, size: int = 1) -> ImageDataset:
    """Images whose label is their index, random pixels."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(count))
    return ImageDataset(pixels.byte(), torch.arange(count), tuple(map(str, range(count))))


def labels_of(loader: Loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [label for batch in batches for label in batch]


def noise(images: Tensor, draws: Draws | None = None) -> Tensor:
    assert draws is not None
    return images + draws.uniform(*images.shape[1:])


def pixels_of(loader: Loader) -> dict[int, Tensor]:
    return {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}


def assert_same_pixels(first: dict[int, Tensor], second: dict[int, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[label], second[label]) for label in first)


def worker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cifarkit-loader")]


# Order and shards.


def test_without_a_transform_images_are_float_in_0_to_1() -> None:
    data = numbered(10, size=4)
    images, labels = next(iter(Loader(data, 10)))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(images, data.images.float() / 255)
    assert labels.tolist() == list(range(10))


def test_the_order_is_new_each_epoch_and_repeatable() -> None:
    loader, again, other = (Loader(numbered(30), 8, shuffle=True, seed=seed) for seed in (3, 3, 4))
    epochs = [flat(labels_of(loader)) for _ in range(3)]
    assert epochs == [flat(labels_of(again)) for _ in range(3)]
    assert len({tuple(order) for order in [*epochs, flat(labels_of(other))]}) == 4
    assert all(sorted(order) == list(range(30)) for order in epochs)
    assert labels_of(Loader(numbered(5), 2)) == [[0, 1], [2, 3], [4]]


def test_the_global_random_state_neither_matters_nor_moves() -> None:
    def train() -> list[int]:
        return flat(labels_of(Loader(numbered(20, 4), 8, shuffle=True, transform=Compose([RandomCrop(4, 1)]))))

    torch.manual_seed(0)
    before, first = torch.get_rng_state(), train()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert train() == first


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_shards_are_disjoint_and_complete(count: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    if count < world_size:
        return
    data = numbered(count)
    options: dict[str, Any] = {"shuffle": True, "drop_last": drop_last, "world_size": world_size}
    ranks = [Loader(data, batch_size, rank=rank, **options) for rank in range(world_size)]
    batches = [labels_of(loader) for loader in ranks]
    assert {len(loader) for loader in ranks} == {len(own) for own in batches} == {len(batches[0])}
    seen = [label for own in batches for label in flat(own)]
    step = batch_size * world_size
    assert len(set(seen)) == len(seen) == (count // step * step if drop_last else count)
    assert all(batch for own in batches for batch in own)  # no rank is left without samples
    if drop_last:
        assert {len(batch) for own in batches for batch in own} <= {batch_size}


@pytest.mark.parametrize(("count", "batch_size", "world_size"), [(24, 4, 2), (29, 4, 3), (7, 8, 4), (25, 2, 5)])
def test_ranks_together_are_one_process_with_a_bigger_batch(count: int, batch_size: int, world_size: int) -> None:
    data = numbered(count)
    alone = labels_of(Loader(data, batch_size * world_size, shuffle=True))
    ranks = [Loader(data, batch_size, shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [sorted(flat(list(shares))) for shares in zip(*map(labels_of, ranks), strict=True)]
    assert together == [sorted(batch) for batch in alone]


def test_a_tail_smaller_than_the_ranks_joins_the_batch_before() -> None:
    ranks = [labels_of(Loader(numbered(9), 2, rank=rank, world_size=2)) for rank in range(2)]
    assert ranks == [[[0, 2], [4, 6, 8]], [[1, 3], [5, 7]]]


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    loader = Loader(numbered(11), 4, drop_last=True)
    assert [len(batch) for batch in labels_of(loader)] == [4, 4]
    assert len(loader) == 2
    assert len(Loader(numbered(3), 4, drop_last=True)) == 0
    assert len(Loader(numbered(12), 4, drop_last=True)) == len(Loader(numbered(12), 4)) == 3


# Pixels.


def test_a_sample_has_the_same_pixels_in_any_batch_or_shard() -> None:
    data = numbered(23, size=4)
    transform = Compose([RandomCrop(4, padding=2), RandomHorizontalFlip(), noise])
    reference = pixels_of(Loader(data, 23, transform=transform, shuffle=True))
    for batch_size in (1, 5, 8):
        assert_same_pixels(pixels_of(Loader(data, batch_size, transform=transform, shuffle=True)), reference)
    shards: dict[int, Tensor] = {}
    for rank in range(3):
        shards |= pixels_of(Loader(data, 4, transform=transform, shuffle=True, rank=rank, world_size=3))
    assert_same_pixels(shards, reference)
    assert_same_pixels(pixels_of(Loader(data, 4, transform=transform)), reference)  # nor does the order matter


def test_pixels_change_from_epoch_to_epoch() -> None:
    loader = Loader(numbered(6, size=4), 4, transform=noise)
    first, second = pixels_of(loader), pixels_of(loader)
    assert all(not torch.equal(first[label], second[label]) for label in first)


def test_prefetching_changes_nothing() -> None:
    data = numbered(20, size=4)
    loader = Loader(data, 8, transform=noise, shuffle=True, seed=2)
    order = torch.tensor(flat(labels_of(Loader(data, 20, shuffle=True, seed=2))))
    expected = [noise(data.images[part].float() / 255, Draws(2, 0, part)) for part in torch.split(order, 8)]
    for (images, _), by_hand in zip(loader, expected, strict=True):
        assert torch.equal(images, by_hand)


def test_the_next_batch_is_prepared_meanwhile() -> None:
    prepared = threading.Semaphore(0)

    def slow(images: Tensor, draws: Draws) -> Tensor:
        prepared.release()
        return images

    batches = iter(Loader(numbered(6), 2, transform=slow))
    next(batches)
    assert prepared.acquire(timeout=5)
    assert prepared.acquire(timeout=5)  # the second batch, which nobody has asked for yet
    assert len(list(batches)) == 2


@pytest.mark.parametrize("keyed", [True, False])
def test_a_transform_is_called_with_draws_only_if_it_takes_them(keyed: bool) -> None:
    seen: list[Any] = []

    def with_draws(images: Tensor, draws: Draws) -> Tensor:
        seen.append(draws.samples.tolist())
        return images

    def without(images: Tensor) -> Tensor:
        seen.append(threading.current_thread() is threading.main_thread())
        return images

    list(Loader(numbered(5), 3, transform=with_draws if keyed else without))
    # A foreign transform may use the global random states, so it must not run beside the model.
    assert seen == ([[0, 1, 2], [3, 4]] if keyed else [True, True])


def test_a_transform_with_the_global_random_state_repeats_beside_a_model_that_uses_it() -> None:
    def random_shift(images: Tensor) -> Tensor:
        return images + torch.rand(())

    def epoch() -> list[float]:
        torch.manual_seed(0)
        loader = Loader(numbered(40, 4), 2, transform=random_shift)
        return [float(images.mean() * torch.rand(())) for images, _ in loader]

    assert epoch() == epoch()


def global_noise(images: Tensor) -> Tensor:
    assert threading.current_thread() is threading.main_thread()  # two threads would race for the global state
    return images + torch.rand_like(images)


def test_a_composed_transform_with_the_global_random_state_resumes_bit_for_bit() -> None:
    def make() -> Loader:
        transform = Compose([RandomHorizontalFlip(), Compose([global_noise])])
        return Loader(numbered(40, 4), 4, transform=transform, shuffle=True)

    def rest(batches: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [images * torch.rand(()) for images, _ in batches]  # a model with dropout draws too

    loader, resumed = make(), make()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    position, state = loader.state_dict(), RngState.capture()
    expected = rest(batches)
    state.restore()
    resumed.load_state_dict(position)
    got = rest(iter(resumed))
    assert len(got) == 7
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_transform_that_says_it_is_keyed_is_prefetched() -> None:
    class Where:
        keyed = True
        threads: ClassVar[list[str]] = []

        def __call__(self, images: Tensor) -> Tensor:
            self.threads.append(threading.current_thread().name)
            return images

    list(Loader(numbered(6), 2, transform=Where()))
    assert len(Where.threads) == 3
    assert all(name.startswith("cifarkit-loader") for name in Where.threads)


def test_a_module_gets_the_draws_its_forward_takes() -> None:
    class Noise(nn.Module):
        def forward(self, images: Tensor, draws: Draws | None = None) -> Tensor:
            return noise(images, draws)

    data = numbered(9, 2)
    assert_same_pixels(pixels_of(Loader(data, 4, transform=Noise())), pixels_of(Loader(data, 4, transform=noise)))


def test_stateless_transforms_get_two_workers_and_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(numbered(40), 4, transform=Compose([RandomHorizontalFlip()]), shuffle=True)
    monkeypatch.setattr(loader, "_workers", 1)
    alone = list(loader.copy())
    monkeypatch.setattr(loader, "_workers", 2)
    together = list(loader.copy())
    assert Loader(numbered(4), 2, transform=lambda images, draws: images)._workers == 1
    assert all(
        torch.equal(a, b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_only_the_worker_is_held_to_one_core() -> None:
    counts: dict[str, int] = {}

    def count(name: str) -> None:
        counts[name] = torch.get_num_threads()

    def transform(images: Tensor, draws: Draws) -> Tensor:
        count("worker")
        return images

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in Loader(numbered(6), 2, transform=transform):
            user = threading.Thread(target=count, args=("thread of the user",))
            user.start()
            user.join()
            count("main")
        assert counts == {"worker": 1, "thread of the user": 3, "main": 3}
    finally:
        torch.set_num_threads(before)


def test_torchvision_transforms_work() -> None:
    data = numbered(9, size=8)
    transform = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.Normalize([0.5] * 3, [0.2] * 3)])
    with pytest.warns(UserWarning, match="same draw"):
        images = torch.cat([images for images, _ in Loader(data, 4, transform=transform)])
    assert images.shape == (9, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of one that draws nothing
        flip = Loader(data, 9, transform=v2.RandomHorizontalFlip(p=1.0))
    with pytest.warns(UserWarning, match="same draw"):
        Loader(data, 9, transform=nn.Sequential(v2.RandomVerticalFlip()))
    assert torch.equal(next(iter(flip))[0], data.images.flip(3).float() / 255)


def test_a_transform_that_takes_uint8_gets_it() -> None:
    class Probe:
        def __init__(self, accepts_uint8: bool) -> None:
            self.accepts_uint8, self.seen = accepts_uint8, torch.float64

        def __call__(self, images: Tensor) -> Tensor:
            self.seen = images.dtype
            return images

    data = numbered(4)
    for accepts, dtype in ((True, torch.uint8), (False, torch.float32)):
        probe = Probe(accepts)
        images, _ = next(iter(Loader(data, 4, transform=probe)))
        assert probe.seen == dtype
        assert torch.equal(images, data.images.float() / 255)


def test_a_builtin_without_a_signature_is_a_transform() -> None:
    images, _ = next(iter(Loader(numbered(4), 4, transform=torch.neg)))
    assert float(images.max()) <= 0


@pytest.mark.parametrize("fail_at", [0, 1, 2])
@pytest.mark.parametrize("keyed", [True, False])
def test_an_exception_in_a_transform_surfaces_and_leaves_no_thread(fail_at: int, keyed: bool) -> None:
    calls: list[int] = []

    def fail(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == fail_at + 1:
            raise ZeroDivisionError("bad pixel")
        return images

    def fail_with_draws(images: Tensor, draws: Draws) -> Tensor:
        return fail(images)

    loader = Loader(numbered(6), 2, transform=fail_with_draws if keyed else fail)
    seen: list[Tensor] = []
    with pytest.raises(ZeroDivisionError, match="bad pixel"):
        seen.extend(labels for _, labels in loader)
    assert len(seen) == fail_at
    assert worker_threads() == []
    assert loader.epoch == 0
    assert len(list(loader)) == 3  # and the loader is as good as new


# Position.


def test_the_epoch_advances_only_when_used_up() -> None:
    loader = Loader(numbered(6), 2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
        assert loader.epoch == 0
    assert next(batches, None) is None
    assert loader.epoch == 1
    for _ in loader:
        break
    assert loader.epoch == 1
    assert loader.state_dict()["samples"] == 2  # where it was broken off


def test_a_look_at_the_first_batch_leaves_no_trace() -> None:
    loader, untouched = (Loader(numbered(10, 2), 4, shuffle=True, transform=noise) for _ in range(2))
    for _ in range(3):
        next(iter(loader))
        assert worker_threads() == []
    for _ in range(2):
        for (images, labels), (expected, expected_labels) in zip(loader, untouched, strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


def test_an_iteration_left_early_starts_again_unless_an_epoch_is_set() -> None:
    loader, whole = (Loader(numbered(10), 4, shuffle=True, seed=1) for _ in range(2))
    epochs = [labels_of(whole) for _ in range(3)]
    assert [[labels.tolist() for _, labels in islice(loader, 2)] for _ in range(2)] == [epochs[0][:2]] * 2
    for epoch in (1, 2, 0):
        loader.set_epoch(epoch)
        assert (loader.epoch, loader.position) == (epoch, 0)
        assert [labels.tolist() for _, labels in islice(loader, 2)] == epochs[epoch][:2]
    loader.load_state_dict(loader.state_dict())  # in the middle of epoch 0
    loader.set_epoch(2)
    assert labels_of(loader) == epochs[2]
    assert loader.epoch == 3


def test_a_wrong_epoch_is_named() -> None:
    with pytest.raises(ValueError, match="epoch=-1 must be at least 0"):
        Loader(numbered(4), 2).set_epoch(-1)
    with pytest.raises(TypeError, match=r"epoch=0\.5 is a float; give an integer"):
        Loader(numbered(4), 2).set_epoch(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("taken", range(6))
@pytest.mark.parametrize("make_transform", [lambda: noise, lambda: None], ids=["noise", "none"])
def test_a_saved_position_gives_the_next_batch(taken: int, make_transform: Callable[[], Any]) -> None:
    def make(batch_size: int = 4) -> Loader:
        return Loader(numbered(20, 2), batch_size, shuffle=True, transform=make_transform())

    loader, uninterrupted = make(), make()
    list(loader), list(uninterrupted)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    expected = list(uninterrupted)[taken:] + list(uninterrupted)
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    got = list(resumed) + list(resumed)
    assert len(got) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(got, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
    assert resumed.epoch == 3


def test_a_position_holds_for_another_batch_size_and_number_of_ranks() -> None:
    data = numbered(24, 2)
    loader = Loader(data, 8, shuffle=True, transform=noise)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}
    for batch_size, world_size in ((4, 1), (2, 1), (1, 4), (4, 2)):
        pixels: dict[int, Tensor] = {}
        for rank in range(world_size):
            resumed = Loader(data, batch_size, shuffle=True, transform=noise, rank=rank, world_size=world_size)
            resumed.load_state_dict(state)
            pixels |= pixels_of(resumed)
        assert_same_pixels(pixels, rest)


@pytest.mark.parametrize(("before", "after"), [(5, 3), (3, 5), (4, 20), (5, 5)])
def test_the_end_of_an_epoch_is_one_position_for_every_batch_size(before: int, after: int) -> None:
    loader = Loader(numbered(20), before, shuffle=True, drop_last=True)
    batches = iter(loader)
    for _ in range(len(loader)):  # the position of a run that is saved between its last update and its validation
        next(batches)
    resumed = Loader(numbered(20), after, shuffle=True, drop_last=True)
    resumed.load_state_dict(loader.state_dict())
    assert resumed.position == len(resumed)
    assert list(resumed) == []
    assert (resumed.epoch, resumed.position, len(list(resumed))) == (1, 0, len(resumed))


def test_an_end_behind_dropped_samples_is_still_taken_as_it_was_once_saved() -> None:
    state = Loader(numbered(20), 3, drop_last=True).state_dict() | {"samples": 18}
    resumed = Loader(numbered(20), 3, drop_last=True)
    resumed.load_state_dict(state)
    assert resumed.position == len(resumed)


def test_a_position_is_plain_numbers() -> None:
    assert Loader(numbered(3), 2, seed=5).state_dict() == {
        "epoch": 0,
        "samples": 0,
        "seed": 5,
        "shuffle": False,
        "drop_last": False,
        "samples_in_dataset": 3,
    }


def test_a_copy_moves_on_its_own() -> None:
    loader = Loader(numbered(8), 2)
    batches = iter(loader)
    next(batches)
    assert labels_of(loader.copy()) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert loader.state_dict()["samples"] == 2
    assert [labels.tolist() for _, labels in batches] == [[2, 3], [4, 5], [6, 7]]
    assert loader.epoch == 1


def test_a_position_that_does_not_fit_is_refused() -> None:
    state = Loader(numbered(10), 4).state_dict() | {"samples": 4}
    with pytest.raises(ValueError, match=r"4 samples into .* falls inside a batch; batch_size \* world_size = 3"):
        Loader(numbered(10), 3).load_state_dict(state)
    with pytest.raises(ValueError, match="the saved position has samples_in_dataset=10, this loader 11"):
        Loader(numbered(11), 4).load_state_dict(state)
    with pytest.raises(ValueError, match="has seed=0, this loader 1"):
        Loader(numbered(10), 4, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="has shuffle=False, this loader True"):
        Loader(numbered(10), 4, shuffle=True).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": -3}, "batch_size=-3 must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be at least 0 and below world_size=2"),
        ({"rank": -1}, "rank=-1 must be at least 0"),
        ({"world_size": 0}, "below world_size=0"),
        ({"world_size": 6}, "dataset has 5 images, too few for world_size=6"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(numbered(5), **({"batch_size": 2} | options))


@pytest.mark.parametrize("name", ["batch_size", "seed", "rank", "world_size"])
@pytest.mark.parametrize("value", [16.0, "16", True])
def test_numbers_must_be_integers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}={value!r} is a {type(value).__name__}; give an integer"):
        Loader(numbered(5), **({"batch_size": 2} | {name: value}))
    assert len(Loader(numbered(5), np.int64(2), seed=np.int32(3))) == 3


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ([RandomCrop(2)], r"transform is \[RandomCrop.*\]; give a callable of images, as in Compose\(\["),
        (3, "transform is 3; give a callable of images"),
        (Normalize, "transform is the class Normalize; give a callable"),
        (Mixup(1.0), r"transform is Mixup\(alpha=1\.0\), which mixes labels too; give it to ClassificationTask\(mix="),
        (CutMix(1.0), r"transform is CutMix\(alpha=1\.0\), which mixes labels too"),
    ],
)
def test_what_is_no_transform_is_named(transform: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Loader(numbered(5), 2, transform=transform)


def test_devices_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': PyTorch finds no CUDA device here; use 'cpu'"):
        Loader(numbered(5), 2, device="cuda")


def test_reading_the_position_takes_no_time_that_grows_with_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(numbered(8), 2)
    monkeypatch.setattr(Loader, "_batch_bounds", lambda self: pytest.fail("the bounds are computed again"))
    assert [loader.state_dict()["samples"] for _ in loader] == [2, 4, 6, 8]
    assert len(loader) == 4


@pytest.mark.parametrize("dataset", [[1, 2, 3], np.zeros((4, 3, 2, 2)), None])
def test_another_type_of_dataset_is_refused(dataset: Any) -> None:
    with pytest.raises(TypeError, match=f"dataset must be an ImageDataset; got {type(dataset).__name__}"):
        Loader(dataset, 2)
