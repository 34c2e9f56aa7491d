"""How much faster than Captum called with its defaults are attributions of a ResNet-18?

    CIFARKIT_DATA=data python benchmarks/attribution.py --weights runs/<of train_classifier.py>/last.pt
    python benchmarks/attribution.py --tiny     # a minute, drawn images and random weights, to see that it runs

data holds cifar10-train.npz, for the normalisation, and cifar10-test.npz, for the images. Both sides explain the
predicted classes of the same images with the same network in one process, and take turns. Captum is called as its
documentation does, with its defaults: one window at a time, 50 steps, all steps in one pass; only the noise tunnel gets
one sample at a time, kind to its memory. "Equal completeness" gives Captum as many steps as make the worst of
its sums no worse than the worst of ours, in passes of 128 beyond 50 steps, which is kind to it. Smooth-grad-squared
takes 20 steps here and 50 there, which is where its gain comes from, so its maps are near but not equal; a second row
gives both 50. Memory is measured by attribution_memory.py.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import captum.attr
import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor, nn

from cifarkit import data, models, predict, transforms
from cifarkit.attribution import attribute
from cifarkit.attribution.faithfulness import completeness_error
from cifarkit.attribution.ranks import rank_correlation
from cifarkit.inference import cpu_has_bf16
from cifarkit.memory import keep_freed_memory

Explain = Callable[[], Tensor]
STEPS = (50, 64, 100, 128, 200, 256, 512)
SAMPLES, STDEV = 10, 0.2
TARGETS = {  # case -> how many times faster than Captum
    "occlusion 3x3 stride 1, batch 1": 2.5,
    "occlusion 8x8 stride 4, batch 8": 1.5,
    "occlusion 3x3 stride 1, batch 1, bf16": 6.0,
    "integrated gradients, equal completeness": 2.5,
    "smooth grad squared": 2.0,
    "smooth grad squared, 50 steps": 2.0,
}
CLAIMS = {  # what is claimed of a case whose name does not say it all
    "smooth grad squared": "smooth grad squared, 20 steps against Captum's 50",
    "smooth grad squared, 50 steps": "smooth grad squared, 50 steps on both sides",
}
EQUAL = (*list(TARGETS)[:2], "integrated gradients, 50 steps")  # of the same settings on both sides, in fp32


def load(args: argparse.Namespace, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network, normalised images and the predicted classes."""
    folder = os.environ.get("CIFARKIT_DATA")
    if folder and not args.tiny:
        train = data.load_npz(Path(folder, "cifar10-train.npz")).split(0.9, 0.1)[0]
        test = data.load_npz(Path(folder, "cifar10-test.npz"))
    else:
        train, test = data.shapes(200), data.shapes(100, seed=1)
    chosen = test.subset(list(range(0, len(test), len(test) // count))[:count])
    torch.manual_seed(0)
    model = models.resnet18(weights=None if args.tiny else args.weights).eval()
    images = transforms.Normalize(*train.mean_std())(chosen.images)
    images = images[:, :, 12:20, 12:20] if args.tiny else images
    return model, images, predict(model, images, precision="fp32").argmax(1)


def captum_occlusion(model: nn.Module, images: Tensor, labels: Tensor, window: int, stride: int) -> Tensor:
    method = captum.attr.Occlusion(model)
    shape, strides = (3, window, window), (3, stride, stride)
    return method.attribute(images, sliding_window_shapes=shape, strides=strides, target=labels, baselines=0)


def captum_integrated(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    size = None if steps <= 50 else 128
    method = captum.attr.IntegratedGradients(model)
    return method.attribute(images, target=labels, n_steps=steps, internal_batch_size=size)


def captum_smooth(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    torch.manual_seed(0)
    tunnel = captum.attr.NoiseTunnel(captum.attr.IntegratedGradients(model))
    settings = {"nt_type": "smoothgrad_sq", "nt_samples": SAMPLES, "nt_samples_batch_size": 1, "stdevs": STDEV}
    return tunnel.attribute(images, target=labels, **settings)  # all samples in one pass would be 500 images for one


def cases(model: nn.Module, images: Tensor, labels: Tensor, equal: int) -> dict[str, tuple[Explain, Explain]]:
    """Name each case and give both sides of it, Captum's last, which takes equal steps for sums as good as ours."""
    one, few = (images[:1], labels[:1]), (images[:4], labels[:4])
    own, fine, coarse = partial(attribute, model), {"window": 3, "stride": 1}, {"window": 8, "stride": 4}
    slow = partial(captum_occlusion, model, *one, 3, 1)
    return {
        "occlusion 3x3 stride 1, batch 1": (partial(own, *one, "occlusion", **fine), slow),
        "occlusion 3x3 stride 1, batch 1, bf16": (partial(own, *one, "occlusion", precision="bf16", **fine), slow),
        "occlusion 8x8 stride 4, batch 8": (
            partial(own, images, labels, "occlusion", **coarse),
            partial(captum_occlusion, model, images, labels, 8, 4),
        ),
        "integrated gradients, 50 steps": (
            partial(own, *few, "integrated_gradients", steps=50),
            partial(captum_integrated, model, *few, 50),
        ),
        "integrated gradients, equal completeness": (
            partial(own, *few, "integrated_gradients"),
            partial(captum_integrated, model, *few, equal),
        ),
        "smooth grad squared": (
            partial(own, *one, "smooth_grad_squared", samples=SAMPLES, stdev=STDEV),
            partial(captum_smooth, model, *one),
        ),
        "smooth grad squared, 50 steps": (
            partial(own, *one, "smooth_grad_squared", samples=SAMPLES, stdev=STDEV, steps=50),
            partial(captum_smooth, model, *one),
        ),
    }


def steps_for_equal_sums(model: nn.Module, images: Tensor, labels: Tensor, tiny: bool) -> int:
    """Return the least of STEPS with which Captum's worst sum is as good as ours, or the largest."""
    ours = completeness_error(model, images, labels, attribute(model, images, labels, "integrated_gradients")).max()
    for steps in STEPS[: 2 if tiny else None]:
        error = completeness_error(model, images, labels, captum_integrated(model, images, labels, steps)).max()
        if error <= ours:
            return steps
    return STEPS[1 if tiny else -1]


def evaluations(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Count how many gradients our integrated gradients take for an image."""
    sizes: list[int] = []

    def note(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]) * torch.is_grad_enabled())

    handle = model.register_forward_pre_hook(note)
    attribute(model, images, labels, "integrated_gradients")
    handle.remove()
    return sum(sizes) / len(images)


def timed(explain: Explain) -> float:
    start = time.perf_counter()
    explain()
    return time.perf_counter() - start


def compare(report: Report, asked: dict[str, tuple[Explain, Explain]], rounds: int, sides: tuple[int, ...]) -> Table:
    """Time both sides of each case by turns, and hold their maps and the ratios against the aims."""
    rows = []
    for name, (ours, theirs) in asked.items():
        found = {"cifarkit": ours(), "captum": theirs().detach()}  # the first call chooses kernels and maps memory
        seconds = take_turns({"cifarkit": partial(timed, ours), "captum": partial(timed, theirs)}, rounds)
        times = ratios(seconds["captum"], seconds["cifarkit"])
        difference = found["cifarkit"] - found["captum"]
        distance, largest = float(difference.norm() / found["captum"].norm()), float(difference.abs().max())
        alike = float(rank_correlation(found["cifarkit"].sum(1), found["captum"].sum(1)).min())
        spreads = [Spread.of(seconds[side]).text(2) for side in ("cifarkit", "captum")]
        rows.append([name, *spreads, times.text(2), f"{distance:.1e}", f"{alike:.4f}"])
        report.figures[name] = seconds | {"distance": distance, "largest": largest, "rank_correlation": alike}
        if name in TARGETS:
            claim = f"{CLAIMS.get(name, name)}: at least {TARGETS[name]} ×"
            report.aim(claim, times.text(2), times.median >= TARGETS[name])
        if name.endswith("bf16"):
            report.aim(f"{name}: rank correlation to fp32 at least 0.99", f"{alike:.4f}", alike >= 0.99)
        elif name in EQUAL:
            report.aim(f"{name}: no value farther than 1e-5 from Captum's", f"{largest:.1e}", largest <= 1e-5)
    columns = ["case", "cifarkit, s", "Captum, s", "times faster", "relative distance of maps", "rank correlation"]
    return Table(f"ResNet-18, {sides[0]} × {sides[1]} pixels", columns, rows)


def main() -> None:
    parser = arguments(__doc__, "attribution")
    parser.add_argument("--weights", help="of a ResNet-18 trained on CIFAR-10; without it they are random")
    args = parser.parse_args()
    rounds = 1 if args.tiny else 5
    model, images, labels = load(args, 8)
    keep_freed_memory()  # for both sides alike
    report = Report("attribution", {"weights": bool(args.weights), "rounds": rounds, "native_bf16": cpu_has_bf16()})
    report.packages = ("captum",)
    equal, spent = (
        steps_for_equal_sums(model, images[:4], labels[:4], args.tiny),
        evaluations(model, images[:4], labels[:4]),
    )
    print(f"Captum needs {equal} steps for sums as good as ours, which took {spent:g} gradients an image", flush=True)
    report.figures |= {"steps for equal sums": equal, "gradient evaluations an image": spent}
    report.tables.append(compare(report, cases(model, images, labels, equal), rounds, tuple(images.shape[2:])))
    report.publish(destination(args, "attribution"))


if __name__ == "__main__":
    main()
