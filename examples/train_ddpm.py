"""Train a class-conditional diffusion model on small images, in the minutes you have.

    python examples/train_ddpm.py --data cifar10 --root data --download --minutes 120 --folder runs/ddpm-2-hours

With --minutes as many updates are planned as fit, so that the learning rate has come down when the time is over. What
the recipes are, cifarkit/recipes/ddpm.py tells. Samples go to the run's folder, and generate_dataset.py goes on from
there. A stopped run goes on with the same flags if they name its --folder. Processes of torchrun share a batch.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from cifarkit import data, diffusion, plots, recipes, run_folder, seed_everything, training, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--recipe", default="strong", choices=[*recipes.DDPM], help="what the next flags change")
flag("--multipliers", type=int, nargs="+", help="of --base-channels, one a level")
for name, value in {"base-channels": None, "patch": None, "batch-size": None, "epochs": 20, "seed": 0}.items():
    flag(f"--{name}", type=int, default=value)
flag("--every", type=int, default=5, help="epochs from one grid of samples to the next")
rates = {"lr": "of Adam", "muon": "of Muon, for convolutions", "ema": "decay of the average", "dropout": None}
rates |= {"label-dropout": "share of labels left out", "min-snr": "bound on the weight of nearly clean images, as 5"}
for name, words in rates.items():
    flag(f"--{name}", type=float, help=words)
flag("--target", choices=["noise", "velocity"])
flag("--log-snr", type=float, nargs=2, help="mean and deviation of log SNR in training, such as 2.4 2.4")
flag("--linear", action="store_true", default=None, help="DDPM's noise schedule instead of the cosine")
flag("--minutes", type=float, help="plan and stop the training by the time instead of --epochs")
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
chosen = dataclasses.asdict(recipes.DDPM[args.recipe])
chosen |= {name: value for name, value in vars(args).items() if name in chosen and value is not None}
recipe = recipes.DiffusionRecipe(**chosen)
if args.tiny:
    recipe, args.epochs, args.every, args.minutes = recipe.tiny(), 1, 1, None

seed_everything(args.seed)
images = data.load(args.data, root=args.root, download=args.download, count=300 if args.tiny else None)
train_set, val_set = images.split(0.98, 0.02)
folder = Path(args.folder or run_folder("ddpm"))
recipe = recipe.of_run(folder)  # which generate_dataset.py builds the network by, too
task, loader = recipe.task(train_set), recipe.loader(train_set, seed=args.seed)
val_loader = data.Loader(val_set, 500, transform=transforms.Normalize(0.5, 0.5), **training.own_part())
labels = torch.arange(train_set.num_classes).repeat_interleave(8)
noise = diffusion.draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))
path: list[torch.Tensor] = []  # one image on its way out of noise


def sample(task: training.DiffusionTask, first: int | None = None) -> torch.Tensor:
    denoise, steps = recipe.denoiser(task.model, labels[:first]), 3 if args.tiny else 31
    watched = (lambda x, t: (path.append(x), denoise(x, t))[1]) if first == 1 else denoise
    return diffusion.sample_ddim(watched, noise[:first], task.schedule, steps=steps, spacing="quadratic")


settings = recipe.settings() | {"precision": args.precision}
length = {"epochs": args.epochs, "minutes": args.minutes, "timed": 2 if args.tiny else 20}
updates = training.plan_updates(folder / "plan.json", task, loader, settings, **length)
average, saves = recipe.average(updates), training.ModelCheckpoint(folder, every_n_steps=500)
grid = training.SampleGrid(sample, folder / "samples", every_n_epochs=args.every, average=average)
limit = [training.TimeLimit(59 * args.minutes)] if args.minutes else []  # what follows the stop takes time, too
settings |= {"callbacks": [average, grid, saves, *limit], "loggers": [training.CSVLogger(folder)]}
if training.distributed.rank() == 0 and not (folder / "last.pt").exists():
    (folder / "flags.json").write_text(json.dumps(vars(args)))
run = training.Trainer(**settings, max_steps=updates).fit(task, loader, val_loader, resume="auto")
if training.distributed.rank() == 0:
    with average.swapped(task):
        path.append(sample(task, 1))
    plots.image_grid(torch.cat(path), path=folder / "path.png", value_range=(-1, 1))
    print(f"val_loss_ema {run.metrics['val_loss_ema']:.4f}, {run.step} updates in {run.seconds:.0f} s; see {folder}")
