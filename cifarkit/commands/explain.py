"""Draw which pixels made a trained classifier say so.

    python -m cifarkit explain runs/<its folder> --method integrated_gradients

Test images stand over their explanations, red for what speaks for the predicted class and blue against it; of saliency
and smooth_grad_squared, which have no sign, red says how much only. The picture goes into the run folder, and into its
report.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from cifarkit import plots, predict, reporting
from cifarkit.commands.shared import load_classifier, load_images, normalization, read_settings, recorded_flags
from cifarkit.plots import most_confident_mistakes

_COLUMNS = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    flag = parser.add_argument
    flag("run_folder", metavar="RUN", help="folder of a trained classifier")
    flag("--method", default="integrated_gradients", help="see cifarkit.attribution.METHODS")
    flag("--count", type=int, default=16, help="images (default 16)")
    flag("--mistakes", action="store_true", help="the most confident mistakes instead of the first images")
    flag("--root", help="where CIFAR lies, if no longer where it did in training")
    flag("--download", action="store_true", help="fetch CIFAR if it is not there")
    flag("--class", dest="target", metavar="NAME", help="explain this class instead of the predicted one")


def run(args: argparse.Namespace) -> int:
    """Explain some test images."""
    from cifarkit.attribution import attribute, overlay

    settings = read_settings(args.run_folder, "classifier")
    classes, normalize = settings["classes"], normalization(settings)
    target = None if args.target is None else _index(args.target, classes)
    if args.count < 1:
        raise ValueError(f"--count {args.count} must be at least 1")
    model = load_classifier(args.run_folder, settings)
    test_set = load_images(recorded_flags(settings, args), train=False, classes=classes)
    chosen = torch.arange(min(args.count, len(test_set)))
    if args.mistakes:
        logits = predict(model, normalize(test_set.images))
        chosen = most_confident_mistakes(logits, test_set.labels, args.count)
    if len(chosen) == 0:
        print(f"no mistake among {len(test_set)} images")
        return 0
    images = test_set.images[chosen]
    predicted = predict(model, normalize(images)).argmax(1)
    maps = attribute(model, normalize(images), predicted if target is None else target, args.method)
    shown, captions = [], []
    names = [classes[label] for label in predicted.tolist()]
    for start in range(0, len(chosen), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        gap = [images.new_zeros(1, 3, *images.shape[2:]).float()] * (_COLUMNS - len(images[part]))  # fills the last row
        plain = images[part].expand(-1, 3, -1, -1).float() / 255  # overlays have three channels, grey images one
        shown += [plain, *gap, overlay(images[part], maps[part]), *gap]
        captions += [*names[part], *[""] * (2 * _COLUMNS - len(images[part]))]
    about = "predicted class" if target is None else args.target
    asked = "" if target is None else f"-{target}-{re.sub(r'[^-a-zA-Z0-9]+', '_', classes[target])}"
    name = f"{args.method}{asked}{'-mistakes' if args.mistakes else ''}.png"
    path = Path(args.run_folder) / "explanations" / name
    plots.image_grid(torch.cat(shown), captions, None, _COLUMNS, path, title=f"{args.method} of the {about}")
    print(f"{path}, and {reporting.report(args.run_folder)}")
    return 0


def _index(name: str, classes: list[str]) -> int:
    found = [name] if name in classes else [own for own in classes if name in own]  # "plane" is airplane
    if len(found) != 1:
        problem = f"fits {len(found)} classes, {', '.join(found)}" if found else "is unknown"
        raise ValueError(f"--class {name!r} {problem}; the classes are {', '.join(classes)}")
    return classes.index(found[0])
