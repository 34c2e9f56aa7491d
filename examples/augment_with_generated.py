"""Do generated images help a classifier? Four ways to train it, equal updates, several seeds, one verdict.

    python examples/augment_with_generated.py --data cifar10 --root data --per-class 500 --generated generated

The generator must have seen no real image but those used here: --subset writes them to a file for its training, and
--generated names the folder that generate_dataset.py has filled. Without it, new shapes stand in for perfect images.
"""

import argparse
import statistics

import torch

import cifarkit
from cifarkit import data, generation, models, schedules, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", choices=["shapes", "cifar10"])
flag("--root", default="data", help="where CIFAR-10 lies")
flag("--per-class", type=int, default=500, help="real images of each class")
flag("--subset", metavar="FILE", help="write the real images to a .npz file for a generator, and stop")
flag("--generated", metavar="FOLDER")
flag("--share", type=float, default=0.5, help="of generated images in a batch")
flag("--steps", type=int, default=1000, help="updates, the same for all")
flag("--seeds", type=int, default=3, choices=range(2, 11), metavar="2..10")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()
widths = (64, 256, 256)
if args.tiny:
    widths, args.per_class, args.steps, args.seeds = (8, 16, 16), 10, 4, 2
if args.data != "shapes" and not (args.generated or args.subset):
    parser.error("--generated is needed: only for shapes can others be drawn to stand in for generated images")
if args.data == "shapes":
    everything, test_set = data.shapes(20 * args.per_class), data.shapes(200 if args.tiny else 2_000, seed=1)
else:
    everything, test_set = (data.cifar10(args.root, train=train) for train in (True, False))
real, *_ = everything.split(args.per_class * everything.num_classes)
if args.subset:
    real.save(args.subset)
    print(f"{real} is in {args.subset}")
    raise SystemExit
fake = generation.read_generated(args.generated) if args.generated else data.shapes(len(real), seed=2)
data.MixedLoader(data.Loader(real, 50), fake, args.share)  # refuses what does not fit before any arm is trained
normalize = transforms.Normalize(*real.mean_std())
augment = transforms.Compose([transforms.RandomCrop(32), transforms.RandomHorizontalFlip(), normalize])


def train(augmented: bool, share: float, seed: int) -> float:
    """Train from the seed's weights and return the accuracy on the real test images."""
    cifarkit.seed_everything(seed)
    loader = data.Loader(real, 50, shuffle=True, seed=seed, transform=augment if augmented else normalize)
    model = models.SpeedNet(real.num_classes, widths=widths)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    task = cifarkit.ClassificationTask(model, sgd, label_smoothing=0.1)
    batches = data.MixedLoader(loader, fake, share, tell_apart=True) if share else loader
    run = cifarkit.Trainer(max_steps=args.steps, schedule=schedules.one_cycle(), progress=False).fit(task, batches)
    right = cifarkit.predict(model, normalize(test_set.images)).argmax(1) == test_set.labels
    if share:  # the loader tells both kinds apart, so the task logs them apart
        known = [f"{kind} {run.metrics[f'train_acc_{kind}']:.1%}" for kind in ("real", "generated")]
        print(f"images of the last epoch that were right: {', '.join(known)}")
    return right.float().mean().item()


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half of the interval that holds the true one at 95 % (Student)."""
    student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}.get(len(values), 2.26)
    return statistics.mean(values), student * statistics.stdev(values) / len(values) ** 0.5


arms = {"real": (False, 0.0), "augmented": (True, 0.0), "generated": (False, args.share), "both": (True, args.share)}
results = {name: [train(*arm, seed) for seed in range(args.seeds)] for name, arm in arms.items()}
for name, values in results.items():
    print("{:10} {:.4f} ± {:.4f}".format(name, *interval(values)), f"(95 % of the mean of {args.seeds} seeds)")
gain, error = interval([both - own for both, own in zip(results["both"], results["augmented"], strict=True)])
verdict = "help" if gain > error else "hurt" if gain < -error else "make no clear difference"
print(f"beside classical augmentation, the generated images {verdict}: {gain:+.4f} ± {error:.4f} (95 % of the mean)")
