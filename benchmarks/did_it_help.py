"""Do generated images help a classifier that has few real ones? With its control arms, equal updates and intervals.

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/did_it_help.py --minutes 60

500 real images a class are taken. A diffusion model is trained on these alone (examples/train_ddpm.py), and makes a
balanced set with a guidance of 1. A small SpeedNet is then trained on real images; real ones with classical
augmentation (crops and flips); real and generated ones without it; and both with it. All arms make the same number of
updates of the same batch size; of one seed all begin with the same weights. Differences are paired by the seed, their
intervals Student's t over seeds. The generator itself is trained with flips, so what it makes brings some of the
classical augmentation along. Whether it copies its few images is looked at: nearest training images, against those of
test images.

With --ddpm the generator is one that examples/train_ddpm.py trained on all images before, and all 5,000 real images a
class are taken; that is another study, in another file.

Every training is a line of the work file, so a stopped study goes on with the same flags; the generator goes on from
its last checkpoint, its export from its last image.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import generators_shared as shared
from graph_block import STUDENT, difference
from report import DATA, Report, Table, arguments, destination

from cifarkit import data, generation, plots

WORK = Path("runs/did_it_help.jsonl")
VERSION = 5  # of the recipes and figures below: trainings of another one are not taken over
GRID_EPOCHS = 25  # between two grids: epochs of 5,000 images are short, and the plan leaves a tenth for all but updates
ARMS = {  # title, classical augmentation, generated images
    "real": ("real", False, False),
    "augmented": ("real + classical augmentation", True, False),
    "generated": ("real + generated, by a model that saw flips", False, True),
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
    """Train the generator on the real images, unless one is given, and let it fill a folder; both go on."""
    network = shared.read_ddpm(args.ddpm or train_generator(args, real, folder), real.num_classes, args.tiny)
    about = {
        "sampler": "DPM-Solver++ 2M, quadratic",
        "steps": args.sampler_steps,
        "guidance": args.guidance,
        "weights": generation.weights_hash(network),
    }
    return generation.generate_dataset(
        shared.ddpm_sample(network, "dpm-solver", args.sampler_steps, real.image_shape, args.guidance),
        classes=real.classes,
        per_class=args.generated_per_class,
        folder=folder / f"generated-{name_images(args)}",
        about=about,
    )


def name_images(args: argparse.Namespace) -> str:
    return f"{args.generated_per_class}-{args.sampler_steps}-{args.guidance:g}"


def train_generator(args: argparse.Namespace, real: data.ImageDataset, folder: Path) -> Path:
    """Train the generator on the real images alone; return its weights."""
    subset, run = folder / "real.npz", folder / "ddpm"
    if not subset.exists():
        folder.mkdir(parents=True, exist_ok=True)
        real.save(subset)
    if not (folder / "trained").exists():
        shared.warn_of_load(max(1.0, 0.5 * (os.cpu_count() or 1)))
        shared.train_ddpm(subset, run, args.minutes, args.tiny, GRID_EPOCHS)
        (folder / "trained").touch()
    return run / "last.pt"


def describe_generator(args: argparse.Namespace, folder: Path, fake: data.ImageDataset, real: data.ImageDataset) -> Any:
    """Return how long the generator was trained, and whether it copies; draw the nearest pairs."""
    test_set = shared.load_sets(args.tiny)[2]
    check = generation.check_copies(real.images, fake.images, test_set.images, mirror=True)
    pairs = folder / f"copies-{name_images(args)}.png"
    plots.nearest_pairs(fake.images, real.images, *check.copies, mirror=True, path=pairs)
    end = shared.read_end(args.ddpm or folder / "ddpm" / "last.pt")
    return end | {"copies": str(check), "nearer_than_99_percent": check.share, "pairs": str(pairs)}


def folder_of(work: Path, study: dict[str, Any]) -> Path:
    """Name the folder of the generator, which stays whatever classifiers are trained on what it makes."""
    known = {name: study[name] for name in ("data", "tiny", "per_class", "minutes", "ddpm", "recipe")}
    return work.with_suffix("") / hashlib.sha256(repr(known).encode()).hexdigest()[:8]


def run_missing(args: argparse.Namespace, work: Path, study: dict[str, Any]) -> None:
    """Train every arm and seed that the work file does not hold yet."""
    rows = shared.read(work, study)
    done = {(item["arm"], item["seed"]) for item in rows if "arm" in item}
    missing = [(arm, seed) for seed in range(args.seeds) for arm in ARMS if (arm, seed) not in done]
    described = any("generator" in item for item in rows)
    if not missing and described:
        return
    folder = folder_of(work, study)
    _, everything, test_set = shared.load_sets(args.tiny)
    real = everything.split(args.per_class * everything.num_classes)[0]
    # A short training tells how long the others will take; the first updates, which are slower, count as well.
    trial, options = max(2, args.steps // 50), {"tiny": args.tiny, "seed": 0}
    started = time.monotonic()
    shared.train_classifier(real, test_set.split(10 * real.num_classes)[0], steps=trial, **options)
    each = (time.monotonic() - started) / trial * args.steps / 60
    trained = args.ddpm or (folder / "trained").exists()
    minutes = len(missing) * each + (0 if trained else args.minutes)
    print(f"{len(missing)} trainings of {each:.1f} minutes to go, about {minutes:.0f} minutes, ", end="")
    print("the generator is trained" if trained else "with the generator's", flush=True)
    fake = make_images(args, real, folder)
    if not described:
        shared.append(work, {"study": study, "generator": describe_generator(args, folder, fake, real)})
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


def summarize(found: list[dict[str, Any]], study: dict[str, Any], name: str, picture: Path | None) -> Report:
    """Make the tables, the picture and the verdict of one study."""
    by_arm: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    trainings = [item for item in found if "arm" in item]
    for item in trainings:
        by_arm[item["arm"]][item["seed"]] = item
    report = Report(name, study, figures={"rows": trainings, "differences": []})
    lines, bars = [], {}
    for arm, by_seed in by_arm.items():
        values = [item["accuracy"] for item in by_seed.values()]
        if len(values) > 1:
            bars[ARMS[arm][0]] = mean, half = interval(values)
            cells = [f"{100 * mean:.2f} ± {100 * half:.2f} %", str(len(values))]
            lines.append([ARMS[arm][0], *cells, f"{statistics.mean(i['seconds'] for i in by_seed.values()):,.0f}"])
    title = f"{study['per_class']:,} real images a class of {study['data']}, {study['generated_per_class']:,} generated"
    title += f" with a guidance of {study['guidance']:g}"
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
    report.tables += [describe(item["generator"], study) for item in found[::-1] if "generator" in item][:1]
    if said := verdict_of(report.figures["differences"], study):
        report.figures["verdict"] = said
        print(said)
    if picture is not None and bars:
        draw(bars, picture, title)
    return report


def describe(generator: dict[str, Any], study: dict[str, Any]) -> Table:
    """Show how the generator was trained and whether it copies."""
    planned = "" if generator["planned"] is None else f" of {generator['planned']:,}"
    cells = [f"{generator['updates']:,}{planned}", f"{generator['seconds'] / 60:.1f}"]
    end = generator["stopped_because"] or ("as planned" if planned else "no plan is known")
    cells += [end, generator["copies"]]
    columns = ["trained on", "updates", "minutes", "ended", "copies"]
    whose = "images of its own run, given by --ddpm" if study["ddpm"] else "the real images of this study alone"
    return Table("The generator, trained with flips", columns, [[whose, *cells]])


def verdict_of(differences: Sequence[dict[str, Any]], study: dict[str, Any]) -> str:
    """Say in a sentence what was found, or nothing if the arms that decide it are missing."""
    for item in differences:
        if tuple(item["pair"]) == DECISIVE:
            said = {"helps": "help", "hurts": "hurt"}.get(item["verdict"], "make no clear difference")
            amount = f"{100 * item['mean']:+.2f} points ({100 * item['low']:+.2f} to {100 * item['high']:+.2f})"
            many = f"{study['per_class']:,} real images a class of {study['data']}"
            whose = "images of one generator, beside classical augmentation,"
            return f"With {many}, {whose} {said}: {amount}, {item['over']}."
    return ""


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
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")  # of the figure: the axes are too narrow for it
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture in {path}")


def parse() -> argparse.Namespace:
    """Read the flags, and fill in what depends on others."""
    parser = arguments(__doc__, "did_it_help")
    flag = parser.add_argument
    flag("--ddpm", type=Path, help="last.pt of a run of examples/train_ddpm.py on all images, not to train one on few")
    flag("--per-class", type=int, help="real images of each class; 500, with --ddpm 5000")
    flag("--minutes", type=float, default=60.0, help="of the generator's training")
    flag("--generated-per-class", type=int, default=1_000)
    flag("--sampler-steps", type=int, default=20, help="of DPM-Solver++")
    flag("--guidance", type=float, default=1.0, help="towards the class")
    flag("--share", type=float, default=0.5, help="of generated images in a batch")
    flag("--steps", type=int, default=500, help="updates of each classifier, batches of 500")
    flag("--seeds", type=int, default=5)
    flag("--work", type=Path, help=f"finished trainings, beside a folder of this name; {WORK}, with --tiny nowhere")
    flag("--picture", type=Path, help="where it goes; docs/images beside docs/data, else beside the work file")
    flag("--report-only", action="store_true", help="train nothing, print the tables of the work file")
    args = parser.parse_args()
    args.per_class = args.per_class or (5_000 if args.ddpm else 500)
    if args.tiny:
        args.per_class, args.generated_per_class, args.sampler_steps, args.steps = 20, 10, 2, 3
        args.minutes, args.ddpm = 0.1, None
    if args.guidance < 0:
        parser.error(f"--guidance is {args.guidance:g}; give 0 for none, or more")
    if args.seeds < 3:
        parser.error(f"--seeds is {args.seeds}; a mean with its interval wants at least 3")
    return args


def publish(args: argparse.Namespace, work: Path, study: dict[str, Any]) -> None:
    """Print the report, write it, and put the pictures where the pages look for them."""
    found = shared.read(work, study)
    if not found:
        raise SystemExit(f"{work} holds no finished training of this study; run without --report-only first")
    name = "did_it_help_all" if study["ddpm"] else "did_it_help"
    path = destination(args, name)
    shown = DATA.parent / "images" if path is not None and path.parent == DATA else None
    picture = args.picture or (shown / f"{name}.png" if shown else None)
    if picture is None and (args.work or not args.tiny):
        picture = work.with_suffix(".png")
    written = summarize(found, study, name, None if shown else picture).publish(path)
    if written and shown:
        summarize(found, study, name, picture)
    for item in found if written else ():
        if shown and "generator" in item:
            shutil.copyfile(item["generator"]["pairs"], shown / f"{name}-copies.png")


def main() -> None:
    args = parse()
    data_name = shared.load_sets(args.tiny)[0]
    names = ("per_class", "minutes", "generated_per_class", "sampler_steps", "guidance", "share", "steps")
    study = {"version": VERSION, "data": data_name, "tiny": args.tiny} | {key: getattr(args, key) for key in names}
    study["ddpm"] = shared.file_hash(args.ddpm) if args.ddpm else None
    study["recipe"] = None if args.ddpm else shared.ddpm_recipe()
    with shared.work_file(args, WORK) as work:
        if not args.report_only:
            with shared.locked(work.with_suffix(".lock")):
                run_missing(args, work, study)
        publish(args, work, study)


if __name__ == "__main__":
    main()
