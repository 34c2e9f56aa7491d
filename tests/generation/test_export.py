"""generate_dataset: balanced, the same bytes after any kill, nothing of anybody else touched."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from cifarkit.data import ImageDataset, image_folder
from cifarkit.generation import SampleGenerators, generate_dataset, read_generated, weights_hash

CLASSES = ("cat", "dog", "frog")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def draw(labels: Tensor, generator: SampleGenerators) -> Tensor:
    return torch.stack([torch.rand(3, 4, 4, generator=item) * 2 - 1 for item in generator])


def export(folder: Path, **options: Any) -> ImageDataset:
    return generate_dataset(**{"sample": draw, "classes": CLASSES, "per_class": 4, "folder": folder} | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


class KilledError(Exception):
    """What ends a run in the middle of a batch."""


class Dying:
    """A sampler that is killed when it is asked for batch number ``at``."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, labels: Tensor, generator: SampleGenerators) -> Tensor:
        if self.left == 0:
            raise KilledError
        self.left -= 1
        return draw(labels, generator)


def bright(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    brightness = images.mean((1, 2, 3))
    return brightness > 0, {"brightness": brightness}


# What is written.


def test_folders_files_and_the_dataset_agree(tmp_path: Path) -> None:
    dataset = export(tmp_path / "out")
    names = [f"{name}/{index:06d}.png" for name in CLASSES for index in range(4)]
    assert sorted(contents(tmp_path / "out")) == sorted([*names, "manifest.jsonl", "settings.json"])
    assert dataset.classes == CLASSES
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for other in (read_generated(tmp_path / "out"), image_folder(tmp_path / "out")):
        assert torch.equal(dataset.images, other.images)
        assert torch.equal(dataset.labels, other.labels)


def test_the_manifest_says_where_each_image_is_from(tmp_path: Path) -> None:
    export(tmp_path, seed=7, keep=bright, about={"sampler": "ddim", "steps": 50, "guidance": 0.5, "weights": "ab12"})
    lines = manifest(tmp_path)
    facts = {"sampler": "ddim", "steps": 50, "guidance": 0.5, "weights": "ab12"}
    assert [line["file"] for line in lines] == [f"{name}/{index:06d}.png" for name in CLASSES for index in range(4)]
    assert all(line.items() >= {"seed": 7, **facts}.items() for line in lines)
    assert [(line["label"], line["class"], line["index"]) for line in lines][5] == (1, "dog", 1)
    for line in lines:
        pixels = np.asarray(Image.open(tmp_path / line["file"])).astype(float)
        assert line["scores"]["brightness"] == pytest.approx((pixels / 127.5 - 1).mean(), abs=1e-5)
        assert line["scores"]["brightness"] > 0


def test_a_picture_carries_its_line(tmp_path: Path) -> None:
    export(tmp_path)
    with Image.open(tmp_path / "dog" / "000002.png") as image:
        assert json.loads(image.text["cifarkit"]) == manifest(tmp_path)[6]  # type: ignore[attr-defined]


def test_values_are_rounded_to_the_nearest_of_256(tmp_path: Path) -> None:
    values = torch.tensor([-1.05, -1, -0.999, 0, 0.5, 0.999, 1, 1.05]).view(1, 1, 2, 4)
    dataset = export(tmp_path, sample=lambda labels, _: values.expand(len(labels), 1, 2, 4), per_class=1)
    assert dataset.images[0].flatten().tolist() == [0, 0, 0, 128, 191, 255, 255, 255]


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    dataset = export(tmp_path, sample=lambda labels, generator: draw(labels, generator)[:, :1])
    assert dataset.image_shape == read_generated(tmp_path).image_shape == (1, 4, 4)


def test_a_finished_export_is_only_read(tmp_path: Path) -> None:
    first, before = export(tmp_path), contents(tmp_path)
    again = export(tmp_path, sample=Dying(0))
    assert torch.equal(first.images, again.images)
    assert contents(tmp_path) == before


def test_an_image_depends_on_seed_class_and_index_only(tmp_path: Path) -> None:
    for name, options in {"a": {}, "b": {"batch_size": 5}, "c": {"per_class": 9}, "d": {"seed": 1}}.items():
        export(tmp_path / name, **options)
    a, b, c, d = (contents(tmp_path / name) for name in "abcd")
    assert a == b
    assert all(c[name] == packed for name, packed in a.items() if name != "manifest.jsonl")
    assert all(d[name] != packed for name, packed in a.items())


def test_more_images_may_be_asked_for_later(tmp_path: Path) -> None:
    export(tmp_path / "at once", per_class=7)
    export(tmp_path / "in two")
    export(tmp_path / "in two", per_class=7)
    assert contents(tmp_path / "in two") == contents(tmp_path / "at once")


def test_a_plain_function_may_use_one_generator(tmp_path: Path) -> None:
    def plain(labels: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(len(labels), 3, 4, 4, generator=generator) * 2 - 1

    export(tmp_path / "a", sample=plain, batch_size=5)
    with pytest.raises(KilledError):
        export(tmp_path / "b", sample=Dying(0), batch_size=5)
    export(tmp_path / "b", sample=plain, batch_size=5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# KilledError and continued.


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.booleans())
def test_a_killed_export_resumes_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, per_class: int, kills: list[int], filtered: bool
) -> None:
    root = tmp_path_factory.mktemp("export")
    options: dict[str, Any] = {"batch_size": batch_size, "per_class": per_class, "keep": bright if filtered else None}
    calm = export(root / "calm", **options)
    for at in kills:
        try:
            export(root / "killed", sample=Dying(at), **options)
        except KilledError:
            assert "manifest.jsonl" not in contents(root / "killed")
    resumed = export(root / "killed", **options)
    assert contents(root / "killed") == contents(root / "calm")
    assert torch.equal(calm.images, resumed.images)


SLOWLY = """
import sys, time, torch
from cifarkit.generation import generate_dataset

def draw(labels, generator):
    time.sleep(0.03)
    return torch.stack([torch.rand(3, 4, 4, generator=item) * 2 - 1 for item in generator])

generate_dataset(draw, classes=("cat", "dog", "frog"), per_class=40, folder=sys.argv[1], batch_size=4, progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="looks for SIGKILL")
def test_a_process_killed_for_good_leaves_nothing_that_a_resume_cannot_mend(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOWLY, str(tmp_path / "killed")]
    for pictures in (10, 50):
        with subprocess.Popen(command) as child:
            try:
                while len([*(tmp_path / "killed").rglob("*.png")]) < pictures:
                    assert child.poll() is None, "it ended before it could be killed"
                    time.sleep(0.002)
            finally:
                child.kill()
        assert child.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "manifest.jsonl").exists()
    subprocess.run(command, check=True, timeout=100)
    export(tmp_path / "calm", per_class=40, batch_size=4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")


@pytest.mark.parametrize("filtered", [False, True])
def test_the_same_batches_are_made_again(tmp_path: Path, filtered: bool) -> None:
    """As networks round by the size of the batch, a missing image is made among those it was made among before."""
    batches: list[list[float]] = []

    def note(labels: Tensor, generator: SampleGenerators) -> Tensor:
        images = draw(labels, generator)
        batches.append(images[:, 0, 0, 0].tolist())
        return images

    options: dict[str, Any] = {"sample": note, "batch_size": 5, "keep": bright if filtered else None}
    export(tmp_path, **options)
    calm = batches.copy()
    batches.clear()
    (tmp_path / "dog" / "000001.png").unlink()
    export(tmp_path, **options)
    assert batches
    assert all(batch in calm for batch in batches)
    assert len(batches) < len(calm)


@pytest.mark.parametrize("damage", ["empty", "zeros", "cut", "flipped", "signature", "missing"])
def test_a_damaged_picture_is_made_again(tmp_path: Path, damage: str) -> None:
    export(tmp_path, batch_size=5)
    before, path = contents(tmp_path), tmp_path / "frog" / "000001.png"
    packed = path.read_bytes()
    flipped = bytearray(packed)
    flipped[-30] ^= 1
    broken = {"empty": b"", "zeros": bytes(len(packed)), "cut": packed[:-20], "flipped": flipped}
    path.unlink()
    if damage != "missing":
        path.write_bytes(broken.get(damage, packed[:5]))
    export(tmp_path, batch_size=5)
    assert contents(tmp_path) == before


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    export(tmp_path)
    left = tmp_path / "cat" / ".000001.png.999999999-0123abcd.tmp"
    left.write_bytes(b"half")
    hidden = tmp_path / ".DS_Store"
    hidden.write_bytes(b"of the system")
    export(tmp_path)
    assert (left.exists(), hidden.exists()) == (False, True)


def test_no_picture_appears_before_its_whole_batch_is_on_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    export(tmp_path, per_class=1)
    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        export(tmp_path)
    assert contents(tmp_path) == before


def test_a_full_disk_is_told_with_the_picture_that_did_not_fit(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    export(tmp_path, per_class=1)
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.png'"):
        export(tmp_path)


@pytest.mark.parametrize("filtered", [False, True])
def test_another_sampler_is_found_out(tmp_path: Path, filtered: bool) -> None:
    options: dict[str, Any] = {"batch_size": 5, "keep": bright if filtered else None}
    export(tmp_path, **options)
    (tmp_path / "frog" / "000003.png").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"sample makes other images than those in .* from the same noise; give the"):
        export(tmp_path, sample=lambda labels, generator: draw(labels, generator).flip(3), **options)
    assert contents(tmp_path) == before
    export(tmp_path, sample=lambda labels, generator: draw(labels, generator) * 0.999, **options)


# Filters.


def test_a_filter_sees_what_is_stored(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def note(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images)
        return torch.ones(len(labels), dtype=torch.bool)

    dataset = export(tmp_path, keep=note, classes=("cat",))
    assert torch.equal(((torch.cat(seen) + 1) * 127.5).round().byte(), dataset.images)


def test_a_rejected_image_is_replaced_in_its_place(tmp_path: Path) -> None:
    plain = export(tmp_path / "plain")
    filtered = export(tmp_path / "filtered", keep=lambda images, labels: bright(images, labels)[0])
    passed = plain.images.float().mean((1, 2, 3)) > 127.5
    assert 0 < passed.sum() < len(passed)
    assert torch.equal(plain.images[passed], filtered.images[passed])
    assert (filtered.images.float().mean((1, 2, 3)) > 127.5).all()
    assert [line["attempt"] == 0 for line in manifest(tmp_path / "filtered")] == passed.tolist()


def test_what_stands_there_counts_for_the_hope_of_a_filter(tmp_path: Path) -> None:
    def keep(images: Tensor, labels: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) > 0.04  # three in ten

    options: dict[str, Any] = {"keep": keep, "classes": ("cat",), "per_class": 8}
    export(tmp_path / "whole", **options)
    last = max(manifest(tmp_path / "whole"), key=lambda line: line["attempt"])
    most = last["attempt"] - 2  # enough on average, and too few for the last one alone
    for _ in range(2):
        export(tmp_path / "resumed", **options, max_attempts=most)
        (tmp_path / "resumed" / last["file"]).unlink()
    export(tmp_path / "resumed", **options, max_attempts=most)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_images_without_a_negative_value_are_doubted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"as if in \[0, 1\]; it must return images in \[-1, 1\]"):
        export(tmp_path, sample=lambda labels, generator: draw(labels, generator).abs())


def test_a_hopeless_filter_ends_with_words(tmp_path: Path) -> None:
    def no_dogs(images: Tensor, labels: Tensor) -> Tensor:
        return labels != 1

    message = (
        r"keep turned down (\d+) of \1 candidates of class 'dog', and max_attempts=10 allows as many an image, and 5 "
        "times that for bad luck; .*What was kept stays in .*, which goes on with more max_attempts alone"
    )
    with pytest.raises(RuntimeError, match=message):
        export(tmp_path, keep=no_dogs, max_attempts=10)
    assert not [name for name in contents(tmp_path) if name.startswith("dog")]
    assert (tmp_path / "cat" / "000003.png").exists()  # what was kept stays


def test_a_filter_that_keeps_none_at_all_is_found_out_sooner(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"60 of 60 candidates of all classes, .* improve the generator$"):
        export(tmp_path, keep=lambda images, labels: labels < 0, max_attempts=10)
    export(tmp_path)  # with another filter: nothing was made


def test_bad_luck_alone_makes_no_filter_hopeless(tmp_path: Path) -> None:
    luck = torch.Generator().manual_seed(0)

    def rarely(images: Tensor, labels: Tensor) -> Tensor:  # half of max_attempts an image, some classes need more
        return torch.rand(len(labels), generator=luck) < 0.1

    classes = [f"class {number}" for number in range(40)]
    export(tmp_path, keep=rarely, classes=classes, per_class=1, max_attempts=20)
    assert max(line["attempt"] for line in manifest(tmp_path)) > 20


def test_a_sampler_that_fails_at_once_leaves_the_folder_to_other_settings(tmp_path: Path) -> None:
    def fails(labels: Tensor, generator: SampleGenerators) -> Tensor:
        raise ValueError("steps=0 must be at least 1")

    with pytest.raises(ValueError, match="steps=0"):
        export(tmp_path / "new", sample=fails, about={"steps": 0})
    assert not contents(tmp_path / "new")
    export(tmp_path / "new", about={"steps": 1})
    before = contents(tmp_path / "new")
    with pytest.raises(ValueError, match="steps=0"):  # what was begun keeps its settings
        export(tmp_path / "new", sample=fails, about={"steps": 1}, per_class=5)
    assert contents(tmp_path / "new") == before


@pytest.mark.parametrize(
    ("verdict", "error", "message"),
    [
        (lambda n: torch.rand(n), TypeError, r"keep gives torch.float32 of shape \(12,\) .* it must return bool"),
        (lambda n: torch.ones(2, dtype=torch.bool), TypeError, r"keep gives torch.bool of shape \(2,\) for 12 images"),
        (lambda n: (torch.ones(n, dtype=torch.bool), {"p": torch.rand(3)}), ValueError, "keep gives scores 'p' that"),
        (lambda n: ([True] * n, {"p": torch.full((n,), torch.nan)}), ValueError, "'p' that are not .* finite"),
        (lambda n: ([True] * n, {"p": "high"}), ValueError, "'p' that are not .* finite"),
        (
            lambda n: ([True] * n, torch.rand(n)),
            TypeError,
            r"keep gives torch.float32 of shape \(2, 12\) for 12",
        ),
        (lambda n: ([True] * n, "high"), TypeError, r"keep gives tuple of \['list', 'str'\] for 12 images"),
        (lambda n: None, TypeError, "keep gives NoneType for 12 images; it must return bool"),
    ],
)
def test_wrong_verdicts_are_refused(tmp_path: Path, verdict: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        export(tmp_path, keep=lambda images, labels: verdict(len(labels)))


# Ranks.


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 7), st.permutations(range(3)))
def test_ranks_fill_one_folder(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, per_class: int, order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("ranks")
    alone = export(root / "alone", batch_size=batch_size, per_class=per_class)
    ranks = [rank for rank in order if rank * batch_size < 3 * per_class]
    parts = []
    for done, rank in enumerate(ranks):
        assert (root / "ranks" / "manifest.jsonl").exists() is False, done
        parts.append(export(root / "ranks", batch_size=batch_size, per_class=per_class, rank=rank, world_size=3))
    assert contents(root / "ranks") == contents(root / "alone")
    assert sum(map(len, parts)) == len(alone)


def test_a_rank_leaves_a_damaged_picture_of_another_to_it(tmp_path: Path) -> None:
    for rank in range(3):
        export(tmp_path, batch_size=4, rank=rank, world_size=3)
    whole = contents(tmp_path)
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / "dog" / "000001.png").write_bytes(bytes(100))  # of rank 1
    for rank, done in ((0, False), (2, False), (1, True)):
        export(tmp_path, batch_size=4, rank=rank, world_size=3)
        assert (tmp_path / "manifest.jsonl").exists() is done
    assert contents(tmp_path) == whole


def test_a_rank_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank=1 is left without one of the parts of 100 images"):
        export(tmp_path, rank=1, world_size=2)


# What is refused.


@pytest.mark.parametrize("name", ["holiday.jpg", "manifest.jsonl", "cat/000000.png"])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds '\w+(\.\w+)?' and no settings\.json, so it is not a dataset begun by"):
        export(tmp_path)
    assert contents(tmp_path) == {name: b"precious"}


@pytest.mark.parametrize("name", ["notes.txt", "cat/mine.png", "cat/1.png", "bird/000000.png", "cat/0000001.png"])
def test_foreign_files_in_an_export_are_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    export(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{name.replace('bird/000000.png', 'bird')} is none of this export's files"):
        export(tmp_path, per_class=5)
    assert contents(tmp_path) == before


def test_a_foreign_hidden_file_is_left_alone_whatever_its_name(tmp_path: Path) -> None:
    export(tmp_path)
    for name, own in ((".mine.txt.4194305-deadbeef.tmp", False), (".000001.png.4194305-deadbeef.tmp", True)):
        (tmp_path / "cat" / name).write_bytes(b"precious")
        export(tmp_path, per_class=5)
        assert (tmp_path / "cat" / name).exists() is not own


def test_a_foreign_picture_under_an_own_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    export(tmp_path)
    path = tmp_path / "cat" / "000001.png"
    for suffix in ("PNG", "JPEG"):
        Image.new("RGB", (4, 4)).save(path, suffix)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"cat/000001\.png is no picture that generate_dataset made; move it"):
            export(tmp_path)
        assert path.read_bytes() == before


def test_a_picture_of_another_export_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "one")
    export(tmp_path / "two", seed=1)
    (tmp_path / "two" / "cat" / "000001.png").replace(tmp_path / "one" / "cat" / "000001.png")
    with pytest.raises(ValueError, match=r"000001\.png is of another export; move it elsewhere"):
        export(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "was begun with seed=0, not 1; give the same again"),
        ({"classes": ("cat", "dog")}, r"begun with classes=\['cat', 'dog', 'frog'\], not \['cat', 'dog'\]"),
        ({"about": {"steps": 20}}, r"begun with about\['steps'\]=50, not 20"),
        ({"keep": bright}, "begun with keep=None, not 'bright'"),
        ({"per_class": 3}, "per_class=3, but .*cat already holds 4 images and none is ever deleted; give per_class=4"),
        (
            {"sample": lambda labels, _: torch.zeros(len(labels), 3, 5, 5), "per_class": 5},
            "sample gives images of 3 x 5 x 5, but .* holds 3 x 4 x 4",
        ),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    export(tmp_path, about={"steps": 50})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(tmp_path, **{"about": {"steps": 50}} | change)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("gives", "error", "message"),
    [
        (lambda n: [1] * n, TypeError, "sample gives list; it must return a float tensor of images in"),
        (lambda n: torch.zeros(n, 3, 4, 4, dtype=torch.uint8), TypeError, "sample gives torch.uint8"),
        (lambda n: torch.zeros(n - 1, 3, 4, 4), ValueError, r"sample gives shape \(11, 3, 4, 4\) for 12 labels"),
        (lambda n: torch.zeros(n, 4, 4, 3), ValueError, r"it must return \(12, 1 or 3, H, W\)"),
        (lambda n: torch.full((n, 3, 4, 4), torch.nan), ValueError, "sample gives values that are not finite"),
        (lambda n: torch.full((n, 3, 4, 4), 200.0), ValueError, r"sample gives values from 200 to 200; .*\[-1, 1\]"),
    ],
)
def test_wrong_images_are_refused(tmp_path: Path, gives: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        export(tmp_path, sample=lambda labels, generator: gives(len(labels)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample": 3}, TypeError, "sample is 3; give a function of labels and generator"),
        ({"keep": 3}, TypeError, "keep is 3; give a function of images and labels"),
        ({"per_class": 0}, ValueError, "per_class=0 must be at least 1"),
        ({"per_class": 2**22 + 1}, ValueError, "per_class=4194305 must be at most 4194304"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"seed": 0.5}, TypeError, "seed=0.5 is a float; give an integer"),
        ({"max_attempts": 0}, ValueError, "max_attempts=0 must be at least 1"),
        ({"rank": 1}, ValueError, "rank=1 must be at least 0 and below world_size=1"),
        ({"about": [1]}, TypeError, "about is a list; give a dict such as"),
        ({"about": {"seed": 1}}, ValueError, "about holds 'seed', which the manifest uses itself"),
        ({"about": {"model": nn.Linear(1, 1)}}, TypeError, "about must hold plain values"),
        ({"folder": __file__}, ValueError, "is a file; give a folder"),
        ({"folder": None}, TypeError, "folder=None is a NoneType; give a path"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        export(**{"folder": tmp_path} | change)
    assert not contents(tmp_path)


def test_a_bar_is_shown_on_a_terminal_only(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    export(tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    export(tmp_path / "b", progress=False)
    assert capfd.readouterr() == ("", "")
    export(tmp_path / "b", per_class=5)
    assert re.search(r"15/15 .*<00:00", capfd.readouterr().err)


def test_the_hash_changes_with_any_weight() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = weights_hash(model)
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert weights_hash(model) == before
    model[1].running_mean[0] += 1e-6  # type: ignore[union-attr, index, operator]
    assert weights_hash(model) != before
    assert weights_hash(model.bfloat16()) != before
