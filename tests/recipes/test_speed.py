"""Recipes: what they build, and that each of their switches reaches the training."""

from dataclasses import replace

import pytest
import torch

from cifarkit import data, predict, recipes
from cifarkit.recipes import SpeedRecipe
from cifarkit.training import SelectiveTask
from cifarkit.transforms import AlternatingFlip, Cutout, RandomHorizontalFlip

TRAIN = data.shapes(200)


def test_crops_grow_with_the_epochs() -> None:
    loader = replace(recipes.TINY, sides={0: 24, 1: 28, 2: 32}).loader(TRAIN)
    sides = [{images.shape[-1] for images, _ in loader} for _ in range(4)]
    assert sides == [{24}, {28}, {32}, {32}]


@pytest.mark.parametrize(("side", "first", "last"), [(28, 21, 28), (64, 48, 64)])
def test_images_of_other_sizes_are_cropped_to_the_same_share(side: int, first: int, last: int) -> None:
    pixels = torch.randint(256, (100, 3, side, side), dtype=torch.uint8)
    loader = recipes.TINY.loader(data.ImageDataset(pixels, TRAIN.labels[:100], TRAIN.classes))
    assert [{images.shape[-1] for images, _ in loader} for _ in range(2)] == [{first}, {last}]


def test_of_several_processes_each_makes_its_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = recipes.TINY.loader(TRAIN)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = recipes.TINY.loader(TRAIN)
    assert (loader.rank, loader.world_size, loader.batch_size, len(loader)) == (1, 2, 25, len(alone))


def test_the_network_is_whitened_and_its_stem_stays() -> None:
    task = recipes.TINY.task(TRAIN)
    stem = task.model.stem[0].weight.clone()
    recipes.TINY.trainer(max_epochs=1, progress=False).fit(task, recipes.TINY.loader(TRAIN))
    torch.testing.assert_close(stem[:12], -stem[12:])
    assert torch.equal(task.model.stem[0].weight, stem)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_grey_images_are_trained_on_and_predicted(keep: float) -> None:
    grey = data.ImageDataset(TRAIN.images[:, :1, 2:-2, 2:-2], TRAIN.labels, TRAIN.classes)  # (200, 1, 28, 28)
    recipe = replace(recipes.TINY, epochs=1, keep=keep, proxy_widths=(4, 4, 4))
    task = recipe.task(grey)
    recipe.trainer(progress=False).fit(task, recipe.loader(grey))
    assert predict(task.model, recipes.normalized_sample(grey, 10)).shape == (10, 10)


def test_the_same_seed_gives_the_same_weights() -> None:
    trained = []
    for _ in range(2):
        torch.manual_seed(3)
        task = recipes.TINY.task(TRAIN)
        recipes.TINY.trainer(progress=False).fit(task, recipes.TINY.loader(TRAIN, seed=3))
        trained.append(task.model.head.weight)
    assert torch.equal(*trained)


def test_rates_and_decay_reach_their_parameters() -> None:
    recipe = replace(recipes.TINY, kernel_lr=0.2, head_lr=0.5, bias_lr=2.0, weight_decay=0.01)
    kernels, biases, head = recipe.task(TRAIN).optimizers["model"].param_groups
    assert (kernels["lr"], biases["lr"], head["lr"]) == (0.2, 2.0, 0.5)
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(0.01)
    assert head["lr"] * head["weight_decay"] == pytest.approx(0.01)
    assert [len(group["params"]) for group in (kernels, biases, head)] == [6, 6, 1]


def test_switches_take_parts_out() -> None:
    plain = replace(recipes.TINY, muon=False, whiten=False, alternating_flip=False, cutout=8)
    groups = plain.task(TRAIN).optimizers["model"].param_groups
    assert not any(group["orthogonal"] for group in groups)
    assert sum(len(group["params"]) for group in groups) == 15  # the stem learns, too
    steps = [type(step) for step in plain.loader(TRAIN).transform.at(0).transforms]
    assert RandomHorizontalFlip in steps
    assert Cutout in steps
    assert AlternatingFlip not in steps


def test_a_proxy_selects_from_larger_batches() -> None:
    recipe = replace(recipes.TINY, keep=0.25, proxy_widths=(4, 4, 4))
    task = recipe.task(TRAIN)
    assert isinstance(task, SelectiveTask)
    assert recipe.loader(TRAIN).batch_size == 200
    assert (task.keep, task.proxy.head.in_features) == (0.25, 4)


def test_options_go_to_the_trainer() -> None:
    trainer = recipes.TINY.trainer(max_epochs=1, precision="fp32", gradient_clip_val=1.0)
    assert (trainer.max_epochs, trainer.precision.name, trainer.clip_bound) == (1, "fp32", 1.0)
    assert [trainer.schedule(progress) for progress in (0, 0.25, 1)] == [1, 0.75, 0]


@pytest.mark.parametrize("name", recipes.SPEEDRUN)
def test_every_recipe_builds(name: str) -> None:
    recipe: SpeedRecipe = recipes.SPEEDRUN[name]
    assert recipe.loader(TRAIN.subset(range(0, 200, 2))).batch_size * recipe.keep == recipe.batch_size
    assert recipe.task(TRAIN).model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_whitening_looks_at_images_of_the_whole_set() -> None:
    sample = recipes.normalized_sample(TRAIN, 50)
    assert sample.shape == (50, 3, 32, 32)
    assert recipes.normalized_sample(TRAIN, 900).shape[0] == 200
    assert sample.mean().abs() < 0.1


def test_wrong_sides_are_named() -> None:
    for sides in ({1: 24}, {}, 24):
        with pytest.raises(ValueError, match=r"sides=.* must map epochs, 0 among them, to sides"):
            replace(recipes.TINY, sides=sides)
    with pytest.raises(TypeError, match=r"sides\[0\]='a' is a str"):
        replace(recipes.TINY, sides={0: "a"})


def test_wrong_widths_are_named_when_the_recipe_is_made() -> None:
    for name in ("widths", "proxy_widths"):
        for widths in ((16, 32), 64):
            with pytest.raises(ValueError, match=rf"^{name}=.* must be three positive integers, such as"):
                replace(recipes.TINY, **{name: widths})
        with pytest.raises(ValueError, match=rf"^{name}\[1\]=0 must be at least 1"):
            replace(recipes.TINY, **{name: (8, 0, 16)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"keep": 0}, "keep=0 must be above 0 and at most 1"),
        ({"kernel_momentum": 1}, "kernel_momentum=1 must be at least 0 and below 1"),
        ({"kernel_lr": -1}, "kernel_lr=-1 must be above 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan must be at least 0"),
    ],
)
def test_a_wrong_number_is_named_when_the_recipe_is_made(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(recipes.TINY, **wrong)
    with pytest.raises(TypeError, match=f"{next(iter(wrong))}='x' is a str"):
        replace(recipes.TINY, **dict.fromkeys(wrong, "x"))


def test_images_that_are_not_square_are_cropped_by_their_shorter_side() -> None:
    pixels = torch.randint(256, (100, 3, 32, 48), dtype=torch.uint8)
    loader = recipes.TINY.loader(data.ImageDataset(pixels, TRAIN.labels[:100], TRAIN.classes))
    assert [{images.shape[-1] for images, _ in loader} for _ in range(2)] == [{24}, {32}]
