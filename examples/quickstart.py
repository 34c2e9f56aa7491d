"""Train, look at and question a classifier of drawn shapes: about two minutes on two cores, no download.

    python examples/quickstart.py

It prints the accuracy (above 99 %), writes six pictures to a new folder below runs/, and report.html, a page that shows
five of them and draws the curves itself.
"""

import argparse

import torch

import cifarkit
from cifarkit import data, models, plots, schedules, transforms

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it works")
tiny = parser.parse_args().tiny

cifarkit.seed_everything(0)
train_set, val_set = data.shapes(600 if tiny else 12_000, seed=0).split(0.9, 0.1)
test_set = data.shapes(200 if tiny else 2_000, seed=1)
normalize = transforms.Normalize(*train_set.mean_std())
augment = transforms.Compose([transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip(), normalize])
train_loader = data.Loader(train_set, 128, shuffle=True, transform=augment)
val_loader = data.Loader(val_set, 500, transform=normalize)

model = models.SpeedNet(num_classes=10, widths=(16, 32, 64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
task = cifarkit.ClassificationTask(model, optimizer)
folder = cifarkit.run_folder("quickstart")

sweep = cifarkit.lr_find(task, train_loader, steps=20 if tiny else 60, min_lr=1e-4)
print(f"{sweep.verdict}, for a constant rate; the cycle below only touches its peak of 0.1")
sweep.plot(folder / "learning_rate.png")

trainer = cifarkit.Trainer(
    max_epochs=1 if tiny else 8,
    schedule=schedules.one_cycle(),
    callbacks=[cifarkit.ModelCheckpoint(folder, monitor="val_acc")],
    loggers=[cifarkit.CSVLogger(folder)],
)
run = trainer.fit(task, train_loader, val_loader)

images = normalize(test_set.images)
logits = cifarkit.predict(model, images)
accuracy = (logits.argmax(1) == test_set.labels).float().mean().item()
augmented, labels = augment(train_set.images[:32]), train_set.labels[:32]
plots.image_grid(augmented, labels, train_set.classes, path=folder / "augmented.png", value_range=(-2, 2))
plots.image_grid(test_set.images[:32], logits[:32].argmax(1), test_set.classes, path=folder / "predictions.png")
plots.training_curves(run.history, folder / "curves.png")
plots.confusion_matrix(logits.argmax(1), test_set.labels, test_set.classes, folder / "confusion.png")
plots.confident_mistakes(test_set.images, logits, test_set.labels, test_set.classes, path=folder / "mistakes.png")
page = cifarkit.report(folder)
print(f"test accuracy {accuracy:.1%} on {len(test_set):,} new images after {run.seconds:.0f} s; pictures in {page}")
