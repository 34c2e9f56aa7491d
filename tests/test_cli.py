"""The command line: help, hints, exit codes, and one small run through train, explain, report and doctor."""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifarkit import commands, data, load_checkpoint, recipes, training
from cifarkit.commands import shared

NAMES = ["train", "generate", "explain", "lr-find", "report", "doctor"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "TINY", 100)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"python -m cifarkit {name}" in text
    assert name in commands.build_parser().format_help()


def test_an_unknown_command_gives_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["trian"]) == 2
    assert "there is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert commands.main(["lr_find"]) == 2
    assert "did you mean 'lr-find'?" in capsys.readouterr().err
    assert commands.main(["xyz"]) == 2
    assert "There are train, generate, explain" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["train", "--no-such-flag"], ["report"], ["train", "--recipe", "none"]])
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(arguments) == 2
    assert "usage: python -m cifarkit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "absent"], "run_folder='absent' is no folder"),
        (["explain", "."], r"holds no settings.json"),
        (["generate", "."], r"holds no settings.json"),
        (["train", "--data", "absent.npz"], "--data absent.npz: no such file or folder"),
        (["train", "--resume", "absent"], "absent: no such folder; give that of a run"),
    ],
)
def test_errors_are_one_line(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert commands.main(arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert words in text
    assert text.count("\n") == 1


def test_a_traceback_is_shown_on_request(here: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        commands.main(["--traceback", "report", "absent"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (training.NonFiniteLossError("train_loss is nan\nafter step 3", 3), "train_loss is nan after step 3"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_run_that_breaks_down_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(args: Any) -> int:
        raise error

    monkeypatch.setattr(commands.train, "run", fail)
    assert commands.main(["train"]) == 1
    assert capsys.readouterr().err == f"error: {words}\n"


def test_settings_of_another_kind_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared.write_settings(here, {"kind": "classifier"})
    assert commands.main(["generate", "."]) == 1
    assert "is a run of a classifier; this command needs a diffusion model" in capsys.readouterr().err
    (here / "settings.json").write_text("{")
    assert commands.main(["explain", "."]) == 1
    assert "settings.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"kind": "classifier", "network": {}},
            "settings.json is incomplete: it lacks 'classes', 'image_size'",
        ),
        ({"kind": "poem"}, "settings.json is damaged: its kind 'poem' is none of classifier, diffusion model"),
        ({"kind": ["classifier"]}, "its kind ['classifier'] is none of"),
        ({"network": {}}, "settings.json is damaged: 'kind'"),
    ],
)
def test_incomplete_settings_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: str
) -> None:
    shared.write_settings(here, settings)
    assert commands.main(["train", "--resume", "."]) == 1
    assert words in capsys.readouterr().err


def test_missing_flags_are_named(here: Path) -> None:
    full: dict[str, Any] = dict.fromkeys(("network", "classes", "image_shape"), ())
    full |= {"flags": {}, "kind": "diffusion model"}
    shared.write_settings(here, full)
    with pytest.raises(ValueError, match=r"settings\.json is incomplete: it lacks 'flags\.data', 'flags\.root'"):
        shared.read_settings(here)


def test_flags_that_are_no_names_and_values_are_named(here: Path) -> None:
    settings = {"kind": "diffusion model", "network": {}, "classes": [], "image_shape": [], "flags": 5}
    shared.write_settings(here, settings)
    with pytest.raises(ValueError, match=r"settings\.json is damaged: its flags are no names and values"):
        shared.read_settings(here)


def test_settings_of_another_network_are_not_overwritten(here: Path) -> None:
    settings = {"kind": "diffusion model", "network": {}, "classes": [], "image_shape": [], "flags": {}}
    settings["flags"] = dict.fromkeys(shared._FLAGS, "")
    shared.write_settings(here, settings)
    shared.write_settings(here, settings)  # the same run goes on
    before = (here / "settings.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run of another network; give another --folder"):
        shared.write_settings(here, settings | {"network": {"depth": 3}})
    assert (here / "settings.json").read_bytes() == before


DDPM = {"kind": "diffusion model", "network": {}, "classes": [], "image_shape": []}
FLAGS = dict.fromkeys(shared._FLAGS, "") | {"data": "photos", "root": "data", "seed": 0, "val": 0.1, "tiny": False}


@pytest.mark.parametrize(
    ("name", "value"),
    [("data", "others"), ("seed", 1), ("val", 0.2), ("tiny", True), ("size", 8), ("recipe", "x")],
)
def test_other_images_or_another_order_are_refused_where_a_run_would_go_on(here: Path, name: str, value: Any) -> None:
    shared.write_settings(here, DDPM | {"flags": FLAGS})
    changed = FLAGS | {name: value}
    shared.write_settings(here, DDPM | {"flags": changed})  # nothing has been trained yet
    (here / "last.pt").touch()
    before = (here / "settings.json").read_bytes()
    message = rf"holds a run of --{name} {value!r}, not .*; go on with the flags it had by --resume .*, or give another"
    with pytest.raises(ValueError, match=message):
        shared.write_settings(here, DDPM | {"flags": FLAGS})
    assert (here / "settings.json").read_bytes() == before
    shared.write_settings(here, DDPM | {"flags": changed | {"epochs": 9, "data": f"{changed['data']}/"}})


def test_a_refused_command_leaves_the_run_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.shapes(100).save(here / "own.npz")
    command = ["train", "--tiny", "--data", "own.npz", "--folder", "run"]
    assert commands.main(command) == 0
    before = {path: path.read_bytes() for path in (here / "run").iterdir()}
    assert commands.main([*command, "--seed", "1"]) == 1
    assert "run holds a run of --seed 0, not 1; go on with the flags it had by --resume run" in capsys.readouterr().err
    data.shapes(90, seed=3).save(here / "own.npz")  # which only the checkpoint can tell
    assert commands.main(command) == 1
    assert "the saved position has samples_in_dataset=" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (here / "run").iterdir()} == before


def test_a_run_of_before_goes_on_without_a_size(here: Path) -> None:
    shared.write_settings(here, DDPM | {"flags": FLAGS})
    (here / "last.pt").touch()
    assert shared.recorded_flags(shared.read_settings(here)).size is None
    shared.write_settings(here, DDPM | {"flags": FLAGS | {"size": None}})


def test_pictures_of_several_sizes_are_resized(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(40):
        path = here / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + index % 3, 34), (6 * index, 0, 0)).save(path)
    command = ["train", "--tiny", "--recipe", "ddpm", "--data", "photos", "--folder", "run"]
    assert commands.main(command) == 1
    assert "pass size= to resize all, or --size to a command" in capsys.readouterr().err
    assert commands.main([*command, "--size", "30"]) == 1
    words = "takes images whose sides are multiples of 4 pixels; those of --data photos have 30 x 30; resize them"
    assert words in capsys.readouterr().err
    assert not (here / "run").exists()
    assert commands.main([*command, "--size", "16"]) == 0
    assert shared.read_settings(here / "run")["flags"]["size"] == 16
    assert shared.read_settings(here / "run")["image_shape"] == [3, 16, 16]
    assert commands.main(["train", "--resume", "run"]) == 0
    assert commands.main(["train", "--data", "shapes", "--size", "16"]) == 1
    assert "--size 16 is for a folder of pictures; leave it out for --data shapes" in capsys.readouterr().err


def test_a_diffusion_model_takes_grey_images(here: Path) -> None:
    coloured = data.shapes(60)
    data.ImageDataset(coloured.images[:, :1], coloured.labels, coloured.classes).save(here / "grey.npz")
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--data", "grey.npz", "--folder", "run"]) == 0
    assert shared.read_settings(here / "run")["network"]["channels"] == 1
    assert [*(here / "run" / "samples").glob("*.png")]
    assert commands.main(["generate", "run", "--per-class", "1", "--steps", "2"]) == 0


def test_a_classifier_takes_grey_images(here: Path) -> None:
    coloured = data.shapes(100, size=28)
    data.ImageDataset(coloured.images[:, :1], coloured.labels, coloured.classes).save(here / "grey.npz")
    assert commands.main(["train", "--tiny", "--data", "grey.npz", "--folder", "run"]) == 0
    assert shared.read_settings(here / "run")["network"]["channels"] == 1
    assert commands.main(["explain", "run", "--method", "saliency", "--count", "3"]) == 0
    assert "Explanations" in (here / "run" / "report.html").read_text()
    assert commands.main(["report", "run"]) == 0
    assert commands.main(["doctor", "run", "--steps", "0"]) == 0
    assert commands.main(["lr-find", "--tiny", "--data", "grey.npz", "--steps", "12", "--batch-size", "20"]) == 0
    assert commands.main(["train", "--resume", "run"]) == 0


def test_images_the_diffusion_model_cannot_take_leave_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.shapes(60, size=30).save(here / "own.npz")
    assert commands.main(["train", "--recipe", "ddpm", "--data", "own.npz"]) == 1
    assert "sides are multiples of 8 pixels; those of --data own.npz have 30 x 30" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_classifier_is_trained_explained_and_examined(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["train", "--tiny"]) == 0
    (folder,) = (here / "runs").iterdir()
    assert folder.name.endswith("-shapes-tiny")
    assert {"settings.json", "best.pt", "metrics.csv", "confusion.png", "report.html"} <= {
        *(x.name for x in folder.iterdir())
    }
    said = capsys.readouterr().out
    assert "s of training on this machine" in said
    assert "val_acc" in said
    assert commands.main(["explain", str(folder), "--method", "saliency", "--count", "3"]) == 0
    assert (folder / "explanations" / "saliency.png").is_file()
    assert "Explanations" in (folder / "report.html").read_text()
    assert commands.main(["explain", str(folder), "--class", "dragon"]) == 1
    assert "--class 'dragon' is unknown; the classes are" in capsys.readouterr().err
    assert commands.main(["explain", str(folder), "--class", "circle"]) == 1
    assert "--class 'circle' fits 2 classes, " in capsys.readouterr().err
    assert commands.main(["doctor", str(folder), "--steps", "0"]) == 0
    capsys.readouterr()
    assert commands.main(["train", "--resume", str(folder)]) == 0  # it is over already, and says so
    assert "s of training on this machine" not in capsys.readouterr().out
    assert commands.main(["train", "--tiny", "--folder", str(folder)]) == 0  # the same
    assert [path.name for path in (here / "runs").iterdir()] == [folder.name]
    assert not (folder / "metrics-2.csv").exists()


def test_one_process_of_several_trains_on_its_part_and_writes_no_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert training.own_part() == {"rank": 1, "world_size": 2}
    shared.write_settings(here, {})
    assert not (here / "settings.json").exists()


def test_a_diffusion_model_is_trained_and_sampled(here: Path) -> None:
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--name", "small"]) == 0
    (folder,) = (here / "runs").iterdir()
    assert folder.name.endswith("-small")
    assert [*(folder / "samples").glob("*.png")]
    assert commands.main(["generate", str(folder), "--per-class", "1", "--steps", "2"]) == 0
    assert len([*(folder / "generated").rglob("*.png")]) == 10


def test_a_diffusion_model_is_trained_by_the_recipe_and_the_minutes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--minutes", "0.02", "--folder", "run"]) == 0
    assert "updates" in capsys.readouterr().out
    planned = json.loads((here / "run" / "plan.json").read_text())["updates"]
    checkpoint = load_checkpoint(here / "run" / "last.pt")
    assert checkpoint["run"]["step"] <= planned
    recipe = recipes.DiffusionRecipe.load(here / "run")
    assert recipe == recipes.DDPM["strong"].tiny()
    assert checkpoint["config"]["task"]["target"] == recipe.target == "velocity"
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--minutes", "9", "--folder", "run"]) == 1
    assert "run holds a run of --minutes 0.02, not 9.0; go on with the flags" in capsys.readouterr().err
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--minutes", "0", "--folder", "other"]) == 1
    assert "--minutes 0 must be a finite number above 0" in capsys.readouterr().err
    assert not (here / "other").exists()
    assert commands.main(["train", "--tiny", "--minutes", "9"]) == 1
    assert "--minutes 9 is for --recipe ddpm; 4-minutes takes its own time" in capsys.readouterr().err


def test_a_diffusion_run_of_before_goes_on_by_its_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.shapes(60, size=16).save(here / "own.npz")
    command = ["train", "--data", "own.npz", "--recipe", "ddpm", "--base-channels", "8", "--folder", "run"]
    with monkeypatch.context() as before:
        before.setitem(recipes.DDPM, "strong", recipes.DiffusionRecipe(patch=2, ema=0.999))
        assert commands.main([*command, "--epochs", "1"]) == 0
    (here / "run" / "recipe.json").unlink()
    settings = json.loads((here / "run" / "settings.json").read_text())
    del settings["flags"]["minutes"]
    (here / "run" / "settings.json").write_text(json.dumps(settings))
    assert commands.main([*command, "--epochs", "2"]) == 0
    checkpoint = load_checkpoint(here / "run" / "last.pt")
    assert (checkpoint["run"]["epoch"], checkpoint["config"]["task"]["target"]) == (2, "noise")
    assert commands.main(["train", "--resume", "run"]) == 0
    assert commands.main(["generate", "run", "--per-class", "1", "--steps", "2"]) == 0


def test_settings_without_a_size_of_images_are_damaged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["train", "--tiny", "--recipe", "ddpm", "--folder", "run"]) == 0
    settings = json.loads((here / "run" / "settings.json").read_text())
    for wrong in ([], {}, [3, 32], [3, 32, "x"], None):
        (here / "run" / "settings.json").write_text(json.dumps(settings | {"image_shape": wrong}))
        assert commands.main(["generate", "run"]) == 1
        assert f"image_shape={wrong!r} is no [C, H, W]" in capsys.readouterr().err


def test_what_cannot_be_meant_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["train", "--resume", "a", "--folder", "b"]) == 1
    assert "--resume and --folder both name the folder of the run; give one of them" in capsys.readouterr().err
    data.shapes(300).save(here / "few.npz")
    assert commands.main(["train", "--data", "few.npz"]) == 1
    assert "has 243 images to train on, and --recipe 4-minutes takes batches of 1000" in capsys.readouterr().err
    data.shapes(40).save(here / "fewer.npz")
    assert commands.main(["train", "--tiny", "--data", "fewer.npz"]) == 1
    assert "images to train on, and --tiny takes batches of 50" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_rate_is_looked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["lr-find", "--tiny", "--steps", "12", "--batch-size", "20"]) == 0
    (folder,) = (here / "runs").iterdir()
    assert {x.name for x in folder.iterdir()} == {"learning_rate.csv", "learning_rate.png", "report.html"}
    assert (folder / "learning_rate.csv").read_text().startswith("learning_rate,loss,smooth,suggestion\n")
    assert "suggest" in capsys.readouterr().out


def test_the_doctor_warns_and_fails(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    assert commands.main(["doctor", "--steps", "0", "--model", "resnet18", "--stem", "imagenet"]) == 0
    assert "warning  stem: 7x7" in capsys.readouterr().out
    assert commands.main(["doctor", "--steps", "0", "--folder", "file"]) == 1
    assert "problem  folder: file cannot be written" in capsys.readouterr().out


def test_files_and_folders_give_a_tenth_for_tests(here: Path) -> None:
    data.shapes(100).save(here / "own.npz")
    args = commands.build_parser().parse_args(["train", "--data", "own.npz"])
    parts = [shared.load_images(args, train=train) for train in (True, False)]
    assert [len(part) for part in parts] == [90, 10]
    assert json.dumps(shared.flags_of(args))


def test_the_module_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cifarkit", "nothing"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("cifarkit", run_name="__main__")
    assert end.value.code == 2
    assert "there is no command 'nothing'" in capsys.readouterr().err


def test_images_that_cannot_be_drawn_or_have_other_classes_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, labels = torch.zeros(40, 4, 16, 16, dtype=torch.uint8), torch.arange(40) % 2
    data.ImageDataset(pixels, labels, ("a", "b")).save("four.npz")
    for recipe in ("4-minutes", "ddpm"):
        assert commands.main(["train", "--tiny", "--data", "four.npz", "--recipe", recipe]) == 1
        assert "--data four.npz has images of 4 channels; 1 or 3 can be drawn" in capsys.readouterr().err
    assert not (here / "runs").exists()
    args = argparse.Namespace(data="four.npz", size=None, tiny=False)
    with pytest.raises(ValueError, match="class"):
        shared.load_images(args, train=False, classes=("a", "c"))


def test_a_run_finds_data_that_were_moved() -> None:
    settings = {"flags": {"root": "old", "download": False, "data": "cifar10"}}
    assert shared.recorded_flags(settings).root == "old"
    assert shared.recorded_flags(settings, argparse.Namespace(root=None, download=False)).root == "old"
    assert shared.recorded_flags(settings, argparse.Namespace(root="data", download=False)).root == "data"
    moved = shared.recorded_flags(settings, argparse.Namespace(root="new", download=True, data="shapes"))
    assert (moved.root, moved.download, moved.data) == ("new", True, "cifar10")


def test_a_run_without_a_checkpoint_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["train", "--tiny", "--folder", "run"]) == 0
    for path in (here / "run").glob("*.pt"):
        path.unlink()
    capsys.readouterr()
    assert commands.main(["explain", "run"]) == 1
    assert "run holds no checkpoint yet; train on by python -m cifarkit train --resume run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--val", "0"], "--val 0 must be above 0 and below 1"),
        (["train", "--epochs", "3"], "--epochs 3 is for --recipe ddpm; 4-minutes takes its own length"),
        (
            ["train", "--tiny", "--base-channels", "8"],
            "--base-channels 8 is for --recipe ddpm; 4-minutes takes",
        ),
        (["train", "--recipe", "ddpm", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["train", "--recipe", "ddpm", "--base-channels", "0"], "--base-channels 0 must be at least 1"),
        (
            ["train", "--recipe", "ddpm", "--tiny", "--epochs", "2"],
            "--epochs 2 does not go with --tiny, which has its own length",
        ),
        (["train", "--recipe", "ddpm", "--minutes", "nan"], "--minutes nan must be a finite number above 0"),
        (["train", "--name", "a", "--folder", "b"], "--name a is for a new folder below runs/; b has its name"),
        (["train", "--resume", "a", "--epochs", "9"], "goes on with the flags that the run had; leave out --epochs 9"),
        (["doctor", "--stem", "imagenet"], "--stem imagenet is for --model resnet18 or resnet34"),
        (["doctor", "run", "--image-size", "64"], "--image-size is for a network without a run; leave it or RUN out"),
    ],
)
def test_flags_that_do_nothing_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert commands.main(arguments) == 1
    assert words in capsys.readouterr().err
    assert not [*here.iterdir()]
