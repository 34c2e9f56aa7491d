"""Examples: a wrong flag ends them with a sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np

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
