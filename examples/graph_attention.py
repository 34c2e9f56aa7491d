"""Put an attention block behind a trained network and train that alone for five epochs.

    python examples/graph_attention.py --data cifar10 --root data --weights runs/<of train_classifier.py>/last.pt

Without --weights a small network is trained first, in about three minutes on two cores. The features are computed once,
so the block's epochs take seconds. What a block is really worth, on which machine, is in docs/results.md.
"""

import argparse

from torch import cuda, nn, optim

from cifarkit import data, models, plots, predict, schedules, seed_everything, training
from cifarkit.transforms import AlternatingFlip, Compose, Normalize, RandomCrop

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flag = parser.add_argument
flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
flag("--test", metavar="SOURCE", help="score on test images, too: a source as for --data")
flag("--root", default="data", help="where CIFAR lies")
flag("--download", action="store_true", help="fetch CIFAR if it is not there")
flag("--weights", help="DEFAULT or a file for resnet18: a run's last.pt, or a state_dict")
flag("--attention", default="graph", choices=["graph", "self"])
flag("--epochs", type=int, default=6, help="of the small network")
flag("--finetune-epochs", type=int, default=0, help="then train everything, augmented, the backbone at a tenth")
flag("--precision", default="auto", choices=["auto", "fp32", "bf16-mixed", "fp16-mixed"])
flag("--tiny", action="store_true", help="a few seconds, to see that it works")
args = parser.parse_args()


def load(source: str, train: bool) -> data.ImageDataset:
    count = (500 if train else 50) if args.tiny else None
    classes = None if train else train_set.classes  # labels must mean the same
    return data.load(source, root=args.root, train=train, download=args.download, count=count, classes=classes)


def fit(network: nn.Module, optimizer: optim.Optimizer, epochs: int, *loaders: data.Loader) -> None:
    trainer = training.Trainer(max_epochs=epochs, precision=args.precision, schedule=schedules.cosine(warmup=0.1))
    trainer.fit(training.ClassificationTask(network, optimizer, label_smoothing=0.1), *loaders)


def accuracies(network: nn.Module) -> dict[str, str]:
    right = {name: predict(network, normalize(part.images)).argmax(1) == part.labels for name, part in scored.items()}
    return {name: f"{hits.float().mean():.4f}" for name, hits in right.items()}


seed_everything(0)
train_set, val_set = load(args.data, train=True).split(0.9, 0.1)
scored = {"val_acc": val_set} | ({"test_acc": load(args.test, train=False)} if args.test else {})
normalize, channels = Normalize(*train_set.mean_std()), train_set.image_shape[0]
augment = Compose([RandomCrop(train_set.image_shape[1:]), AlternatingFlip(), normalize])
plain, augmented = (data.Loader(train_set, 128, shuffle=True, transform=change) for change in (normalize, augment))
val_loader = data.Loader(val_set, 500, transform=normalize)
if args.weights:
    device = "cuda" if cuda.is_available() else "cpu"
    backbone = models.resnet18(train_set.num_classes, weights=args.weights, channels=channels).to(device)
else:
    backbone = models.SpeedNet(train_set.num_classes, widths=(32, 64, 128), channels=channels)
    fit(backbone, training.Muon(training.muon_groups(backbone)), args.epochs, augmented, val_loader)
print("the backbone alone:", accuracies(backbone))

hybrid = models.HybridClassifier(backbone, attention=args.attention, num_classes=train_set.num_classes)
features = [data.FeatureLoader(loader, hybrid.features) for loader in (plain, val_loader)]
fit(hybrid.head, optim.AdamW(hybrid.parameter_groups(1e-3)), 5, *features)
print(f"with a block of {args.attention} attention, the backbone frozen:", accuracies(hybrid))
if args.finetune_epochs:
    hybrid.unfreeze_backbone()
    fit(hybrid, optim.AdamW(hybrid.parameter_groups(3e-4)), args.finetune_epochs, augmented, val_loader)
    print("after tuning all weights:", accuracies(hybrid))
folder = training.run_folder(f"{args.attention}-attention")
training.save_weights(hybrid, folder / "hybrid.pt")
shown = val_set.images[:: max(1, len(val_set) // 4)][:4]
inputs = normalize(shown).to(next(hybrid.parameters()).device)
weights, grid = hybrid.attention_maps(inputs), hybrid.features(inputs).shape[2:]  # (B, heads, N, N), N = h * w
plots.attention_maps(shown, weights, path=folder / "attention.png", grid=grid)
print(f"query dependence {models.query_dependence(weights).mean():.3f}; see {folder}")
