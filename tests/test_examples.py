"""Examples: a wrong flag ends them with a sentence, and one goes on from what another left."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_explain_names_a_class_without_a_test_image(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    classes = np.array(["cat", "dog", "ship"])
    for name, count in (("train", 3), ("test", 2)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(8) % count, classes=classes)
    flags = ["--tiny", "--data", "train.npz", "--test", "test.npz", "--classes", "dog", "ship"]
    command = [sys.executable, EXAMPLES / "explain.py", *flags]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "error: no test image is of class 'ship'" in ended.stderr


@pytest.mark.slow
def test_a_dataset_is_generated_by_what_the_run_was_trained_with(tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(EXAMPLES / command[0]), *command[1:]]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    train, generate = ["train_ddpm.py", "--tiny", "--folder", "run"], ["generate_dataset.py", "--tiny", "--run", "run"]
    assert run(*train, "--target", "noise", "--patch", "1").returncode == 0
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["target"], recipe["patch"], recipe["muon"]) == ("noise", 1, 0.015)
    again = run(*train)
    assert again.returncode == 0, again.stderr
    assert "recipe.json holds, with patch=1, target='noise'; a run that goes on keeps its recipe" in again.stdout
    made = run(*generate)
    assert made.returncode == 0, made.stderr
    assert "ImageDataset(20 images" in made.stdout
    (tmp_path / "run" / "recipe.json").unlink()
    refused = run(*generate)
    assert refused.returncode == 2
    assert "--run run holds no recipe.json, which train_ddpm.py writes" in refused.stderr
