"""Train a classifier without the Trainer, which is optional: our data, transforms and model, and a loop of one's own.

    python examples/plain_loop.py      # a minute on one core, test accuracy 99 %

The loop does what ``Trainer(max_epochs=epochs, schedule=one_cycle())`` does: the weights agree to 1e-6.
"""

import argparse
import math

import torch
from torch import nn
from torch.nn import functional as F

from cifarkit import data, models, predict, seed_everything, transforms


def one_cycle(progress: float, warmup: float = 0.3) -> float:
    """Return the factor on the peak rate at progress in [0, 1]: from 1/25 up to 1, then down to almost 0."""
    low, height = (1 / 25, progress / warmup) if progress < warmup else (4e-6, (1 - progress) / (1 - warmup))
    return low + (1 - low) * (1 - math.cos(math.pi * height)) / 2


def train(model: nn.Module, loader: data.Loader, epochs: int, lr: float) -> list[dict[str, float]]:
    """Train with SGD up to the peak rate lr, and return the loss and accuracy of each epoch."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    history, step, total = [], 0, epochs * len(loader)
    for epoch in range(epochs):
        model.train()
        loss_sum, correct, seen = torch.zeros(()), torch.zeros(()), 0
        for images, labels in loader:
            optimizer.param_groups[0]["lr"] = lr * one_cycle(step / total)
            logits = model(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            seen, step = seen + len(labels), step + 1
        history.append({"train_loss": loss_sum.item() / seen, "train_acc": correct.item() / seen})
        print(f"epoch {epoch + 1}: loss {history[-1]['train_loss']:.3f}, accuracy {history[-1]['train_acc']:.2%}")
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it works")
    tiny = parser.parse_args().tiny
    seed_everything(0)
    train_set, test_set = data.shapes(500 if tiny else 10_000), data.shapes(200 if tiny else 2_000, seed=1)
    normalize = transforms.Normalize(*train_set.mean_std())
    augment = transforms.Compose([transforms.RandomCrop(32), transforms.RandomHorizontalFlip(), normalize])
    model = models.SpeedNet(train_set.num_classes, widths=(32, 64, 64))
    train(model, data.Loader(train_set, 64, shuffle=True, transform=augment), epochs=1 if tiny else 4, lr=0.1)
    logits = predict(model, normalize(test_set.images))
    print(f"test accuracy {(logits.argmax(1) == test_set.labels).float().mean():.2%}")


if __name__ == "__main__":
    main()
