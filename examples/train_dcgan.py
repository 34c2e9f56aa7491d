"""Train a class-conditional DCGAN on 32 x 32 images, by the plain recipe of 2016 or a stronger one.

    python examples/train_dcgan.py --data cifar10 --root data --download --recipe strong --minutes 45

plain: BatchNorm, Adam(0.5) and the non-saturating loss. strong: spectral norm, hinge loss, differentiable augmentation
and a moving average of the generator. After each epoch a line says in words how it goes, and a grid of samples, a row a
class, is written to the run's folder below runs/. A stopped run goes on with the same flags and --resume FOLDER, one
whose --folder is named whenever the same command is given again. Several processes started by torchrun share a batch.
"""

import argparse
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, training, transforms
from cifarkit.models import Discriminator, Generator
from cifarkit.training import DifferentiableAugmentation, GANHealth, GANTask, SampleGrid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--recipe", default="strong", choices=["plain", "strong"])
flag("--base-channels", type=int, default=64)
flag("--epochs", type=int, default=50)
flag("--minutes", type=float, help="stop after so long")
flag("--batch-size", type=int, default=64, help="of all processes together")
flag("--lr", type=float, default=2e-4)
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--seed", type=int, default=0)
flag("--folder", help="of the run, new or to go on with; a new one below runs/ if left out")
flag("--resume", metavar="FOLDER", help="to go on with; unlike --folder it must hold a run")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.resume and args.folder:
    parser.error("--resume and --folder both name the folder of the run; give one of them")
if args.tiny:
    args.base_channels, args.epochs = 8, 1

cifarkit.seed_everything(args.seed)
train_set = data.load(args.data, root=args.root, download=args.download, count=300 if args.tiny else None)
to_signed = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(0.5, 0.5)])  # to [-1, 1]
part = training.own_part()  # of torchrun: rank 0 of world_size 1 if alone
choices = {"drop_last": True, "seed": args.seed, "transform": to_signed, **part}
loader = data.Loader(train_set, args.batch_size // part["world_size"], shuffle=True, **choices)

strong, classes = args.recipe == "strong", train_set.num_classes
shape = {"base_channels": args.base_channels, "num_classes": classes, "image_size": train_set.image_shape[1]}
shape["channels"] = train_set.image_shape[0]
generator = Generator(**shape)
discriminator = Discriminator(**shape, spectral_norm=strong)
adam = [torch.optim.Adam(network.parameters(), args.lr, betas=(0.5, 0.999)) for network in (generator, discriminator)]
choices = {"loss": "hinge", "augment": DifferentiableAugmentation()} if strong else {}
task = GANTask(generator, discriminator, *adam, **choices)

folder = Path(args.resume or args.folder or cifarkit.run_folder(f"dcgan-{args.recipe}"))
average = training.ExponentialMovingAverage(0.999, network="generator") if strong else None
latents, labels = torch.randn(8 * classes, generator.latent_dim), torch.arange(classes).repeat_interleave(8)
grid = SampleGrid(lambda task: task.generate(latents, labels), folder / "samples", average=average)
callbacks = [GANHealth(max(512, 16 * classes)), grid, training.ModelCheckpoint(folder, every_n_steps=500)]
callbacks += [average] if average else []
callbacks += [training.TimeLimit(60 * args.minutes)] if args.minutes is not None else []
trainer = training.Trainer(
    max_epochs=args.epochs,
    precision=args.precision,
    callbacks=callbacks,
    loggers=[training.CSVLogger(folder)],
)
run = trainer.fit(task, loader, resume=args.resume or "auto")
if part["rank"] == 0:
    best = "the averaged generator" if average else "the generator"
    print(f"{run.step} updates in {run.seconds:.0f} s; samples in {folder / 'samples'}")
    print(f"{best} is read from {folder / 'last.pt'} by load_weights({'average=' + repr('ema') if average else ''})")
