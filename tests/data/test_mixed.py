"""MixedLoader: the share in every batch, one pass over the real images, a position that is one number."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cifarkit.data import FeatureLoader, ImageDataset, Loader
from cifarkit.data.mixed import MixedLoader
from cifarkit.seeding import Draws
from cifarkit.training import ClassificationTask, ModelCheckpoint, Trainer
from cifarkit.training.loading import require_batches
from cifarkit.transforms import ByEpoch, Compose, RandomCrop


def numbered(count: int, first: int, size: int = 2, classes: int = 200) -> ImageDataset:
    """Images whose label is their number: real ones from 0, generated ones from 100."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(first))
    return ImageDataset(pixels.byte(), torch.arange(first, first + count), tuple(map(str, range(classes))))


REAL, FAKE = numbered(20, 0), numbered(9, 100)


def mixed(batch_size: int = 8, share: float = 0.25, **options: Any) -> MixedLoader:
    own = {name: options.pop(name) for name in ("transform", "tell_apart") if name in options}
    return MixedLoader(Loader(REAL, batch_size, **{"shuffle": True} | options), FAKE, share, **own)


def labels_of(loader: MixedLoader) -> list[list[int]]:
    return [batch[1].tolist() for batch in loader]


def test_a_plain_loader_refuses_the_position_of_a_mixed_one() -> None:
    with pytest.raises(ValueError, match=r"the saved position is of a MixedLoader with share=0\.25; give one again"):
        Loader(REAL, 8, shuffle=True).load_state_dict(mixed().state_dict())


def test_a_transform_of_its_own_is_warned_of() -> None:
    flip = v2.RandomHorizontalFlip()
    with pytest.warns(UserWarning, match="RandomHorizontalFlip"):
        loader = Loader(REAL, 8, transform=flip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the loader has warned of it
        MixedLoader(loader, FAKE, 0.25)
    with pytest.warns(UserWarning, match="RandomHorizontalFlip"):
        MixedLoader(Loader(REAL, 8), FAKE, 0.25, transform=flip)


def test_every_batch_has_its_share_the_real_ones_first() -> None:
    batches = labels_of(mixed())
    assert [[label >= 100 for label in batch] for batch in batches[:3]] == [[False] * 6 + [True] * 2] * 3
    assert [label >= 100 for label in batches[3]] == [False, False, True]  # the short batch keeps the proportion


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 4), (0.7, 6), (0.99, 7)])
def test_both_kinds_are_in_every_batch(share: float, expected: int) -> None:
    assert {sum(label >= 100 for label in batch) for batch in labels_of(mixed(share=share, drop_last=True))} == {
        expected
    }


def test_an_epoch_is_one_pass_over_the_real_images() -> None:
    loader = mixed(share=0.5)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert sorted(label for batch in labels_of(loader) for label in batch if label < 100) == list(range(20))
    assert len(loader) == 5


def test_an_epoch_can_be_set() -> None:
    loader, whole = mixed(), mixed()
    epochs = [labels_of(whole) for _ in range(3)]
    next(iter(loader))
    for epoch in (2, 0, 1):
        loader.set_epoch(epoch)
        assert labels_of(loader) == epochs[epoch]


def test_the_generated_ones_go_round() -> None:
    loader = mixed(batch_size=4, share=0.75)
    rounds = [label for _ in range(3) for batch in labels_of(loader) for label in batch if label >= 100]
    assert all(sorted(rounds[start : start + 9]) == list(range(100, 109)) for start in range(0, len(rounds) - 8, 9))
    assert rounds[:9] != rounds[9:18]


def test_the_flag_says_which_are_generated() -> None:
    for images, labels, generated in mixed(tell_apart=True):
        assert len(images) == len(labels)
        assert torch.equal(generated, labels >= 100)


def test_pixels_are_those_of_the_images() -> None:
    both = {label: image for dataset in (REAL, FAKE) for image, label in dataset}
    for images, labels in mixed():
        assert torch.equal(images, torch.stack([both[int(label)] for label in labels]).float() / 255)


def test_generated_images_may_have_a_transform_of_their_own() -> None:
    def black(images: Tensor) -> Tensor:
        return images * 0

    images, labels = next(iter(mixed(transform=black)))
    assert not images[labels >= 100].any()
    assert images[labels < 100].any()


def test_real_and_generated_images_are_augmented_apart() -> None:
    seen: list[Tensor] = []

    def note(images: Tensor, draws: Draws) -> Tensor:
        seen.append(draws.at_epoch(0).uniform())
        return images

    list(MixedLoader(Loader(numbered(4, 0), 4, transform=note), numbered(2, 0), 0.5))
    assert torch.cat(seen).unique().numel() == 4 + 2


@pytest.mark.parametrize("fakes", [4, 60])  # which go round several times an epoch, or once in several epochs
def test_both_kinds_change_their_size_at_the_same_epoch(fakes: int) -> None:
    sizes = ByEpoch({0: RandomCrop(4, padding=0), 2: RandomCrop(6, padding=0)})
    loader = MixedLoader(Loader(numbered(20, 0, 8), 8, transform=sizes), numbered(fakes, 100, 8), 0.5)
    assert [{tuple(images.shape[2:]) for images, _ in loader} for _ in range(4)] == [{(4, 4)}] * 2 + [{(6, 6)}] * 2
    loader.set_epoch(2)
    loader.load_state_dict(loader.state_dict())
    assert next(iter(loader))[0].shape[2:] == (6, 6)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_saved_position_gives_the_same_rest(stop: int) -> None:
    transform = Compose([RandomCrop(2, padding=1)])
    loader = MixedLoader(Loader(REAL, 8, shuffle=True, transform=transform), FAKE, 0.4)
    list(loader)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    state, rest = loader.state_dict(), [*batches, *loader]
    again = MixedLoader(Loader(REAL, 8, shuffle=True, transform=transform), FAKE, 0.4)
    again.load_state_dict(state)
    assert again.position == stop
    repeated = [*again, *again]
    assert len(rest) == len(repeated) == 2 * len(loader) - stop
    assert all(torch.equal(one[0], other[0]) for one, other in zip(rest, repeated, strict=True))
    assert all(torch.equal(one[1], other[1]) for one, other in zip(rest, repeated, strict=True))


def test_a_broken_off_epoch_begins_anew() -> None:
    loader = mixed()
    first = next(iter(loader))
    assert torch.equal(next(iter(loader))[1], first[1])
    assert loader.epoch == 0


def test_a_copy_moves_on_its_own() -> None:
    loader = mixed()
    twin = loader.copy()
    assert labels_of(twin) == labels_of(loader.copy())
    assert (twin.epoch, loader.epoch, loader.position) == (1, 0, 0)


def test_a_loader_of_another_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="train_loader has rank=1, world_size=2, but this is process 0 of 1"):
        require_batches("train_loader", mixed(batch_size=4, share=0.5, rank=1, world_size=2))


def test_ranks_share_both_kinds() -> None:
    ranks = [labels_of(mixed(batch_size=4, share=0.5, rank=rank, world_size=2)) for rank in range(2)]
    real = [label for own in ranks for batch in own for label in batch if label < 100]
    assert sorted(real) == list(range(20))
    first = [label for own in ranks for label in own[0] if label >= 100]
    assert len(set(first)) == 4


def trained(folder: Path, *steps: int) -> dict[str, Tensor]:
    """Train to each number of updates in turn, each time going on from the checkpoint of the one before."""
    for last in steps:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 200))
        task = ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1))
        trainer = Trainer(max_steps=last, callbacks=[ModelCheckpoint(folder)], progress=False, device="cpu")
        trainer.fit(task, mixed(share=0.4), resume="auto")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    calm, resumed = trained(tmp_path / "calm", 11), trained(tmp_path / "resumed", 3, 7, 11)
    assert all(torch.equal(calm[name], resumed[name]) for name in calm)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MixedLoader(REAL, FAKE, 0.5), TypeError, "loader is a ImageDataset; give the cifarkit.data.Loader"),  # type: ignore[arg-type]
        (lambda: MixedLoader(Loader(REAL, 4), [1], 0.5), TypeError, "fake must be an ImageDataset; got list"),  # type: ignore[arg-type]
        (lambda: mixed(share=1.0), ValueError, "share=1.0 must be above 0 and below 1"),
        (lambda: mixed(share=0), ValueError, "share=0 must be above 0"),
        (lambda: mixed(batch_size=1), ValueError, "batch_size=1, which holds no two kinds"),
        (lambda: mixed(batch_size=20, share=0.5), ValueError, "fake has 9 images, too few for 10 a batch"),
        (
            lambda: MixedLoader(Loader(REAL, 4), numbered(9, 0, classes=9), 0.5),
            ValueError,
            r"fake has the classes \('0'.* must be the same",
        ),
        (
            lambda: MixedLoader(Loader(REAL, 4), numbered(9, 0, size=3), 0.5),
            ValueError,
            r"shape \(3, 3, 3\), the real ones are \(3, 2, 2\)",
        ),
    ],
)
def test_refuses(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_feature_loader_is_refused() -> None:
    features = FeatureLoader(Loader(REAL, 4), torch.nn.Flatten())
    with pytest.raises(TypeError, match="loader is a FeatureLoader"):
        MixedLoader(features, FAKE, 0.5)


@pytest.mark.parametrize(
    ("change", "message"), [({"share": 0.3}, "share=0.3, this loader 0.25"), ({"fakes": 8}, "fakes=8")]
)
def test_a_foreign_position_is_refused(change: dict[str, Any], message: str) -> None:
    loader = mixed()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
