"""Recipes of diffusion models: they build what they say, by the ordinary parts."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifarkit import data, diffusion, models, seed_everything, training, transforms
from cifarkit.recipes import DDPM, DiffusionRecipe

TRAIN = data.shapes(64, size=16)
SMALL = replace(DDPM["strong"].tiny(), batch_size=16)


def test_the_strong_recipe_trains_like_its_parts_put_together_by_hand() -> None:
    seed_everything(0)
    task = SMALL.task(TRAIN)
    average = SMALL.average(4)
    SMALL.trainer(max_steps=4, precision="fp32", callbacks=[average], progress=False).fit(
        task, SMALL.loader(TRAIN, seed=3)
    )

    seed_everything(0)
    network = models.UNet(base_channels=8, multipliers=(1, 1), patch=2, num_classes=10)
    muon = training.Muon(training.muon_groups(network, 0.015, 5e-4, 0.0, adam=True))
    choices: dict[str, Any] = {"target": "velocity", "log_snr": (2.4, 2.4)}
    by_hand = training.DiffusionTask(network, muon, diffusion.NoiseSchedule.cosine(), **choices)
    mirrored = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(0.5, 0.5)])
    loader = data.Loader(TRAIN, 16, shuffle=True, seed=3, transform=mirrored)
    own = training.ExponentialMovingAverage(0.9)
    rate = training.schedules.cosine(warmup=0.05)
    training.Trainer(max_steps=4, schedule=rate, gradient_clip_val=1.0, callbacks=[own], progress=False).fit(
        by_hand, loader
    )
    torch.testing.assert_close(task.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
    with average.swapped(task), own.swapped(by_hand):
        torch.testing.assert_close(task.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


def test_the_plain_recipe_is_that_of_2020() -> None:
    task = replace(DDPM["plain"], base_channels=8, linear=True).task(TRAIN)
    assert (task.target, task.min_snr, task.log_snr) == ("noise", None, None)
    assert type(task.optimizers["model"]) is torch.optim.Adam
    assert repr(task.schedule) == repr(diffusion.NoiseSchedule.linear())


def test_the_strong_network_has_the_size_that_the_docs_name() -> None:
    with torch.device("meta"):
        network = DDPM["strong"].network(10, (3, 32, 32))
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == 6.5


def test_a_network_takes_images_of_any_channels() -> None:
    network = SMALL.network(4, (1, 16, 16))
    assert network(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64)).shape == (2, 1, 16, 16)


def test_images_whose_sides_do_not_fit_are_named_with_what_does() -> None:
    for size, advice in ((28, "give patch=1"), (30, "resize them")):
        message = f"images of {size} x {size} do not fit patch=2 and 3 levels, .* multiples of 8; {advice}"
        with pytest.raises(ValueError, match=message):
            DDPM["strong"].task(data.shapes(20, size=size))
    assert replace(DDPM["strong"], patch=1, base_channels=8).task(data.shapes(20, size=28)).model.multiple == 4


@pytest.mark.parametrize("recipe", [*DDPM.values(), replace(SMALL, ema=0.5, min_snr=5.0, batch_size=np.int64(9))])
def test_a_recipe_survives_json(recipe: DiffusionRecipe) -> None:
    assert DiffusionRecipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_a_run_keeps_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    other = replace(SMALL, target="noise", lr=0.1)
    assert SMALL.of_run(folder) == SMALL
    assert other.of_run(folder) == other  # nothing has been trained yet
    assert DiffusionRecipe.load(folder) == other
    (folder / "last.pt").touch()
    assert not capsys.readouterr().out
    assert SMALL.of_run(folder) == other
    words = "recipe.json holds, with target='noise', lr=0.1; a run that goes on keeps its recipe"
    assert words in capsys.readouterr().out
    assert other.of_run(folder) == other
    assert not capsys.readouterr().out
    (folder / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"run holds a run without recipe\.json, so nobody knows how it was trained"):
        SMALL.of_run(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"targets": "noise"}', '{"target": "x"}', '{"linear": "no"}', "7"])
def test_a_damaged_recipe_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "last.pt").touch()
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match=r"recipe\.json holds no recipe of a diffusion model \("):
        SMALL.of_run(tmp_path)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe\.json"):
        DiffusionRecipe.load(tmp_path)


@pytest.mark.parametrize("recipe", [SMALL, replace(SMALL, target="noise", linear=True)])
def test_the_denoiser_knows_what_the_network_predicts(recipe: DiffusionRecipe) -> None:
    network = recipe.network(10, (3, 16, 16))
    torch.nn.init.normal_(network.last.weight, std=0.1)  # it predicts zeros before
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([5, 700]), torch.tensor([1, 2])
    choices: dict[str, Any] = {"target": recipe.target, "schedule": recipe.noise_schedule, "guidance": 1.0}
    expected = diffusion.as_denoiser(network, labels, **choices)(x, t)
    torch.testing.assert_close(recipe.denoiser(network, labels, guidance=1.0)(x, t), expected, rtol=0, atol=0)


def test_the_average_remembers_a_twentieth_unless_told() -> None:
    assert SMALL.average(2_000).decay == 0.99
    assert SMALL.average(3).decay == 0.9
    assert replace(SMALL, ema=0.5).average(2_000).decay == 0.5


def test_several_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SMALL.loader(TRAIN)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = SMALL.loader(TRAIN)
    assert len(shared) == len(alone) == 4
    assert [len(images) for images, _ in shared] == [8] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0 must be at least 1"),
        ({"lr": 0.0}, r"lr=0.0 must be above 0"),
        ({"muon": -1.0}, r"muon=-1.0 must be above 0"),
        ({"ema": 1.0}, r"ema=1.0 must be .* below 1"),
        ({"base_channels": 0}, r"base_channels=0 must be at least 1"),
        ({"patch": 0}, r"patch=0 must be at least 1"),
        ({"min_snr": 0.0}, r"min_snr=0.0 must be above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be .* below 1"),
        ({"label_dropout": 1.5}, r"label_dropout=1.5 must be"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)
    with pytest.raises(TypeError, match=next(iter(wrong))):
        replace(SMALL, **dict.fromkeys(wrong, "x"))


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"multipliers": ()}, ValueError, r"multipliers=\(\) must hold an integer a level"),
        ({"multipliers": 2}, ValueError, r"multipliers=2 must hold an integer a level"),
        ({"multipliers": (1, 0)}, ValueError, r"multipliers\[1\]=0 must be at least 1"),
        ({"target": "x"}, ValueError, "target='x' is unknown"),
        ({"log_snr": 2.4}, ValueError, r"log_snr=2.4 must be \(mean, deviation\)"),
        ({"linear": "no"}, TypeError, "linear='no' must be True or False"),
    ],
)
def test_values_of_another_kind_are_named(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(SMALL, **wrong)
