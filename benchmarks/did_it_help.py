"""Do generated images help a classifier that has few real ones? With its control arms, equal updates and intervals.

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/did_it_help.py --minutes 60

500 real images a class are taken. A diffusion model is trained on these alone (examples/train_ddpm.py), and makes a
balanced set. A small SpeedNet is then trained on real images; real ones with classical augmentation (crops and flips);
real and generated ones without it; and both with it. All arms make the same number of updates of the same batch size;
of one seed all begin with the same weights. Differences are paired by the seed, their intervals Student's t over seeds.

Every training is a line of the work file, so a stopped study goes on with the same flags; the generator goes on from
its last checkpoint, its export from its last image.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import generators_shared as shared
from graph_block import STUDENT, difference
from report import Report, Table, arguments, destination

from cifarkit import data, generation

WORK = Path("runs/did_it_help.jsonl")
ARMS = {  # title, classical augmentation, generated images
    "real": ("real", False, False),
    "augmented": ("real + classical augmentation", True, False),
    "generated": ("real + generated", False, True),
    "both": ("real + both", True, True),
}
PAIRS = {  # minuend and subtrahend -> what their difference says
    ("augmented", "real"): "classical augmentation alone",
    ("generated", "real"): "generated images alone",
    ("generated", "augmented"): "generated images instead of classical augmentation",
    ("both", "augmented"): "generated images beside classical augmentation",
}
DECISIVE = ("both", "augmented")


def make_images(args: argparse.Namespace, real: data.ImageDataset, folder: Path) -> data.ImageDataset:
    """Train the generator on the real images, and let it fill a folder; both go on with what is there."""
    subset, run = folder / "real.npz", folder / "ddpm"
    if not subset.exists():
        folder.mkdir(parents=True, exist_ok=True)
        real.save(subset)
    if not (folder / "trained").exists():
        shared.train_ddpm(subset, run, args.minutes, args.tiny)
        (folder / "trained").touch()
    network = shared.read_ddpm(run / "last.pt", real.num_classes, args.tiny)
    about = {"sampler": "DPM-Solver++ 2M", "steps": args.sampler_steps, "weights": generation.weights_hash(network)}
    return generation.generate_dataset(
        shared.ddpm_sample(network, "dpm-solver", args.sampler_steps, real.image_shape),
        classes=real.classes,
        per_class=args.generated_per_class,
        folder=folder / "generated",
        about=about,
    )


def run_missing(args: argparse.Namespace, work: Path, study: dict[str, Any]) -> None:
    """Train every arm and seed that the work file does not hold yet."""
    done = {(item["arm"], item["seed"]) for item in shared.read(work, study)}
    missing = [(arm, seed) for seed in range(args.seeds) for arm in ARMS if (arm, seed) not in done]
    if not missing:
        return
    folder = work.with_suffix("") / hashlib.sha256(repr(study).encode()).hexdigest()[:8]
    _, everything, test_set = shared.load_sets(args.tiny)
    real = everything.split(args.per_class * everything.num_classes)[0]
    # A short training tells how long the others will take; the first updates, which are slower, count as well.
    trial, options = max(2, args.steps // 50), {"tiny": args.tiny, "seed": 0}
    started = time.monotonic()
    shared.train_classifier(real, test_set.split(10 * real.num_classes)[0], steps=trial, **options)
    each = (time.monotonic() - started) / trial * args.steps / 60
    trained = (folder / "trained").exists()
    minutes = len(missing) * each + (0 if trained else args.minutes)
    print(f"{len(missing)} trainings of {each:.1f} minutes to go, about {minutes:.0f} minutes, ", end="")
    print("the generator is trained" if trained else "with the generator's", flush=True)
    fake = make_images(args, real, folder)
    for arm, seed in missing:
        _, augment, generated = ARMS[arm]
        started = time.monotonic()
        accuracy = shared.train_classifier(
            real,
            test_set,
            steps=args.steps,
            seed=seed,
            tiny=args.tiny,
            augment=augment,
            fake=fake if generated else None,
            share=args.share,
        )
        seconds = time.monotonic() - started
        shared.append(work, {"study": study, "arm": arm, "seed": seed, "accuracy": accuracy, "seconds": seconds})
        print(f"seed {seed}, {ARMS[arm][0]}: {accuracy:.4f}", flush=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval."""
    quantile = STUDENT[min(len(values), 10) - 2]
    return statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def summarize(found: list[dict[str, Any]], study: dict[str, Any], picture: Path | None) -> Report:
    """Make the tables, the picture and the verdict of one study."""
    by_arm: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    for item in found:
        by_arm[item["arm"]][item["seed"]] = item
    report = Report("did_it_help", study, figures={"rows": found, "differences": []})
    lines, bars = [], {}
    for arm, by_seed in by_arm.items():
        values = [item["accuracy"] for item in by_seed.values()]
        if len(values) > 1:
            bars[ARMS[arm][0]] = mean, half = interval(values)
            cells = [f"{100 * mean:.2f} ± {100 * half:.2f} %", str(len(values))]
            lines.append([ARMS[arm][0], *cells, f"{statistics.mean(i['seconds'] for i in by_seed.values()):,.0f}"])
    title = f"{study['per_class']} real images a class of {study['data']}, {study['generated_per_class']} generated"
    columns = ["training images", "test accuracy, mean and 95 % interval", "seeds", "seconds each"]
    report.tables.append(Table(title, columns, lines))
    lines = []
    for (first, second), text in PAIRS.items():
        if len(by_arm[first].keys() & by_arm[second].keys()) > 1:
            gain = difference(by_arm[first], by_arm[second], "accuracy")
            assert gain is not None
            verdict = "helps" if gain.low > 0 else "hurts" if gain.high < 0 else "makes no clear difference"
            lines.append([text, gain.text(), gain.over, verdict])
            report.figures["differences"].append({"pair": [first, second], **gain._asdict(), "verdict": verdict})
    columns = ["question", "points, 95 % interval", "over", "verdict"]
    report.tables.append(Table("Paired differences in points of test accuracy", columns, lines))
    for item in report.figures["differences"]:
        if tuple(item["pair"]) == DECISIVE:
            said = {"helps": "help", "hurts": "hurt"}.get(item["verdict"], "make no clear difference")
            amount = f"{100 * item['mean']:+.2f} points ({100 * item['low']:+.2f} to {100 * item['high']:+.2f})"
            sentence = f"Beside classical augmentation, generated images {said}: {amount}, {item['over']}."
            report.figures["verdict"] = sentence
            print(sentence)
    if picture is not None and bars:
        draw(bars, picture, title)
    return report


def draw(bars: dict[str, tuple[float, float]], path: Path, title: str) -> None:
    """Draw each arm's mean and interval; no bars, which would have to begin at 0, far below all differences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    names, means = [*bars], [100 * mean for mean, _ in bars.values()]
    halves = [100 * half for _, half in bars.values()]
    axes.errorbar(means, names, xerr=halves, fmt="o", color="#4c78a8", capsize=4)
    for name, mean in zip(names, means, strict=True):
        axes.annotate(f"{mean:.2f}", (mean, name), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test accuracy in %, with its 95 % interval over seeds")
    axes.set_title(title, loc="left", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture in {path}")


def parse() -> argparse.Namespace:
    """Read the flags, and fill in what depends on others."""
    parser = arguments(__doc__, "did_it_help")
    flag = parser.add_argument
    flag("--per-class", type=int, default=500, help="real images of each class")
    flag("--minutes", type=float, default=60.0, help="of the generator's training")
    flag("--generated-per-class", type=int, default=1_000)
    flag("--sampler-steps", type=int, default=20, help="of DPM-Solver++")
    flag("--share", type=float, default=0.5, help="of generated images in a batch")
    flag("--steps", type=int, default=500, help="updates of each classifier, batches of 500")
    flag("--seeds", type=int, default=3)
    flag("--work", type=Path, help=f"finished trainings, beside a folder of this name; {WORK}, with --tiny nowhere")
    flag("--picture", type=Path, help="where it goes; beside the work file")
    flag("--report-only", action="store_true", help="train nothing, print the tables of the work file")
    args = parser.parse_args()
    if args.tiny:
        args.per_class, args.generated_per_class, args.sampler_steps, args.steps = 20, 10, 2, 3
        args.minutes, args.seeds = 0.1, 2
    if args.seeds < 2:
        parser.error(f"--seeds is {args.seeds}; intervals over seeds need at least 2")
    return args


def main() -> None:
    args = parse()
    name = shared.load_sets(args.tiny)[0]
    names = ("per_class", "minutes", "generated_per_class", "sampler_steps", "share", "steps")
    study = {"data": name, "tiny": args.tiny} | {key: getattr(args, key) for key in names}
    with shared.work_file(args, WORK) as work:
        if not args.report_only:
            run_missing(args, work, study)
        found = shared.read(work, study)
        if not found:
            raise SystemExit(f"{work} holds no finished training of this study; run without --report-only first")
        kept = args.work or not args.tiny
        picture = args.picture or (work.with_suffix(".png") if kept else None)
        summarize(found, study, picture).publish(destination(args, "did_it_help"))


if __name__ == "__main__":
    main()
