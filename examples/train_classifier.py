"""Train a classifier on any source, with a flag for each trick.

    python examples/train_classifier.py --data cifar10 --root data --download --model resnet18 --precision bf16-mixed

Every run gets a folder of its own below runs/, with settings, metrics, checkpoints and a report. A run that was stopped
or killed goes on with the same flags and --resume runs/<its folder>; one whose --folder is named goes on whenever the
same command is given again. Measured runs stand in docs/results.md. Several processes share each batch:

    torchrun --nproc-per-node 2 --max-restarts 3 examples/train_classifier.py --folder runs/two
"""

import argparse
from pathlib import Path

import torch

from cifarkit import data, models, plots, report, schedules, seed_everything, training, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag(
    "--data",
    default="shapes",
    help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class, all pictures of one size",
)
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--model", default="speednet", choices=["speednet", "resnet18", "resnet34"])
flag("--epochs", type=int, default=10)
flag("--batch-size", type=int, default=128, help="of all processes together")
flag("--optimizer", default="sgd", choices=["sgd", "muon"], help="muon: orthogonal steps for the convolutions")
flag("--lr", type=float, help="peak rate; 0.1 for sgd, 0.03 for muon")
flag("--seed", type=int, default=0)
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--schedule", default="one_cycle", choices=["one_cycle", "cosine", "triangle", "constant"])
flag("--no-augmentation", action="store_true", help="leave out crop and flip")
flag("--padding", type=int, default=4, help="pixels added around the image before the crop")
flag("--alternating-flip", action="store_true", help="mirror each image in every other epoch")
flag("--rotation", type=float, default=0.0, help="degrees")
flag("--cutout", type=int, default=0, help="pixels")
flag("--mix", choices=["Mixup", "CutMix"])
flag("--label-smoothing", type=float, default=0.0)
flag("--accumulate", type=int, default=1, help="micro-batches an update")
flag("--clip", type=float, help="bound on the gradient norm")
flag("--ema", type=float, help="decay of a moving average of the weights")
flag("--swa", action="store_true", help="average the weights of the last quarter")
flag("--patience", type=int, help="epochs without a better val_acc before stopping")
flag("--compile", action="store_true")
flag("--tensorboard", action="store_true")
flag("--wandb", metavar="PROJECT", help="log to Weights & Biases, offline")
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--resume", metavar="FOLDER", help="to go on with; unlike --folder it must hold a run")
flag("--test", metavar="SOURCE", nargs="?", const="", help="look at the test images, once, at the end")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
official = args.data in data.NAMED
if args.resume and args.folder:
    parser.error("--resume and --folder both name the folder of the run; give one of them")
if args.test == "" and not official:
    parser.error("--test needs the file or folder of the test images: --test SOURCE")


def load(source: str, train: bool) -> data.ImageDataset:
    count = 600 if args.tiny and train else None
    classes = None if train else train_set.classes  # labels must mean the same
    return data.load(source, root=args.root, train=train, download=args.download, count=count, classes=classes)


seed_everything(args.seed)
train_set, val_set = load(args.data, train=True).split(0.9, 0.1)
test_set = load(args.test or args.data, train=False) if args.test is not None else None  # looked at in the end alone
normalize = transforms.Normalize(*train_set.mean_std())
flip = transforms.AlternatingFlip() if args.alternating_flip else transforms.RandomHorizontalFlip()
augmentation = [transforms.RandomCrop(train_set.image_shape[1:], args.padding), flip]
augmentation = [] if args.no_augmentation else augmentation
augmentation += [transforms.RandomRotation(args.rotation)] if args.rotation else []
augmentation += [transforms.Cutout(args.cutout)] if args.cutout else []
augment = transforms.Compose([*augmentation, normalize])
part = training.own_part()  # of torchrun: rank 0 of world_size 1 if alone
batch_size = args.batch_size // part["world_size"]
train_loader = data.Loader(train_set, batch_size, shuffle=True, seed=args.seed, transform=augment, **part)
val_loader = data.Loader(val_set, 500, transform=normalize, **part)

build = {"speednet": models.SpeedNet, "resnet18": models.resnet18, "resnet34": models.resnet34}[args.model]
model = build(train_set.num_classes, channels=train_set.image_shape[0])
if args.optimizer == "muon":
    optimizer = training.Muon(training.muon_groups(model, args.lr or 0.03))
else:
    optimizer = torch.optim.SGD(model.parameters(), args.lr or 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
mix = getattr(transforms, args.mix)(1.0) if args.mix else None
task = training.ClassificationTask(model, optimizer, label_smoothing=args.label_smoothing, mix=mix)

folder = Path(args.resume or args.folder or training.run_folder(f"{Path(args.data).stem}-{args.model}"))
callbacks = [training.ModelCheckpoint(folder, "val_acc", every_n_steps=200), training.LearningRateMonitor()]
callbacks += [training.ExponentialMovingAverage(args.ema)] if args.ema else []
callbacks += [training.StochasticWeightAveraging()] if args.swa else []
callbacks += [training.EarlyStopping("val_acc", "max", args.patience)] if args.patience is not None else []
loggers = [training.CSVLogger(folder)]
loggers += [training.TensorBoardLogger(folder)] if args.tensorboard else []
loggers += [training.WandbLogger(args.wandb, folder=folder)] if args.wandb else []
trainer = training.Trainer(
    max_epochs=1 if args.tiny else args.epochs,
    precision=args.precision,
    schedule=getattr(schedules, args.schedule)(),
    accumulate_grad_batches=args.accumulate,
    gradient_clip_val=args.clip,
    compile=args.compile,
    callbacks=callbacks,
    loggers=loggers,
)
run = trainer.fit(task, train_loader, val_loader, resume=args.resume or "auto")
if test_set:
    results = trainer.evaluate(task, data.Loader(test_set, 500, transform=normalize, **part))
if part["rank"] == 0:
    plots.training_curves(run.history, folder / "curves.png")
    page = report(folder)
    print(f"val_acc {run.metrics['val_acc']:.4f} after {run.step} updates and {run.seconds:.0f} s; see {page}")
    if test_set:
        print(f"test_acc {results['val_acc']:.4f}")
