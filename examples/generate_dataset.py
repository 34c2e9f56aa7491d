"""Fill a folder with generated images, the same number of each class; kill it and start it again as you like.

    python examples/generate_dataset.py --run runs/ddpm-2-hours --per-class 5000 --guidance 1 --folder generated

The run is one of train_ddpm.py, which notes its flags there; --steps is of DPM-Solver++. With --classifier (weights of
a SpeedNet, see speedrun.py) only images that it takes for what they are to show are kept. --judge names another one,
whose features give the score that is printed; a filter that judges its own choice flatters it. Several processes share
a folder and the work: those that torchrun starts, or any by --rank 0 --world-size 2 and --rank 1 --world-size 2. Copies
are then looked for, and the score is taken, among the images of rank 0.
"""

import argparse
import json
from pathlib import Path

import torch

import cifarkit
from cifarkit import data, diffusion, generation, models, recipes, transforms
from cifarkit.plots import nearest_pairs
from cifarkit.training import distributed
from cifarkit.training.precision import choose_device

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--run", metavar="FOLDER", help="of train_ddpm.py")
flag("--root", help="where CIFAR lies, if no longer where it did in training")
flag("--guidance", type=float, default=0.0, help="towards the class; 1 makes clearer and less varied images")
flag("--classifier", metavar="FILE", help="weights of a SpeedNet, the filter")
flag("--judge", metavar="FILE", help="weights of another SpeedNet, for the score; without it the filter's")
flag("--recipe", default="4-minutes", choices=[*recipes.SPEEDRUN], help="of speedrun.py, that both were trained by")
flag("--folder", default="generated")
own = {"rank": distributed.rank(), "world-size": distributed.world_size()}  # 0 and 1 without torchrun
for name, value in {"steps": 20, "per-class": 500, "batch-size": 100, "seed": 0, **own}.items():
    flag(f"--{name}", type=int, default=value)
flag("--tiny", action="store_true", help="a few seconds, to see that it works; without --run images are noise")
args = parser.parse_args()
if not (args.run or args.tiny):
    parser.error("--run FOLDER is needed: images of an untrained network are noise")
if args.run and not Path(args.run, "flags.json").is_file():
    parser.error(f"--run {args.run} holds no flags.json, which train_ddpm.py writes")
trained = {"data": "shapes", "root": "data", "base_channels": 8, "multipliers": [1, 1], "patch": 1}
trained |= {"target": "noise", "linear": False, "tiny": True}
if args.run:
    trained = json.loads(Path(args.run, "flags.json").read_text())
if args.tiny:
    args.steps, args.per_class = 2, 2

cifarkit.seed_everything(args.seed)
count = 300 if trained["tiny"] else None
train_set, test_set = (
    data.load(trained["data"], root=args.root or trained["root"], train=train, count=count) for train in (True, False)
)
if trained["data"] not in data.NAMED:
    train_set, test_set = train_set.split(0.98, 0.02)  # as train_ddpm.py does: it never saw the 2 %
classes, normalize = train_set.classes, transforms.Normalize(*train_set.mean_std())
device = choose_device(distributed.own_device("auto"))  # a GPU if there is one, for each process its own
shape = {name: trained[name] for name in ("base_channels", "multipliers", "patch")}
network = models.UNet(num_classes=len(classes), channels=train_set.image_shape[0], **shape).to(device)
schedule = diffusion.NoiseSchedule.linear() if trained["linear"] else diffusion.NoiseSchedule.cosine()
if args.run:
    cifarkit.load_weights(network, Path(args.run, "last.pt"), average="ema")
judge, recipe = args.judge or args.classifier, recipes.SPEEDRUN[args.recipe]
built = {
    file: models.SpeedNet(len(classes), widths=recipe.widths, depth=recipe.depth) for file in (args.classifier, judge)
}
nets = {file: cifarkit.load_weights(net, file).to(device) for file, net in built.items() if file}


def sample(labels: torch.Tensor, generator: generation.SampleGenerators) -> torch.Tensor:
    noise = generator.normal(*train_set.image_shape, device=device)
    choices = {"guidance": args.guidance, "target": trained["target"], "schedule": schedule}
    denoiser = diffusion.as_denoiser(network, labels, **choices)
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
