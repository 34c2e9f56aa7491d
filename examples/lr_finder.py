"""Find a learning rate, see the curve, and train at the suggestion: about a minute on two cores.

    python examples/lr_finder.py

The sweep is an ordinary fit with a ramp for a schedule, so it respects precision, accumulation and parameter groups,
and it leaves model, optimizer, random state and loader as they were.
"""

import argparse

import torch

import cifarkit
from cifarkit import data, models, schedules, transforms

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it works")
tiny = parser.parse_args().tiny

cifarkit.seed_everything(0)
train_set, val_set = data.shapes(600 if tiny else 8_000).split(0.9, 0.1)
normalize = transforms.Normalize(*train_set.mean_std())
train_loader = data.Loader(train_set, 128, shuffle=True, transform=normalize)
val_loader = data.Loader(val_set, 500, transform=normalize)

model = models.SpeedNet(num_classes=10, widths=(16, 32, 64))
body = [*model.stem.parameters(), *model.groups.parameters()]
groups = [{"params": body, "lr": 0.1}, {"params": model.head.parameters(), "lr": 0.2}]  # kept at 1 : 2
optimizer = torch.optim.SGD(groups, momentum=0.9)
task = cifarkit.ClassificationTask(model, optimizer)

sweep = cifarkit.lr_find(task, train_loader, min_lr=1e-4, max_lr=10, steps=20 if tiny else 100)
folder = cifarkit.run_folder("lr-finder")
sweep.plot(folder / "learning_rate.png")
print(f"{sweep.verdict}; the curve is in {folder}")

for group, ratio in zip(optimizer.param_groups, (1, 2), strict=True):
    group["lr"] = ratio * (sweep.suggestion or 0.1)
trainer = cifarkit.Trainer(max_epochs=1 if tiny else 3, schedule=schedules.one_cycle())
run = trainer.fit(task, train_loader, val_loader)
print(f"val_acc {run.metrics['val_acc']:.1%} after {run.step} updates")
