"""Resize a photo of one's own to what the network knows, classify it, and show what it went by.

    python examples/explain_own_image.py --image photo.jpg --weights runs/<a CIFAR-10 run>/best.pt

The three methods are those the survey used on a picture of its own. Without --weights a small network first learns the
built-in shapes, and without --image it explains a shape. A network for photos of 32 x 32 pixels sees little: cut the
picture so that the thing fills it.
"""

import argparse
from pathlib import Path

import torch

from cifarkit import data, models, predict, schedules, seed_everything, training
from cifarkit.attribution import METHODS, attribute
from cifarkit.plots.explanations import explanations
from cifarkit.transforms import Normalize

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--image", help="a picture; any size and format that Pillow reads")
flag("--weights", help="of a resnet18: a run's best.pt or last.pt")
flag("--classes", nargs="+", default=CIFAR10, help="names of the classes of the weights, in order")
flag("--mean", nargs=3, type=float, default=[0.4914, 0.4822, 0.4465], help="of the training images of the weights")
flag("--std", nargs=3, type=float, default=[0.2470, 0.2435, 0.2616])
flag("--size", type=int, default=32, help="pixels of a side in training")
flag("--methods", nargs="+", default=["smooth_grad_squared", "gradient_shap", "occlusion"], choices=METHODS)
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()

seed_everything(0)
if args.weights:
    classes, normalize = args.classes, Normalize(args.mean, args.std)
    model = models.resnet18(len(classes), weights=args.weights)
else:
    train_set = data.shapes(300 if args.tiny else 12_000, size=args.size)
    classes, normalize = list(train_set.classes), Normalize(*train_set.mean_std())
    model = models.SpeedNet(len(classes), widths=(16, 32, 64))
    task = training.ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True))
    loader = data.Loader(train_set, 128, shuffle=True, transform=normalize)
    training.Trainer(max_epochs=1 if args.tiny else 8, schedule=schedules.one_cycle()).fit(task, loader)

model.eval()
drawn = data.shapes(1, seed=7, size=args.size).images
images = data.read_images(args.image, size=args.size) if args.image else drawn  # uint8 (1, 3, H, W)
inputs = normalize(images)
logits = predict(model, inputs)
for share, index in zip(*logits.softmax(1)[0].topk(min(3, len(classes))), strict=True):
    print(f"{classes[index]:12} {share:.1%}")
few = {"samples": 5} if args.tiny else {}
maps = {}
for method in args.methods:
    samples = few if method in ("smooth_grad_squared", "gradient_shap") else {}
    maps[method] = attribute(model, inputs, logits.argmax(1), method, **samples)
folder = training.run_folder(f"explain-{Path(args.image).stem}" if args.image else "explain-shape")
for name in ("explanations.png", "explanations.html"):
    explanations(images, maps, folder / name, classes=classes, logits=logits, over_image=True)
print(f"see {folder}")
