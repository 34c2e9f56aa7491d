"""Train a vision transformer from scratch, with graph attention or the classical one.

    python examples/vision_transformer.py --data cifar10 --root data --epochs 30 --precision bf16-mixed --attention self

Expect less than from a convolutional network: a transformer must learn that near pixels belong together. How accurate
this one gets, on which machine and in how many minutes, is in docs/results.md. --minutes is only a brake, as the
schedule is made for --epochs. A stopped run goes on with the same flags and --resume FOLDER.
"""

import argparse
from pathlib import Path

import torch

from cifarkit import data, models, plots, schedules, seed_everything, training, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--test", metavar="SOURCE", help="score on test images at the end, too: a source as for --data")
flag("--root", default="data", help="where CIFAR lies")
flag("--attention", default="graph", choices=["graph", "self"])
sizes = {"patch-size": 4, "dim": 192, "depth": 6, "heads": 3, "epochs": 10, "batch-size": 256, "cutout": 0, "seed": 0}
for name, default in (sizes | {"weight-decay": 0.05, "label-smoothing": 0.1}).items():
    flag(f"--{name}", type=type(default), default=default)
flag("--optimizer", default="muon", choices=["muon", "adamw"], help="of the matrices between embedding and head")
flag("--lr", type=float, help="0.02 for Muon, 0.001 for AdamW")
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--minutes", type=float, help="stop after so long")
flag("--resume", metavar="FOLDER")
switches = {"download": "CIFAR if it is not there", "tiny": "a few seconds, to see that it works", "cutmix": None}
for name, text in (switches | {"trivial-augment": "one more random change an image, of the milder kind"}).items():
    flag(f"--{name}", action="store_true", help=text)
args = parser.parse_args()
if args.tiny:
    args.dim, args.depth, args.epochs = 48, 2, 1


def load(source: str, train: bool) -> data.ImageDataset:
    count = (500 if train else 50) if args.tiny else None
    names = None if train else train_set.classes  # labels must mean the same
    return data.load(source, root=args.root, train=train, download=args.download, count=count, classes=names)


seed_everything(args.seed)
train_set, val_set = load(args.data, train=True).split(0.9, 0.1)
normalize, (channels, *size) = transforms.Normalize(*train_set.mean_std()), train_set.image_shape
extras = [transforms.TrivialAugment(wide=False)] if args.trivial_augment else []
extras += [transforms.Cutout(args.cutout)] if args.cutout else []
augment = transforms.Compose([transforms.RandomCrop(size), transforms.RandomHorizontalFlip(), *extras, normalize])
train_loader = data.Loader(train_set, args.batch_size, shuffle=True, seed=args.seed, transform=augment)
val_loader = data.Loader(val_set, 500, transform=normalize)
shape = {name: getattr(args, name) for name in ("patch_size", "dim", "depth", "heads", "attention")}
model = models.VisionTransformer(image_size=size, channels=channels, num_classes=train_set.num_classes, **shape)
hidden = [item for item in model.blocks.parameters() if item.dim() > 1]
rest = [item for item in model.parameters() if all(item is not matrix for matrix in hidden)]
groups = [{"params": hidden, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
if muon := args.optimizer == "muon":
    groups[1] |= {"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9, "orthogonal": False}
optimizer = training.Muon(groups, args.lr or 0.02) if muon else torch.optim.AdamW(groups, args.lr or 1e-3)
mix = transforms.CutMix(1.0) if args.cutmix else None
task = training.ClassificationTask(model, optimizer, label_smoothing=args.label_smoothing, mix=mix)
folder = Path(args.resume or training.run_folder(f"vit-{args.attention}"))
callbacks = [training.ModelCheckpoint(folder, "val_acc", every_n_steps=200)]
callbacks += [training.TimeLimit(60 * args.minutes)] if args.minutes is not None else []
options = {"precision": args.precision, "schedule": schedules.cosine(warmup=0.1), "gradient_clip_val": 1.0}
trainer = training.Trainer(max_epochs=args.epochs, callbacks=callbacks, loggers=[training.CSVLogger(folder)], **options)
run = trainer.fit(task, train_loader, val_loader, resume=args.resume)
plots.training_curves(run.history, folder / "curves.png")
shown = val_set.images[:: max(1, len(val_set) // 4)][:4]
weights = model.attention_maps(normalize(shown).to(run.device))[-1]  # of the last layer: (B, heads, N, N)
plots.attention_maps(shown, weights, path=folder / "attention.png")
print(f"val_acc {run.metrics['val_acc']:.4f} after {run.step} updates and {run.metrics['seconds']:.0f} s; see {folder}")
if args.test:
    results = trainer.evaluate(task, data.Loader(load(args.test, train=False), 500, transform=normalize))
    print(f"test_acc {results['val_acc']:.4f}")
