"""Train a good CIFAR-10 classifier in the minutes you have, on a laptop's CPU.

    python examples/speedrun.py --data cifar10 --root data --download --recipe 4-minutes --test

Before it starts it times a few updates and says how long the run will take on this machine. Accuracies that were
reached stand in docs/results.md. A stopped or killed run goes on with the same flags and --resume <its folder>; one
whose --folder is named goes on whenever the same command is given again.
"""

import argparse
import time
from pathlib import Path

import cifarkit
from cifarkit import data, recipes, training, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--recipe", default="4-minutes", choices=list(recipes.SPEEDRUN), help="by the time on two cores, or the accuracy")
flag("--seed", type=int, default=0)
flag("--val", type=float, default=0.0, help="share of the training images to hold out and look at after each epoch")
flag("--test", metavar="FILE", nargs="?", const="", help="look at the test images, once, at the end")
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--resume", metavar="FOLDER", help="to go on with; unlike --folder it must hold a run")
flag("--estimate", action="store_true", help="only say how long it would take")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.resume and args.folder:
    parser.error("--resume and --folder both name the folder of the run; give one of them")
if args.test == "" and args.data not in data.NAMED:
    parser.error(f"--test FILE: {args.data} holds no test images of its own")


def load(source: str, train: bool) -> data.ImageDataset:
    count = 600 if args.tiny and train else None
    classes = None if train else everything.classes  # labels must mean the same
    return data.load(source, root=args.root, train=train, download=args.download, count=count, classes=classes)


cifarkit.seed_everything(args.seed)
everything = load(args.data, train=True)
test_set = load(args.test or args.data, train=False) if args.test is not None else None  # looked at in the end alone
train_set, *held_out = everything.split(1 - args.val, args.val) if args.val else [everything]
recipe = recipes.TINY if args.tiny else recipes.SPEEDRUN[args.recipe]
normalize = transforms.Normalize(*train_set.mean_std())

started = time.perf_counter()
task = recipe.task(train_set)
val_loader = data.Loader(held_out[0], 500, transform=normalize) if held_out else None
loader = recipe.loader(train_set, seed=args.seed, device=recipe.trainer(progress=False).device)
seconds = training.estimate_seconds(recipe.trainer(), task, loader, steps=2 if args.tiny else 20)
print(f"about {seconds:.0f} s of training on this machine, {len(train_set):,} images, {recipe.epochs} epochs")
if args.estimate:
    raise SystemExit
folder = Path(args.resume or args.folder or cifarkit.run_folder(f"{Path(args.data).stem}-speedrun"))
trainer = recipe.trainer(callbacks=[cifarkit.ModelCheckpoint(folder)], loggers=[cifarkit.CSVLogger(folder)])
run = trainer.fit(task, loader, val_loader, resume=args.resume or "auto")
print(f"trained in {run.seconds:.0f} s; weights in {folder}")
if test_set:
    logits = cifarkit.predict(task.model, normalize(test_set.images), views=6, unsure=recipes.UNSURE)
    accuracy = (logits.argmax(1) == test_set.labels).float().mean().item()
    print(f"test_acc {accuracy:.4f}, {time.perf_counter() - started:.0f} s with estimate and evaluation")
