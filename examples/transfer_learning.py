"""Take over a trained network: first only a new head, then everything at a smaller rate.

    python examples/transfer_learning.py --weights DEFAULT --data cifar10 --root data --download

``--weights DEFAULT`` fetches torchvision's ImageNet weights; a file of weights works offline. Without --weights a small
network is first trained on half of the classes, so that the example runs anywhere in about two minutes.
"""

import argparse

import torch

import cifarkit
from cifarkit import data, models, schedules, transforms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", help="DEFAULT or a file for resnet18")
parser.add_argument("--data", default="shapes", choices=["shapes", "cifar10"])
parser.add_argument("--root", default="data")
parser.add_argument("--download", action="store_true")
parser.add_argument("--images", type=int, default=1_000, help="size of the small data set to learn")
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()

cifarkit.seed_everything(0)
everything = data.shapes(6_000) if args.data == "shapes" else data.cifar10(args.root, download=args.download)
first_half = everything.labels < everything.num_classes // 2
epochs = 1 if args.tiny else 6


def loaders(dataset: data.ImageDataset) -> tuple[data.Loader, data.Loader]:
    train_set, val_set = dataset.split(0.8, 0.2)
    normalize = transforms.Normalize(*train_set.mean_std())
    return data.Loader(train_set, 64, shuffle=True, transform=normalize), data.Loader(val_set, 500, transform=normalize)


def train(model: torch.nn.Module, groups: list[dict], dataset: data.ImageDataset) -> float:
    task = cifarkit.ClassificationTask(model, torch.optim.SGD(groups, momentum=0.9, nesterov=True))
    run = cifarkit.Trainer(max_epochs=epochs, schedule=schedules.cosine(warmup=0.1)).fit(task, *loaders(dataset))
    return run.metrics["val_acc"]


if args.weights:
    small_set = everything.split(args.images)[0]
    model = models.resnet18(everything.num_classes, weights=args.weights)
    head = model.fc
else:
    print("Train on the first half of the classes:")
    source = everything.subset(first_half.nonzero()[:600, 0] if args.tiny else first_half.nonzero()[:, 0])
    model = models.SpeedNet(everything.num_classes, widths=(16, 32, 64))
    train(model, [{"params": list(model.parameters()), "lr": 0.1}], source)
    small_set = everything.subset((~first_half).nonzero()[:, 0]).split(500 if args.tiny else args.images)[0]
    head = model.head

print("Train a new head on a frozen network:")
head.reset_parameters()
cifarkit.freeze(model)
cifarkit.unfreeze(head)  # the rest stays frozen, BatchNorm statistics included
head_only = train(model, [{"params": list(head.parameters()), "lr": 0.1}], small_set)

print("Train everything, the body at a tenth of the head's rate:")
cifarkit.unfreeze(model)
body = [parameter for parameter in model.parameters() if all(parameter is not own for own in head.parameters())]
tuned = train(model, [{"params": body, "lr": 0.01}, {"params": list(head.parameters()), "lr": 0.1}], small_set)
print(f"val_acc with a new head {head_only:.1%}, after tuning everything {tuned:.1%}")
