"""FeatureLoader: the backbone's numbers in the loader's order, computed once if possible, resumed exactly."""

import logging
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cifarkit.data.features as module
from cifarkit.data import FeatureLoader, ImageDataset, Loader
from cifarkit.inference import cpu_has_bf16
from cifarkit.seeding import Draws
from cifarkit.training import ClassificationTask, ModelCheckpoint, Trainer
from cifarkit.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, Resize


class Backbone(nn.Sequential):
    """Three layers that remember in which mode and thread they ran and on how many images."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.calls: list[tuple[int, bool, str]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((len(images), self.training, threading.current_thread().name))
        features: Tensor = super().forward(images)
        return features


AUGMENTED = Compose([RandomCrop(6, 2), RandomHorizontalFlip(), Normalize(0.5, 0.25)])
FIXED: list[Any] = [None, Normalize(0.5, 0.25), Compose([Resize(7), Normalize(0.5, 0.25)])]


def numbered(count: int = 20) -> ImageDataset:
    pixels = torch.randint(0, 256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(count))
    return ImageDataset(pixels.byte(), torch.arange(count), tuple(map(str, range(count))))


def make(transform: Any = None, backbone: nn.Module | None = None, **options: Any) -> FeatureLoader:
    backbone = Backbone() if backbone is None else backbone
    settings: dict[str, Any] = {"precision": "fp32"} | options
    return FeatureLoader(Loader(numbered(), 6, transform=transform, shuffle=True, seed=3), backbone, **settings)


def assert_same_batches(first: Any, second: Any) -> None:
    for (features, labels), (others, same) in zip(first, second, strict=True):
        torch.testing.assert_close(features, others)
        assert torch.equal(labels, same)


@pytest.mark.parametrize("transform", [*FIXED, AUGMENTED, lambda images: images.flip(3)])
def test_its_batches_are_the_backbone_of_the_loaders_batches(transform: Any) -> None:
    loader = make(transform)
    images = loader.loader.copy()
    backbone: Any = loader.backbone
    for _ in range(2):  # the second epoch has another order, and other pixels where they are drawn
        got = list(loader)
        backbone.eval()
        with torch.no_grad():
            assert_same_batches(got, [(backbone(pixels), labels) for pixels, labels in images])
        backbone.train()
    assert (len(loader), loader.epoch, loader.position) == (4, 2, 0)


@pytest.mark.parametrize("transform", FIXED)
def test_a_fixed_transform_means_one_pass_of_big_batches(transform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 8)
    loader = make(transform)
    backbone: Any = loader.backbone
    backbone.calls.clear()
    copies = [loader.copy(), loader, loader]
    assert all(len(list(one)) == 4 for one in copies)
    assert loader.cached
    assert [count for count, *_ in backbone.calls] == [8, 8, 4]


CHANGES: list[Callable[[Any], Any]] = [
    lambda backbone: nn.init.ones_(backbone[0].weight),
    lambda backbone: backbone[1].running_mean.add_(1),
    lambda backbone: backbone.load_state_dict(Backbone().state_dict()),
    lambda backbone: backbone.__setitem__(0, nn.Conv2d(3, 4, 3)),
    lambda backbone: backbone.__setitem__(0, nn.Conv2d(3, 5, 6, bias=False)) or backbone.__delitem__(1),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_backbone_is_run_anew(change: Callable[[Any], Any], caplog: pytest.LogCaptureFixture) -> None:
    backbone = Backbone()
    loader = make(backbone=backbone)
    other = loader.copy()
    list(loader)
    with torch.no_grad():
        change(backbone)
    assert_same_batches(other, make(backbone=backbone))
    assert caplog.text.count("has changed since the features were kept, so they are computed anew") == 1
    backbone.calls.clear()
    assert len(list(loader)) == 4
    assert not backbone.calls  # copies share what was computed anew, too
    assert len(caplog.records) == 1


def test_a_head_that_learns_is_no_change_of_the_features() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Backbone(), nn.Linear(64, 20)

        def features(self, images: Tensor) -> Tensor:
            features: Tensor = self.backbone(images)
            return features

    network = Network()
    loader = FeatureLoader(Loader(numbered(), 6), network.features)
    list(loader)
    network.backbone.calls.clear()
    nn.init.ones_(network.head.weight)
    assert len(list(loader)) == 4
    assert not network.backbone.calls
    assert not any(part._forward_pre_hooks for part in network.modules())


class Embedded(nn.Module):
    """Features that take a parameter from around them, where no module runs: all of it goes by methods."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.backbone, self.inner.positions = Backbone(), nn.Parameter(torch.zeros(4, 4))

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.inner.backbone(images) + self.inner.positions
        return features


def test_a_parameter_of_a_part_that_does_not_run_itself_is_watched() -> None:
    network, loader = Embedded(), Loader(numbered(), 6)
    features = FeatureLoader(loader, network.features, precision="fp32")
    list(features)
    nn.init.normal_(network.inner.positions)
    assert_same_batches(features, FeatureLoader(loader, network.features, precision="fp32"))


def test_images_changed_in_place_are_run_anew(caplog: pytest.LogCaptureFixture) -> None:
    loader = make()
    list(loader)
    loader.dataset.images.bitwise_not_()
    (whole, labels), backbone = next(iter(Loader(loader.dataset, 20))), loader.backbone
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        expected = dict(zip(labels.tolist(), backbone.eval()(whole), strict=True))
    for features, own in loader:
        torch.testing.assert_close(features, torch.stack([expected[label] for label in own.tolist()]))
    assert "the backbone or an image has changed since the features were kept" in caplog.text


@pytest.mark.parametrize("transform", [None, AUGMENTED])
def test_the_backbone_runs_in_evaluation_mode_in_the_callers_thread(transform: Any) -> None:
    backbone = Backbone()
    backbone[1].eval()
    modes = [part.training for part in backbone.modules()]
    buffers, rng = [buffer.clone() for buffer in backbone.buffers()], torch.get_rng_state()
    batches = list(make(transform, backbone))
    assert {(training, thread) for _, training, thread in backbone.calls} == {(False, threading.current_thread().name)}
    assert [part.training for part in backbone.modules()] == modes
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(old, new) for old, new in zip(buffers, backbone.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(features.requires_grad for features, _ in batches)


def double(images: Tensor) -> Tensor:
    return 2 * images


@pytest.mark.parametrize("transform", [AUGMENTED, double])
def test_a_transform_that_may_be_random_is_told_once(transform: Any, caplog: pytest.LogCaptureFixture) -> None:
    loader = make(transform)
    assert not loader.cached
    assert [len(list(one)) for one in (loader, loader.copy())] == [4, 4]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"transform={transform!r} may be random, so features are computed anew for every" in record.getMessage()


def test_a_foreign_transform_can_say_that_it_is_fixed(caplog: pytest.LogCaptureFixture) -> None:
    class Halve:
        fixed = True

        def __call__(self, images: Tensor) -> Tensor:
            return images / 2

    assert make(Halve()).cached
    assert not caplog.records


def test_too_big_a_cache_is_told_and_not_made(caplog: pytest.LogCaptureFixture) -> None:
    needed = 20 * 4 * 4 * 4 * 4  # images, channels, height, width, bytes
    assert make(max_bytes=needed).cached
    assert not caplog.records
    loader = make(max_bytes=needed - 1)
    assert not loader.cached
    assert "the features of 20 images need 4.8e-06 GiB, so features are computed anew" in caplog.text
    assert f"max_bytes={needed}" in caplog.text
    kept = make(backbone=loader.backbone)  # type: ignore[arg-type]
    assert_same_batches(loader, kept)


def test_bf16_is_kept_as_it_is_and_comes_out_as_float32() -> None:
    backbone = Backbone()
    for precision in ("bf16", "auto"):
        loader = make(backbone=backbone, precision=precision)
        assert next(iter(loader))[0].dtype == torch.float32
        narrow = precision == "bf16" or cpu_has_bf16()
        assert loader._store[0].features.dtype == (torch.bfloat16 if narrow else torch.float32)
    for (rough, _), (exact, _) in zip(loader, make(backbone=backbone), strict=True):
        torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("transform", [None, AUGMENTED])
def test_it_continues_in_the_middle_of_an_epoch_bit_for_bit(transform: Any) -> None:
    backbone = Backbone()
    loader, other = make(transform, backbone), make(transform, backbone)
    list(loader)
    whole = list(loader.copy())
    assert len(list(islice(loader, 2))) == 2
    other.load_state_dict(loader.state_dict())
    rest = list(other)
    assert other.epoch == 2
    assert len(rest) == 2
    for (features, labels), (expected, same) in zip(rest, whole[2:], strict=True):
        assert torch.equal(features, expected)
        assert torch.equal(labels, same)


def test_it_starts_where_the_loader_is_and_leaves_it_there() -> None:
    images = Loader(numbered(), 6, shuffle=True, seed=3)
    list(images)
    loader = FeatureLoader(images, Backbone())
    assert loader.epoch == 1
    labels = [labels.tolist() for _, labels in loader]
    assert images.epoch == 1
    assert labels == [labels.tolist() for _, labels in images]


def test_shards_have_the_features_of_their_images() -> None:
    backbone = Backbone()
    options: dict[str, Any] = {"shuffle": True, "world_size": 2}
    ranks = [FeatureLoader(Loader(numbered(), 3, rank=rank, **options), backbone) for rank in range(2)]
    seen = {int(label): row for rank in ranks for rows, labels in rank for label, row in zip(labels, rows, strict=True)}
    whole, _ = next(iter(FeatureLoader(Loader(numbered(), 20), backbone)))
    assert sorted(seen) == list(range(20))
    assert torch.equal(torch.stack([seen[index] for index in range(20)]), whole)


def test_the_images_are_prepared_in_the_thread_of_the_loader() -> None:
    threads = set()

    def noise(images: Tensor, draws: Draws | None = None) -> Tensor:
        threads.add(threading.current_thread().name)
        assert draws is not None
        return images + draws.uniform(*images.shape[1:])

    list(make(noise))
    assert all(name.startswith("cifarkit-loader") for name in threads)


@pytest.mark.parametrize("transform", [None, AUGMENTED])
def test_an_exception_of_the_backbone_surfaces_and_leaves_no_thread(transform: Any) -> None:
    backbone = Backbone()
    loader = make(transform, backbone)
    backbone[0] = nn.Conv2d(5, 4, 3)
    with pytest.raises(RuntimeError, match="expected input"):
        list(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cifarkit-loader")]
    assert all(part.training for part in backbone.modules())


@pytest.mark.parametrize("transform", [None, AUGMENTED])
def test_a_resumed_run_is_the_run_that_was_not_stopped(transform: Any, tmp_path: Path) -> None:
    backbone = Backbone()

    def fit(steps: int, folder: str, seed: int = 0, resume: Any = None) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 20))
        task = ClassificationTask(head, torch.optim.SGD(head.parameters(), 0.1, momentum=0.9))
        loader, saving = make(transform, backbone), ModelCheckpoint(tmp_path / folder)
        trainer = Trainer(max_steps=steps, callbacks=[saving], progress=False)
        return trainer.fit(task, loader, loader.copy(), resume=resume).task.state_dict()

    whole = fit(11, "whole")
    fit(6, "first")  # ends in the middle of the second epoch
    resumed = fit(11, "rest", seed=1, resume=tmp_path / "first" / "last.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2], Backbone()), TypeError, "loader is a list; give a cifarkit.data.Loader of images"),
        (
            (make(), Backbone()),
            TypeError,
            r"loader is a FeatureLoader, which gives features; give its Loader of images, .* nn\.Sequential\(first",
        ),
        ((None, torch.relu), TypeError, "backbone is a builtin_function_or_method; give a .* such as hybrid.features"),
        ((None, lambda images: images), TypeError, "backbone is a function; give a torch.nn.Module"),
        ((None, nn.Flatten(0)), TypeError, r"backbone gives \(108,\) for 1 images; it must give a tensor \(B, ...\)"),
        ((None, Backbone(), "fp8"), ValueError, "precision='fp8' is unknown; use 'auto', 'fp32' or 'bf16'"),
        ((None, Backbone(), "fp32", -1), ValueError, "max_bytes=-1 must be at least 0"),
    ],
)
def test_mistakes_are_named(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    loader, backbone, *rest = arguments
    options = dict(zip(("precision", "max_bytes"), rest, strict=False))
    with pytest.raises(error, match=message):
        FeatureLoader(Loader(numbered(), 6) if loader is None else loader, backbone, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_are_brought_to_the_dtype_of_the_backbone(dtype: torch.dtype) -> None:
    features, _ = next(iter(make(backbone=Backbone().to(dtype), precision="fp32")))
    assert features.dtype == torch.float32
