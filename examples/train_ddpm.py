"""Train a class-conditional diffusion model on small images.

    python examples/train_ddpm.py --data cifar10 --root data --download --patch 2 --epochs 60

--patch 2 works on 2 x 2 pixels at once, a quarter of the work, which suits a CPU. Every few epochs a grid of samples of
the averaged network, a row a class, is written to the run's folder below runs/, at the end also the way of one image
out of noise. generate_dataset.py goes on from there. A stopped run needs the same flags and --resume FOLDER.
"""

import argparse
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, diffusion, plots, schedules, training, transforms
from cifarkit.models import UNet
from cifarkit.training import DiffusionTask, SampleGrid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10 or a .npz file")
flag("--root", default="data", help="where CIFAR-10 lies")
flag("--download", action="store_true", help="fetch CIFAR-10 if it is not there")
flag("--multipliers", type=int, nargs="+", default=[1, 2, 2])
for name, value in {"base-channels": 64, "patch": 1, "epochs": 20, "batch-size": 128, "every": 5, "seed": 0}.items():
    flag(f"--{name}", type=int, default=value)
for name, rate in {"lr": 5e-4, "dropout": 0.0, "ema": 0.999, "label-dropout": 0.1, "guidance": 0.0}.items():
    flag(f"--{name}", type=float, default=rate)
flag("--velocity", action="store_true", help="predict velocity instead of noise")
flag("--linear", action="store_true", help="DDPM's noise schedule instead of the cosine")
flag("--minutes", type=float, help="stop after so long; the learning rate is made for --epochs")
flag("--resume", metavar="FOLDER")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.tiny:
    args.base_channels, args.multipliers, args.epochs, args.every = 8, [1, 1], 1, 1

cifarkit.seed_everything(args.seed)
if args.data == "shapes":
    images = data.shapes(300 if args.tiny else 20_000)
else:
    images = data.cifar10(args.root, download=args.download) if args.data == "cifar10" else data.load_npz(args.data)
train_set, val_set = (images.split(300)[0] if args.tiny else images).split(0.98, 0.02)
to_signed = transforms.Normalize(0.5, 0.5)  # to [-1, 1]
augment = transforms.Compose([transforms.RandomHorizontalFlip(), to_signed])
loader = data.Loader(train_set, args.batch_size, shuffle=True, seed=args.seed, transform=augment)
val_loader = data.Loader(val_set, 500, transform=to_signed)

count, target = train_set.num_classes, "velocity" if args.velocity else "noise"
shape = {name: getattr(args, name) for name in ("base_channels", "multipliers", "patch", "dropout")}
model = UNet(num_classes=count, **shape)
schedule = diffusion.NoiseSchedule.linear() if args.linear else diffusion.NoiseSchedule.cosine()
adam = torch.optim.Adam(model.parameters(), args.lr)
task = DiffusionTask(model, adam, schedule, target=target, label_dropout=args.label_dropout)
labels = torch.arange(count).repeat_interleave(8)
noise = diffusion.draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))


def sample(task: DiffusionTask, first: int | None = None, path: list[torch.Tensor] | None = None) -> torch.Tensor:
    choices = {"guidance": args.guidance, "target": target, "schedule": schedule}
    denoise = diffusion.as_denoiser(task.model, labels[:first], **choices)
    watched = denoise if path is None else lambda x, t: (path.append(x), denoise(x, t))[1]
    return diffusion.sample_ddim(watched, noise[:first], schedule, steps=3 if args.tiny else 31)


folder = Path(args.resume) if args.resume else cifarkit.run_folder("ddpm")
average, path = training.ExponentialMovingAverage(args.ema), []  # path: one image on its way out of noise
grid = SampleGrid(sample, folder / "samples", every_n_epochs=args.every, average=average)
limit = [training.TimeLimit(60 * args.minutes)] if args.minutes else []
callbacks = [average, grid, training.ModelCheckpoint(folder, every_n_steps=500), *limit]
settings = {"precision": "auto", "schedule": schedules.cosine(warmup=0.05), "gradient_clip_val": 1.0}
settings |= {"callbacks": callbacks, "loggers": [training.CSVLogger(folder)], "max_epochs": args.epochs}
run = training.Trainer(**settings).fit(task, loader, val_loader, resume=args.resume)
with average.swapped(task):
    path.append(sample(task, 1, path))
plots.image_grid(torch.cat(path), path=folder / "path.png", value_range=(-1, 1))
print(f"val_loss_ema {run.metrics['val_loss_ema']:.4f} after {run.step} updates and {run.seconds:.0f} s; see {folder}")
