"""Fill a folder with generated images, the same number of each class; kill it and start it again as you like.

    python examples/generate_dataset.py --data cifar10 --root data --patch 2 --velocity --per-class 5000 \\
        --weights runs/ddpm-2-hours/last.pt --average ema --folder generated

Flags of the data and of the network must be those it was trained with; --steps is of DPM-Solver++. With --classifier
(weights of a SpeedNet, see speedrun.py) only images that it takes for what they are to show are kept. --judge names
another one, whose features give the score that is printed; a filter that judges its own choice flatters it. Several
processes share a folder and the work: those that torchrun starts, or any by --rank 0 --world-size 2 and --rank 1
--world-size 2. Copies are then looked for, and the score is taken, among the images of rank 0.
"""

import argparse
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, diffusion, generation, models, recipes, transforms
from cifarkit.plots import nearest_pairs
from cifarkit.training import distributed
from cifarkit.training.precision import choose_device

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="what the network was trained on: shapes, cifar10 or a .npz file")
flag("--root", default="data", help="where CIFAR-10 lies")
flag("--weights", metavar="FILE", help="checkpoint or weights of the U-Net")
flag("--average", choices=["ema", "swa"], help="take the averaged weights of a checkpoint")
flag("--multipliers", type=int, nargs="+", default=[1, 2, 2])
flag("--velocity", action="store_true", help="the network was trained to predict velocity")
flag("--linear", action="store_true", help="the network was trained with the linear schedule, not the cosine")
flag("--guidance", type=float, default=0.0)
flag("--classifier", metavar="FILE", help="weights of a SpeedNet, the filter")
flag("--judge", metavar="FILE", help="weights of another SpeedNet, for the score; without it the filter's")
flag("--recipe", default="4-minutes", choices=[*recipes.SPEEDRUN], help="of speedrun.py, that both were trained by")
flag("--folder", default="generated")
own = {"rank": distributed.rank(), "world-size": distributed.world_size()}  # 0 and 1 without torchrun
counts = {"base-channels": 64, "patch": 1, "steps": 20, "per-class": 500, "batch-size": 100, "seed": 0, **own}
for name, value in counts.items():
    flag(f"--{name}", type=int, default=value)
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
if args.tiny:
    args.base_channels, args.multipliers, args.steps, args.per_class = 8, [1, 1], 2, 2

cifarkit.seed_everything(args.seed)
if args.data == "shapes":
    train_set, test_set = data.shapes(300 if args.tiny else 20_000), data.shapes(300 if args.tiny else 2_000, seed=1)
elif args.data == "cifar10":
    train_set, test_set = (data.cifar10(args.root, train=train) for train in (True, False))
else:
    train_set, test_set = data.load_npz(args.data).split(0.98, 0.02)  # as train_ddpm.py does: it never saw the 2 %
classes, normalize = train_set.classes, transforms.Normalize(*train_set.mean_std())
device = choose_device(distributed.own_device("auto"))  # a GPU if there is one, for each process its own
shape = {name: getattr(args, name) for name in ("base_channels", "multipliers", "patch")}
network = models.UNet(num_classes=len(classes), channels=train_set.image_shape[0], **shape).to(device)
schedule = diffusion.NoiseSchedule.linear() if args.linear else diffusion.NoiseSchedule.cosine()
target = "velocity" if args.velocity else "noise"
if args.weights:
    cifarkit.load_weights(network, args.weights, average=args.average)
    saved = cifarkit.load_checkpoint(args.weights) if args.weights.endswith(".pt") else {}
    trained = saved.get("config", {}).get("task", {})  # files of weights alone do not say
    if trained.get("target", target) != target:
        parser.error(f"{args.weights} was trained to predict {trained['target']}; --velocity says which")
    if trained.get("schedule", repr(schedule)) != repr(schedule):
        parser.error(f"{args.weights} was trained with {trained['schedule']}; --linear says which")
    learnt = saved.get("config", {}).get("loader", {}).get("dataset", repr(train_set)).partition("classes: ")[2]
    if learnt != repr(train_set).partition("classes: ")[2]:
        parser.error(f"{args.weights} was trained on other classes: {learnt.rstrip(')')}; --data says on which images")
elif not args.tiny:
    parser.error("--weights is needed: images of an untrained network are noise")
judge = args.judge or args.classifier
files = {args.classifier, judge} - {None}
recipe = recipes.SPEEDRUN[args.recipe]
built = {file: models.SpeedNet(len(classes), widths=recipe.widths, depth=recipe.depth) for file in files}
nets = {file: cifarkit.load_weights(net, file).to(device) for file, net in built.items()}


def sample(labels: torch.Tensor, generator: generation.SampleGenerators) -> torch.Tensor:
    noise = generator.normal(*train_set.image_shape, device=device)
    denoiser = diffusion.as_denoiser(network, labels, guidance=args.guidance, target=target, schedule=schedule)
    return diffusion.sample_dpm_solver(denoiser, noise, schedule, steps=args.steps, spacing="quadratic")


about = {"sampler": "DPM-Solver++ 2M, quadratic", "steps": args.steps, "guidance": args.guidance}
about |= {"schedule": repr(schedule), "weights": generation.weights_hash(network)}
keep = generation.KeepConfident(nets[args.classifier], normalize) if args.classifier else None
options = {name: getattr(args, name) for name in ("per_class", "folder", "batch_size", "seed", "rank", "world_size")}
made = generation.generate_dataset(sample, classes=classes, keep=keep, about=about, **options)
if args.rank:
    raise SystemExit
check = generation.check_copies(train_set.images, made.images, test_set.images[:2_000], mirror=True)
nearest_pairs(made.images, train_set.images, *check.copies, path=f"{Path(args.folder)}-nearest.png")
print(f"{made} in {args.folder}, each described by a line of its manifest.jsonl\n{check}")
if judge:
    real, fake = (generation.features(nets[judge], part.images, transform=normalize) for part in (test_set, made))
    by_class = {"labels": (test_set.labels, made.labels), "classes": classes, "split": "test images"}
    said = judge + (", which also chose the images, so the score flatters them" if judge == args.classifier else "")
    print(generation.score(real, fake, features=said, **by_class))
