"""Fill a folder with generated images, the same number of each class; kill it and start it again as you like.

    python examples/generate_dataset.py --run runs/ddpm-2-hours --per-class 5000 --guidance 1 --folder generated

The run is one of train_ddpm.py. With --classifier (weights of a SpeedNet, see speedrun.py) only images it takes for
what they are to show are kept; --judge names another for the score, as a filter flatters its own choice. Processes of
torchrun share folder and work, or any by --rank 0 --world-size 2 and so on; the score is that of the images of rank 0.
"""

import argparse
import json
from pathlib import Path

import torch

from cifarkit import data, diffusion, generation, models, plots, recipes, seed_everything, training, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--run", metavar="FOLDER", help="of train_ddpm.py")
flag("--root", help="where CIFAR lies, if no longer where it did in training")
flag("--guidance", type=float, default=0.0, help="towards the class; 1 makes clearer and less varied images")
flag("--classifier", metavar="FILE", help="weights of a SpeedNet, the filter")
flag("--judge", metavar="FILE", help="weights of another SpeedNet, for the score; without it the filter's")
flag("--recipe", default="4-minutes", choices=[*recipes.SPEEDRUN], help="of speedrun.py, that both were trained by")
flag("--folder", default="generated")
for name, value in {"steps": 20, "per-class": 500, "batch-size": 100, "seed": 0, **training.own_part()}.items():
    flag(f"--{name.replace('_', '-')}", type=int, default=value)
flag("--tiny", action="store_true", help="a few seconds, to see that it works; without --run images are noise")
args = parser.parse_args()
if not (args.run or args.tiny):
    parser.error("--run FOLDER is needed: images of an untrained network are noise")
for name in ("recipe.json", "flags.json"):
    if args.run and not Path(args.run, name).is_file():
        parser.error(f"--run {args.run} holds no {name}, which train_ddpm.py writes; see python -m cifarkit generate")
trained, recipe = {"data": "shapes", "root": "data", "tiny": True}, recipes.DDPM["strong"].tiny()
if args.run:
    trained = json.loads(Path(args.run, "flags.json").read_text())
    recipe = recipes.DiffusionRecipe.load(args.run)
args.steps, args.per_class = (2, 2) if args.tiny else (args.steps, args.per_class)

seed_everything(args.seed)
where = {"root": args.root or trained["root"], "count": 300 if trained["tiny"] else None}
train_set, test_set = (data.load(trained["data"], train=train, **where) for train in (True, False))
if trained["data"] not in data.NAMED:
    train_set, test_set = train_set.split(0.98, 0.02)  # as train_ddpm.py does: it never saw the 2 %
classes, normalize = train_set.classes, transforms.Normalize(*train_set.mean_std())
device = training.precision.choose_device(training.distributed.own_device("auto"))  # each process its own
network, schedule = recipe.network(len(classes), train_set.image_shape).to(device), recipe.noise_schedule
if args.run:
    training.load_weights(network, Path(args.run, "last.pt"), average="ema")
judge, fast = args.judge or args.classifier, recipes.SPEEDRUN[args.recipe]
own = {"widths": fast.widths, "depth": fast.depth, "channels": train_set.image_shape[0]}
files = {args.classifier, judge} - {None}
nets = {file: training.load_weights(models.SpeedNet(len(classes), **own), file).to(device) for file in files}


def sample(labels: torch.Tensor, generator: generation.SampleGenerators) -> torch.Tensor:
    noise = generator.normal(*train_set.image_shape, device=device)
    denoiser = recipe.denoiser(network, labels, guidance=args.guidance)
    return diffusion.sample_dpm_solver(denoiser, noise, schedule, steps=args.steps, spacing="quadratic")


about = {"sampler": "DPM-Solver++ 2M, quadratic", "steps": args.steps, "guidance": args.guidance}
about |= {"schedule": repr(schedule), "weights": generation.weights_hash(network)}
keep = generation.KeepConfident(nets[args.classifier], normalize) if args.classifier else None
options = {name: getattr(args, name) for name in ("per_class", "folder", "batch_size", "seed", "rank", "world_size")}
made = generation.generate_dataset(sample, classes=classes, keep=keep, about=about, **options)
if args.rank:
    raise SystemExit
check = generation.check_copies(train_set.images, made.images, test_set.images[:2_000], mirror=True)
plots.nearest_pairs(made.images, train_set.images, *check.copies, mirror=True, path=f"{Path(args.folder)}-nearest.png")
print(f"{made} in {args.folder}, whose manifest.jsonl, written when all ranks are through, describes each\n{check}")
if judge:
    real, fake = (generation.features(nets[judge], part.images, transform=normalize) for part in (test_set, made))
    fewest = torch.cat([test_set.class_counts(), made.class_counts()]).min()  # a class's distance needs two of both
    by_class = {"labels": (test_set.labels, made.labels), "classes": classes} if fewest > 1 else {}
    said = judge + (", which also chose the images, so the score flatters them" if judge == args.classifier else "")
    print(generation.score(real, fake, features=said, split="test images", **by_class))
