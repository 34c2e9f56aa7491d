"""Train a class-conditional diffusion model on small images, in the minutes you have.

    python examples/train_ddpm.py --data cifar10 --root data --download --patch 2 --velocity --min-snr 5 \\
        --minutes 120 --folder runs/ddpm-2-hours

With --minutes a few updates are timed first, and as many are planned as fit, so that the learning rate has come down
when the time is over; a brake stops a run that turns out slower. Without it, --epochs says how long. The average of the
weights remembers a twentieth of the updates, unless --ema gives a decay. --patch 2 works on 2 x 2 pixels at once, a
quarter of the work, which suits a CPU; the network then has 6.5 M parameters.

Every few epochs a grid of samples of the averaged network, a row a class, is written to the run's folder, at the end
also the way of one image out of noise. generate_dataset.py goes on from there. A stopped run goes on with the same
flags, if they name its --folder. Several processes started by torchrun share a batch.
"""

import argparse
import json
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, diffusion, plots, schedules, training, transforms
from cifarkit.files import write_atomically
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
for name, rate in {"lr": 5e-4, "dropout": 0.0, "label-dropout": 0.1, "guidance": 0.0}.items():
    flag(f"--{name}", type=float, default=rate)
flag("--velocity", action="store_true", help="predict velocity instead of noise")
flag("--min-snr", type=float, help="bound on the weight of nearly clean images, such as 5; without it all weigh 1")
flag("--ema", type=float, help="decay of the average; without it one that fits the number of updates")
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--linear", action="store_true", help="DDPM's noise schedule instead of the cosine")
flag("--minutes", type=float, help="plan and stop the training by the time instead of --epochs")
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--resume", metavar="FOLDER", help="to go on with; unlike --folder it must hold a run")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.tiny:
    args.base_channels, args.multipliers, args.epochs, args.every = 8, [1, 1], 1, 1

cifarkit.seed_everything(args.seed)
if args.data == "shapes":
    images = data.shapes(300 if args.tiny else 20_000)
else:
    images = data.cifar10(args.root, download=args.download) if args.data == "cifar10" else data.load_npz(args.data)
train_set, val_set = (images.split(min(300, len(images)))[0] if args.tiny else images).split(0.98, 0.02)
to_signed = transforms.Normalize(0.5, 0.5)  # to [-1, 1]
augment = transforms.Compose([transforms.RandomHorizontalFlip(), to_signed])
part = {"rank": training.distributed.rank(), "world_size": training.distributed.world_size()}  # 0 and 1 if alone
batch_size = args.batch_size // part["world_size"]  # so --batch-size is that of all processes together
loader = data.Loader(train_set, batch_size, shuffle=True, seed=args.seed, transform=augment, **part)
val_loader = data.Loader(val_set, 500, transform=to_signed, **part)

count, target = train_set.num_classes, "velocity" if args.velocity else "noise"
shape = {name: getattr(args, name) for name in ("base_channels", "multipliers", "patch", "dropout")}
model = UNet(num_classes=count, **shape)
schedule = diffusion.NoiseSchedule.linear() if args.linear else diffusion.NoiseSchedule.cosine()
adam = torch.optim.Adam(model.parameters(), args.lr)
task = DiffusionTask(model, adam, schedule, target=target, label_dropout=args.label_dropout, min_snr=args.min_snr)
labels = torch.arange(count).repeat_interleave(8)
noise = diffusion.draw_noise((len(labels), *train_set.image_shape), torch.Generator().manual_seed(0))


def sample(task: DiffusionTask, first: int | None = None, path: list[torch.Tensor] | None = None) -> torch.Tensor:
    choices = {"guidance": args.guidance, "target": target, "schedule": schedule}
    denoise = diffusion.as_denoiser(task.model, labels[:first], **choices)
    watched = denoise if path is None else lambda x, t: (path.append(x), denoise(x, t))[1]
    return diffusion.sample_ddim(watched, noise[:first], schedule, steps=3 if args.tiny else 31)


if args.resume and not (Path(args.resume) / "last.pt").is_file():
    parser.error(f"--resume {args.resume} holds no last.pt to go on from")
folder = Path(args.resume or args.folder or cifarkit.run_folder("ddpm"))
settings = {"precision": args.precision, "schedule": schedules.cosine(warmup=0.05), "gradient_clip_val": 1.0}
plan, told = folder / "plan.json", training.distributed.from_first_rank  # what rank 0 knows holds for all
with training.distributed.process_group():
    # A run that goes on must not be given another end, nor another average.
    updates = told(lambda: json.loads(plan.read_text())["updates"] if plan.exists() else None)
    if updates is None and args.minutes:
        trial = training.Trainer(**settings, max_steps=len(loader), progress=False)
        seconds = training.estimate_seconds(trial, task, loader, steps=2 if args.tiny else 20) / len(loader)
        updates = told(lambda: max(1, int(0.9 * 60 * args.minutes / seconds)))  # a tenth is for averages, grids ...
        if part["rank"] == 0:
            epochs = updates / len(loader)
            print(f"{seconds:.3f} s an update: {updates:,} updates, {epochs:.1f} epochs, are planned", flush=True)
    updates = updates or args.epochs * len(loader)
    told(lambda: write_atomically(json.dumps({"updates": updates}).encode(), plan))

average = training.ExponentialMovingAverage(args.ema or 1 - 1 / max(10, updates / 20))
path: list[torch.Tensor] = []  # one image on its way out of noise
grid = SampleGrid(sample, folder / "samples", every_n_epochs=args.every, average=average)
limit = [training.TimeLimit(60 * args.minutes)] if args.minutes else []
callbacks = [average, grid, training.ModelCheckpoint(folder, every_n_steps=500), *limit]
settings |= {"callbacks": callbacks, "loggers": [training.CSVLogger(folder)], "max_steps": updates}
run = training.Trainer(**settings).fit(task, loader, val_loader, resume=args.resume or "auto")
if part["rank"] == 0:
    with average.swapped(task):
        path.append(sample(task, 1, path))
    plots.image_grid(torch.cat(path), path=folder / "path.png", value_range=(-1, 1))
    loss = f"val_loss_ema {run.metrics['val_loss_ema']:.4f}"
    print(f"{loss} after {run.step} updates and {run.seconds:.0f} s; see {folder}")
