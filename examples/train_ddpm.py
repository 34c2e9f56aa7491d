"""Train a class-conditional diffusion model on small images, in the minutes you have.

    python examples/train_ddpm.py --data cifar10 --root data --download --patch 2 --velocity --log-snr 2.4 2.4 \\
        --muon 0.015 --batch-size 64 --minutes 120 --folder runs/ddpm-2-hours

With --minutes a few updates are timed first, and as many are planned as fit, so that the learning rate has come down
when the time is over; a brake stops a run that turns out slower. --patch 2 works on 2 x 2 pixels at once, a quarter of
the work, which suits a CPU; the network then has 6.5 M parameters. Grids of samples of the averaged network go to the
run's folder, in the end the way of one image out of noise as well. generate_dataset.py goes on from there. A stopped
run goes on with the same flags, if they name its --folder. Several processes started by torchrun share a batch.
"""

import argparse
import json
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, diffusion, plots, schedules, training, transforms
from cifarkit.models import UNet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--multipliers", type=int, nargs="+", default=[1, 2, 2])
for name, value in {"base-channels": 64, "patch": 1, "epochs": 20, "batch-size": 128, "every": 5, "seed": 0}.items():
    flag(f"--{name}", type=int, default=value)
for name, rate in {"lr": 5e-4, "dropout": 0.0, "label-dropout": 0.1, "guidance": 0.0}.items():
    flag(f"--{name}", type=float, default=rate)
flag("--velocity", dest="target", action="store_const", const="velocity", default="noise", help="instead of noise")
flag("--min-snr", type=float, help="bound on the weight of nearly clean images, such as 5; without it all weigh 1")
flag("--log-snr", type=float, nargs=2, help="mean and deviation of log SNR in training, such as 2.4 2.4")
flag("--muon", type=float, metavar="RATE", help="step convolutions by Muon, such as 0.015, and the rest by Adam")
flag("--ema", type=float, help="decay of the average; without it the average remembers a twentieth of the updates")
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--linear", action="store_true", help="DDPM's noise schedule instead of the cosine")
flag("--minutes", type=float, help="plan and stop the training by the time instead of --epochs")
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.tiny:
    args.base_channels, args.multipliers, args.epochs, args.every = 8, [1, 1], 1, 1

cifarkit.seed_everything(args.seed)
images = data.load(args.data, root=args.root, download=args.download, count=300 if args.tiny else None)
train_set, val_set = images.split(0.98, 0.02)
signed = transforms.Normalize(0.5, 0.5)  # to [-1, 1]
mirrored = transforms.Compose([transforms.RandomHorizontalFlip(), signed])
part = {"rank": training.distributed.rank(), "world_size": training.distributed.world_size()}  # 0 and 1 if alone
batch_size = args.batch_size // part["world_size"]
loader = data.Loader(train_set, batch_size, shuffle=True, seed=args.seed, transform=mirrored, **part)
val_loader = data.Loader(val_set, 500, transform=signed, **part)

shape = {name: getattr(args, name) for name in ("base_channels", "multipliers", "patch", "dropout")}
model = UNet(num_classes=train_set.num_classes, channels=train_set.image_shape[0], **shape)
schedule = diffusion.NoiseSchedule.linear() if args.linear else diffusion.NoiseSchedule.cosine()
optimizer = torch.optim.Adam(model.parameters(), args.lr)
if args.muon:
    optimizer = training.Muon(training.muon_groups(model, args.muon, args.lr, 0.0, adam=True))
choices = {name: getattr(args, name) for name in ("target", "label_dropout", "min_snr", "log_snr")}
task = training.DiffusionTask(model, optimizer, schedule, **choices)
labels = torch.arange(train_set.num_classes).repeat_interleave(8)
noise = diffusion.draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))
path: list[torch.Tensor] = []  # one image on its way out of noise


def sample(task: training.DiffusionTask, first: int | None = None) -> torch.Tensor:
    choices = {"guidance": args.guidance, "target": args.target, "schedule": schedule}
    denoise = diffusion.as_denoiser(task.model, labels[:first], **choices)
    watched = (lambda x, t: (path.append(x), denoise(x, t))[1]) if first == 1 else denoise
    return diffusion.sample_ddim(watched, noise[:first], schedule, steps=3 if args.tiny else 31, spacing="quadratic")


folder = Path(args.folder or cifarkit.run_folder("ddpm"))
settings = {"precision": args.precision, "schedule": schedules.cosine(warmup=0.05), "gradient_clip_val": 1.0}
length = {"epochs": args.epochs, "minutes": args.minutes, "timed": 2 if args.tiny else 20}
updates = training.plan_updates(folder / "plan.json", task, loader, settings, **length)
average = training.ExponentialMovingAverage(1 - 1 / max(10, updates / 20) if args.ema is None else args.ema)
grid = training.SampleGrid(sample, folder / "samples", every_n_epochs=args.every, average=average)
limit = [training.TimeLimit(59 * args.minutes)] if args.minutes else []  # what follows the stop takes time, too
callbacks = [average, grid, training.ModelCheckpoint(folder, every_n_steps=500), *limit]
settings |= {"callbacks": callbacks, "loggers": [training.CSVLogger(folder)], "max_steps": updates}
if part["rank"] == 0 and not (folder / "last.pt").exists():
    (folder / "flags.json").write_text(json.dumps(vars(args)))  # which generate_dataset.py builds the network by
run = training.Trainer(**settings).fit(task, loader, val_loader, resume="auto")
if part["rank"] == 0:
    with average.swapped(task):
        path.append(sample(task, 1))
    plots.image_grid(torch.cat(path), path=folder / "path.png", value_range=(-1, 1))
    loss = f"val_loss_ema {run.metrics['val_loss_ema']:.4f}"
    print(f"{loss} after {run.step} updates and {run.seconds:.0f} s; see {folder}")
