"""Which pixels made the classifier say so? All methods side by side, as a picture and as a page.

    python examples/explain.py --data cifar10 --root data --model resnet18 --weights runs/<a run>/best.pt

Without --weights a small network first learns the built-in shapes, in about two minutes on two cores. Beside each
method stand the areas under its deletion curve (small is good) and its insertion curve (large is good). With --trust 3
all other figures of trust are computed, too, and written to explanations.json; that takes some minutes. A model with
attention (vit, as vision_transformer.py trains it) gets a row more, what reaches the class through all its layers; for
two methods, deep_lift and grad_cam, it has no rule.
"""

import argparse
import json

import torch

from cifarkit import data, models, predict, schedules, seed_everything, training
from cifarkit.attribution import METHODS, attention_rollout, attribute
from cifarkit.attribution.trust import table, trust
from cifarkit.plots.explanations import explanations
from cifarkit.transforms import Normalize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder, to train on")
flag("--test", help="a .npz file with the images to choose from; --data has them otherwise")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--model", default="speednet", choices=["speednet", "resnet18", "vit"])
flag("--attention", default="graph", choices=["graph", "self"], help="of vit")
flag("--weights", help="of the model: a run's best.pt or last.pt, or a file of save_weights")
flag("--classes", nargs="+", help="an image of each; cat, airplane and ship by default")
flag("--index", nargs="+", type=int, help="these images instead, by their place among the test images")
flag("--ask", help="ask about this class instead of the predicted one")
flag("--methods", nargs="+", choices=METHODS, help="all that the model bears by default")
flag("--scale", default="row", choices=["row", "all", "panel"], help="what has a colour scale of its own")
flag("--max-batch", type=int, help="images in one pass; bounds memory")
flag("--precision", default="fp32", choices=["fp32", "bf16", "auto"])
flag("--trust", type=int, default=0, metavar="N", help="all figures of trust, with N disturbed copies of an image")
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()


def load(train: bool) -> data.ImageDataset:
    file = args.data if train else args.test or args.data
    drawn = ((300 if args.tiny else 12_000) if train else 500) if file == "shapes" else None
    classes = None if train else train_set.classes  # labels must mean the same
    return data.load(file, root=args.root, train=train, download=args.download, count=drawn, classes=classes)


def number_of(name: str) -> int:
    found = [name] if name in names else [own for own in names if name in own]  # "plane" is airplane
    if len(found) != 1:
        parser.error(f"{name!r} is not one class; there are {', '.join(names)}")
    return names.index(found[0])


seed_everything(0)
train_set = load(train=True)
test_set, (channels, *size) = load(train=False), train_set.image_shape
names, normalize = list(test_set.classes), Normalize(*train_set.mean_std())
asked = number_of(args.ask) if args.ask else None  # what is wrong is said before the training
for index in args.index or []:
    if not 0 <= index < len(test_set):
        parser.error(f"--index {index}: the test images are numbered from 0 to {len(test_set) - 1}")
wanted = args.classes or [name for name in ("cat", "airplane", "ship") if name in names] or names[:3]
places = [(test_set.labels == number_of(name)).nonzero()[:50, 0] for name in wanted]
for name, place in zip(wanted, places, strict=True):
    if args.index is None and not len(place):
        parser.error(f"no test image is of class {name!r}; give --classes that have some, or --index")
model: torch.nn.Module
if args.model == "resnet18":
    model = models.resnet18(len(names), weights=args.weights, channels=channels)
elif args.model == "vit":
    sizes = {"image_size": size, "channels": channels} | ({} if args.weights else {"dim": 48, "depth": 3})
    model = models.VisionTransformer(num_classes=len(names), attention=args.attention, **sizes)
else:
    widths = (64, 256, 256) if args.weights else (16, 32, 64)
    model = models.SpeedNet(len(names), widths=widths, channels=channels)
if args.weights and args.model != "resnet18":
    training.load_weights(model, args.weights)
if not args.weights:
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    if args.model == "vit":
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    loader = data.Loader(train_set, 128, shuffle=True, transform=normalize)
    task = training.ClassificationTask(model, optimizer)
    training.Trainer(max_epochs=1 if args.tiny else 8, schedule=schedules.one_cycle()).fit(task, loader)

model.eval()
indices = args.index
if indices is None:  # of each class the first that is classified rightly, if one is
    right = [predict(model, normalize(test_set.images[place])).argmax(1) == test_set.labels[place] for place in places]
    indices = [int(place[hits.int().argmax()]) for place, hits in zip(places, right, strict=True)]
images, labels = test_set.images[indices], test_set.labels[indices]
inputs = normalize(images)
logits = predict(model, inputs)
targets = logits.argmax(1) if asked is None else torch.full_like(labels, asked)
maps, found = {}, {}
attention = attention_rollout(model, inputs) if hasattr(model, "attention_maps") else None
for method in args.methods or [name for name in METHODS if attention is None or name not in ("deep_lift", "grad_cam")]:
    small = {"samples": 5} if args.tiny and method in ("smooth_grad_squared", "gradient_shap") else {}
    request, settings = (model, inputs, targets, method), {"max_batch": args.max_batch, **small}
    maps[method] = attribute(*request, precision=args.precision, **settings)
    found[method] = trust(*request, maps[method], curve_steps=16, disturbed=args.trust, **settings)
    print(found[method], flush=True)
folder, caption = training.run_folder("explain"), {"classes": names, "logits": logits, "labels": labels}
notes = {method: figures.note() for method, figures in found.items()}
content = {"images": indices, "disturbed": args.trust, "figures": [one.as_dict() for one in found.values()]}
content["tables"] = [{"title": "trust", **table(found.values())}]
(folder / "explanations.json").write_text(json.dumps(content, indent=1) + "\n")
caption |= {"targets": targets, "scale": args.scale, "attention": attention, "notes": notes}
for name in ("explanations.png", "explanations.html"):
    explanations(images, maps, folder / name, **caption)
print(f"see {folder}")
