"""The drawn data set: repeatable, balanced, hard for a linear model and easy for a small convolutional net."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarkit.data import shapes


def test_ten_balanced_named_classes() -> None:
    dataset = shapes(105)
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.class_counts().tolist() == [11] * 5 + [10] * 5
    assert dataset.classes[0] == "plain circle"
    assert list(dataset.classes) == sorted(dataset.classes)  # so that a trip through image_folder keeps the labels


@pytest.mark.parametrize("count", [1, 255, 256, 300])
def test_an_image_depends_on_seed_and_index_only(count: int) -> None:
    longer, shorter = shapes(600, seed=3), shapes(count, seed=3)
    assert torch.equal(longer.images[:count], shorter.images)
    assert torch.equal(longer.labels[:count], shorter.labels)
    assert not torch.equal(shapes(count, seed=4).images, shorter.images)


def test_no_picture_comes_twice() -> None:
    images = torch.cat([shapes(500, seed=0).images, shapes(500, seed=1).images])
    assert len({image.numpy().tobytes() for image in images}) == 1000


@pytest.mark.parametrize("size", [28, 64])
def test_other_sizes(size: int) -> None:
    dataset = shapes(20, size=size)
    assert dataset.image_shape == (3, size, size)
    assert (dataset.images.float().std(dim=(1, 2, 3)) > 5).all()  # something is drawn on each


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, "count=0 must be at least 1"),
        ({"count": 1, "size": 8}, ValueError, "size=8 must be at least 16 pixels"),
        ({"count": "5"}, TypeError, "count='5' is a str; give an integer"),
        ({"count": 5, "size": 32.0}, TypeError, r"size=32\.0 is a float"),
        ({"count": 5, "seed": None}, TypeError, "seed=None is a NoneType"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        shapes(**arguments)


def test_colour_and_brightness_tell_no_class() -> None:
    dataset = shapes(10_000)
    brightness = dataset.images.float().mean(dim=(2, 3)) / 255  # (N, 3)
    means = torch.stack([brightness[dataset.labels == label].mean(dim=0) for label in range(10)])
    assert means.std(dim=0).max() < 0.03


def test_drawing_is_fast() -> None:
    start = time.process_time()
    shapes(1024)
    assert time.process_time() - start < 2  # 0.15 s of one core


def floats(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


def test_a_linear_model_stays_under_60_percent() -> None:
    train, test = shapes(6000, seed=0), shapes(1000, seed=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    for _ in range(15):
        for batch in torch.randperm(len(train)).view(-1, 80):
            loss = F.cross_entropy(model(floats(train.images[batch])), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    accuracy = (model(floats(test.images)).argmax(1) == test.labels).float().mean().item()
    print(f"linear model: {accuracy:.3f}")
    assert accuracy < 0.6


@pytest.mark.slow
def test_a_small_net_passes_90_percent_within_a_minute() -> None:
    start = time.process_time()
    train, test, layers, channels = shapes(8_000, seed=0), shapes(2_000, seed=1), list[nn.Module](), 3
    torch.manual_seed(0)
    for width in (24, 48, 96):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = model.to(memory_format=torch.channels_last)
    optimizer, epochs = torch.optim.AdamW(model.parameters(), lr=3e-3), 8
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * 100)
    for _ in range(epochs):
        for batch in torch.randperm(len(train)).view(-1, 80):
            loss = F.cross_entropy(model(floats(train.images[batch])), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(floats(test.images)).argmax(1) == test.labels).float().mean().item()
    seconds = (time.process_time() - start) / 2  # of two cores, whatever else runs on them
    print(f"small net: {accuracy:.3f} in {seconds:.0f} s")
    assert accuracy > 0.9
    assert seconds < 60
