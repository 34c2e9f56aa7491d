"""Kill a training with SIGKILL in mid-epoch, continue it, and compare with one that was left alone: half a minute.

    python examples/resume.py

The weights are equal bit for bit, although the network has dropout and BatchNorm, the images are augmented, an average
runs along and the gradients of two micro-batches are accumulated.
"""

import argparse
import os
import signal
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, models, schedules, transforms

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it works")


class KilledAt(cifarkit.Callback):
    """What a power cut, a full memory or an impatient administrator does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: cifarkit.Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, images: int, killed_at: int | None) -> None:
    """Train, or go on with what an earlier call left in the folder."""
    torch.set_num_threads(1)
    cifarkit.seed_everything(0)
    dataset = data.shapes(images)
    augment = transforms.Compose([transforms.RandomCrop(32), transforms.Normalize(*dataset.mean_std())])
    model = torch.nn.Sequential(models.SpeedNet(64, widths=(8, 16, 32)), torch.nn.Dropout(0.2), torch.nn.Linear(64, 10))
    task = cifarkit.ClassificationTask(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    callbacks = [cifarkit.ModelCheckpoint(folder, every_n_steps=5), cifarkit.ExponentialMovingAverage(0.9)]
    callbacks += [KilledAt(killed_at)] if killed_at else []
    trainer = cifarkit.Trainer(
        max_epochs=3, accumulate_grad_batches=2, schedule=schedules.cosine(), callbacks=callbacks, device="cpu"
    )
    trainer.fit(task, data.Loader(dataset, 32, shuffle=True, transform=augment), resume="auto")


def main() -> None:
    images = 640 if parser.parse_args().tiny else 6_400
    steps = 3 * images // 64
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = Path(folder, "calm"), Path(folder, "killed")
        for path, killed_at in ((calm, None), (killed, steps // 2 + 2), (killed, None)):
            process = get_context("spawn").Process(target=train, args=(path, images, killed_at))
            process.start()
            process.join()
            print(f"{path.name}: exit code {process.exitcode}", flush=True)
        one, other = (cifarkit.load_checkpoint(path / "last.pt")["task"] for path in (calm, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    print(f"{len(one)} tensors are equal bit for bit after {steps} updates")


if __name__ == "__main__":
    main()
