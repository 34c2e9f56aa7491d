"""Does an attention block behind a trained network gain accuracy, and the graph block as much as the classical one?

    CIFARKIT_DATA=<folder with cifar10-train.npz and cifar10-test.npz> python benchmarks/graph_block.py
    ... python benchmarks/graph_block.py --backbone resnet18 --weights runs/<of train_classifier.py>/last.pt

The survey's table, with a control: the same backbone trained on for as long without a block, since a gain over the
backbone of before could be that of more training. Each block is trained in two ways: "frozen", the head alone on
features that are computed once; and "tuned", all weights with augmentation, the backbone at a small rate.

A row of one seed is a line of the work file, so a stopped study goes on with the same flags, a row that was cut short
at its own checkpoint. The table covers all studies of the work file. Nothing is chosen by the test images: each row
is scored on them once, with the weights of its last epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from report import Report, Table, arguments, destination
from torch import Tensor, nn

from cifarkit import (
    ClassificationTask,
    CSVLogger,
    Loader,
    ModelCheckpoint,
    Muon,
    Run,
    Trainer,
    data,
    load_checkpoint,
    load_weights,
    models,
    muon_groups,
    predict,
    recipes,
    save_weights,
    schedules,
    seed_everything,
    transforms,
)
from cifarkit.training import SelectiveTask

WORK = Path("runs/graph_block.jsonl")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided 95 %, 1 to 9 degrees of freedom
NORMAL = 1.960
# Rates of when the rows of docs/data were trained; those of SpeedRecipe have changed since.
PROXY = recipes.SpeedRecipe(widths=(32, 64, 64), kernel_lr=0.12, kernel_momentum=0.6, label_smoothing=0.2)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is put behind the backbone, and how it is trained.

    Attributes:
        title: for the table.
        attention: "graph" or "self"; None for no block.
        stage: "scratch" trains all from the start; "frozen" and "tuned" take over the backbone of row a.
    """

    title: str
    attention: str | None
    stage: str


ROWS = {
    "a": Row("backbone alone", None, "scratch"),
    "b": Row("backbone + graph block, trained together", "graph", "scratch"),
    "c-frozen": Row("trained backbone, then graph block; frozen", "graph", "frozen"),
    "d-frozen": Row("trained backbone, then classical block; frozen", "self", "frozen"),
    "e-frozen": Row("control: trained backbone, then no block; frozen", None, "frozen"),
    "c-tuned": Row("trained backbone, then graph block; tuned", "graph", "tuned"),
    "d-tuned": Row("trained backbone, then classical block; tuned", "self", "tuned"),
    "e-tuned": Row("control: trained backbone, then no block; tuned", None, "tuned"),
}
PAIRS = {  # minuend and subtrahend -> what their difference says
    ("b", "a"): "graph block from the start against none",
    **{
        pair: f"{text}, {stage}"
        for stage in ("frozen", "tuned")
        for pair, text in {
            (f"c-{stage}", "a"): "graph block against the backbone before",
            (f"e-{stage}", "a"): "control against the backbone before",
            (f"c-{stage}", f"e-{stage}"): "graph block against the control",
            (f"d-{stage}", f"e-{stage}"): "classical block against the control",
            (f"c-{stage}", f"d-{stage}"): "graph block against the classical",
        }.items()
    },
}


@dataclass(frozen=True)
class Study:
    """All that the figures depend on besides the row and the seed; equal studies share a table.

    Attributes:
        data, train_images, val_images, test_images: what is learnt.
        backbone, widths: the network.
        weights: start of the SHA-256 of the file that stands for row a; None if row a is trained.
        epochs, more_epochs: of rows a and b; of the others.
        batch_size, precision, heads: of all rows.
        head_rate, backbone_factor: AdamW's rate for the head, and the backbone's over it where it is tuned.
        small_epochs: first epochs of rows a and b that see crops of 24 pixels.
        keep: share of the images that rows a and b are trained on, those a proxy finds hardest.
        select_from: epoch from which these are chosen; before it, the share is drawn at random.
        views: crops that are averaged to score an image.
        padding, cutout: pixels around an image before it is cropped, and side of a square that is blanked, 0 for none.
    """

    data: str
    train_images: int
    val_images: int
    test_images: int
    backbone: str
    widths: tuple[int, ...] | None
    weights: str | None
    epochs: int
    more_epochs: int
    batch_size: int
    precision: str
    heads: int
    head_rate: float
    backbone_factor: float
    small_epochs: int
    keep: float
    select_from: int
    views: int
    padding: int
    cutout: int

    @property
    def key(self) -> str:
        """The settings as text, equal for equal studies."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        """A name for a folder, another one for every study."""
        return f"{self.backbone}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


class Sets(NamedTuple):
    """The images, split as examples/train_classifier.py does, and how they are normalised."""

    train: data.ImageDataset
    val: data.ImageDataset
    test: data.ImageDataset
    normalize: transforms.Normalize


def load_sets(tiny: bool, backbone: str) -> tuple[str, Sets]:
    """Read CIFAR-10 where CIFARKIT_DATA says, or draw shapes, few of them for a large backbone; name the data."""
    folder = os.environ.get("CIFARKIT_DATA")
    if folder and not tiny:
        name, everything, test = "CIFAR-10", data.cifar10(folder), data.cifar10(folder, train=False)
    else:
        sizes = (20_000, 2_000) if not tiny else (600, 200) if backbone == "narrow" else (150, 50)
        name, everything, test = "shapes", data.shapes(sizes[0]), data.shapes(sizes[1], seed=1)
    train, val = everything.split(0.9, 0.1)
    return name, Sets(train, val, test, transforms.Normalize(*train.mean_std()))


def build_backbone(study: Study, num_classes: int, weights: Path | None = None) -> nn.Module:
    """Make a network with a pooling and a linear head ``fc``, which HybridClassifier cuts off and takes over."""
    if study.widths is None:
        return models.resnet18(num_classes, weights=weights)
    body = nn.Sequential(*list(models.SpeedNet(widths=study.widths).children())[:-2])
    parts = {"features": body, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(OrderedDict(parts, fc=nn.Linear(study.widths[-1], num_classes)))
    return network if weights is None else load_weights(network, weights)


def build(row: Row, backbone: nn.Module, study: Study, num_classes: int) -> nn.Module:
    """Put the row's head behind the backbone."""
    if row.stage == "scratch" and row.attention is None:
        return backbone
    hybrid = models.HybridClassifier(
        backbone,
        attention="graph" if row.attention is None else row.attention,
        num_classes=num_classes,
        heads=study.heads,
        freeze_backbone=row.stage == "frozen",
    )
    if row.attention is None:  # the control: the same features, rates and linear map, without the block
        hybrid.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hybrid.head.linear)
    return hybrid


def train(row: Row, model: nn.Module, study: Study, sets: Sets, seed: int, folder: Path) -> Run:
    """Train the row, or go on with what an earlier call left in the folder."""
    train_loader: Loader | data.FeatureLoader = make_loader(row, study, sets, seed)
    val_loader: Loader | data.FeatureLoader = Loader(sets.val, 500, transform=sets.normalize, device=DEVICE)
    if row.stage == "scratch":
        epochs, schedule = study.epochs, schedules.one_cycle()
        task = task_from_start(model, study, sets)
    else:
        assert isinstance(model, models.HybridClassifier)
        epochs, schedule, network = study.more_epochs, schedules.cosine(warmup=0.1), model
        optimizer = torch.optim.AdamW(model.parameter_groups(study.head_rate, study.backbone_factor))
        if row.stage == "frozen":
            network, inference = model.head, _inference(study)
            train_loader, val_loader = (
                data.FeatureLoader(loader, model.features, precision=inference) for loader in (train_loader, val_loader)
            )
        task = ClassificationTask(network, optimizer, label_smoothing=0.1)
    trainer = Trainer(
        max_epochs=epochs,
        schedule=schedule,
        precision=study.precision,
        callbacks=[ModelCheckpoint(folder, every_n_steps=max(1, min(100, len(train_loader) // 2)))],
        loggers=[CSVLogger(folder)],
    )
    return trainer.fit(task, train_loader, val_loader, resume="auto")


def make_loader(row: Row, study: Study, sets: Sets, seed: int) -> Loader:
    """Make the training batches of a row: crops and flips, except where features are computed once."""
    size = sets.train.image_shape[1:]
    flip = transforms.AlternatingFlip()
    last = [transforms.Cutout(study.cutout)] if study.cutout else []
    whole = transforms.Compose([transforms.RandomCrop(size, padding=study.padding), flip, *last, sets.normalize])
    small = transforms.Compose([transforms.RandomCrop(24), flip, *last, sets.normalize])
    transform: transforms.Transform = sets.normalize if row.stage == "frozen" else whole
    count = study.batch_size
    if row.stage == "scratch":
        count = round(count / study.keep)
        if study.small_epochs:
            transform = transforms.ByEpoch({0: small, study.small_epochs: whole})
    return Loader(sets.train, count, shuffle=True, seed=seed, transform=transform, device=DEVICE)


def task_from_start(model: nn.Module, study: Study, sets: Sets) -> ClassificationTask:
    """Train all weights by Muon, on all images or on those that a proxy finds hardest."""
    optimizer = Muon(muon_groups(model, lr=0.04))
    if study.keep == 1:
        return ClassificationTask(model, optimizer, label_smoothing=0.1)
    proxy = PROXY.task(sets.train)  # its rates are for batches of 250 to 500
    return SelectiveTask(
        model,
        optimizer,
        proxy.model,
        proxy.optimizers["model"],
        keep=study.keep,
        proxy_share=0.5,
        start=study.select_from * len(make_loader(ROWS["a"], study, sets, 0)),
        label_smoothing=0.1,
    )


def run_row(name: str, study: Study, sets: Sets, seed: int, folder: Path, weights: Path | None) -> dict[str, Any]:
    """Train one row with one seed and score it; its last weights stay in the folder.

    Args:
        name: of the row.
        folder: of the study; each row has a folder of its own in it.
        weights: of a trained backbone that stands for row a, or None.
    """
    row, own, num_classes = ROWS[name], folder / f"{name}-seed{seed}", sets.train.num_classes
    seed_everything(seed)
    start = None if row.stage == "scratch" else folder / f"a-seed{seed}" / "weights.pt"
    given = weights if name == "a" else None
    model = build(row, build_backbone(study, num_classes, start or given), study, num_classes).to(DEVICE)
    if given is None:
        run = train(row, model, study, sets, seed, own)
        spent = {"seconds": run.seconds, "updates": run.step}
    else:
        trained = {} if given.suffix == ".safetensors" else load_checkpoint(given).get("run", {})
        spent = {"seconds": trained.get("seconds"), "updates": trained.get("step")}
    own.mkdir(parents=True, exist_ok=True)
    save_weights(model, own / "weights.pt")
    scores: dict[str, Any] = {}
    for part, images in (("val", sets.val), ("test", sets.test)):
        right = score(model, images, sets.normalize, study)
        scores |= {part: right.float().mean().item(), f"{part}_right": np.packbits(right.numpy()).tobytes().hex()}
    return {"study": asdict(study), "row": name, "seed": seed, **spent, **scores}


def score(model: nn.Module, images: data.ImageDataset, normalize: transforms.Normalize, study: Study) -> Tensor:
    """Tell for each image whether the model is right: bool (N,)."""
    logits = predict(model, normalize(images.images), precision=_inference(study), views=study.views)
    return logits.argmax(1) == images.labels


def _inference(study: Study) -> str:
    return "bf16" if study.precision == "bf16-mixed" else "fp32"


def read(path: Path) -> list[dict[str, Any]]:
    """Read the work file, and take off a last line that a kill cut short."""
    content = path.read_text() if path.exists() else ""
    whole = content[: content.rfind("\n") + 1]
    if whole != content:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a finished row to the work file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def estimate(study: Study, sets: Sets, missing: Sequence[tuple[str, int]], given: bool) -> str:
    """Time one update of the backbone and say how long the missing rows will take."""
    sample = sets.train.subset(range(min(len(sets.train), study.batch_size)))
    network = build_backbone(study, sets.train.num_classes).to(DEVICE)
    task = ClassificationTask(network, Muon(muon_groups(network)))
    trainer = Trainer(max_epochs=1, precision=study.precision, progress=False)
    # The first one warms up.
    seconds = [trainer.fit(task, Loader(sample, study.batch_size, device=DEVICE)).seconds for _ in range(2)][1]
    an_epoch = seconds * len(sets.train) / len(sample)
    # A pass for features takes about a third of an epoch of training, and so do the epochs of the head.
    from_start = study.keep * (study.epochs - 0.44 * study.small_epochs)
    epochs = {"scratch": from_start, "frozen": 0.7, "tuned": study.more_epochs}
    needed = sum(0 if given and name == "a" else epochs[ROWS[name].stage] for name, _ in missing)
    return f"{len(missing)} rows to go, about {needed * an_epoch / 60:.0f} minutes at {an_epoch:.0f} s an epoch"


class Difference(NamedTuple):
    """A paired difference in accuracy with its 95 % interval; over is what the interval is over."""

    mean: float
    low: float
    high: float
    over: str

    def text(self) -> str:
        return f"{100 * self.mean:+.2f} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


def difference(first: dict[int, Any], second: dict[int, Any], part: str) -> Difference | None:
    """Compare two rows, each by seed, on "val" or "test"; None without a common seed.

    With several seeds the interval is that of Student's t over them; with one it tells only how far other images of
    the same kind could have moved the difference, from the images that just one of the two rows gets right.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) > 1:
        gains = [first[seed][part] - second[seed][part] for seed in seeds]
        quantile, over = STUDENT[min(len(gains), 10) - 2], f"{len(seeds)} seeds"
    elif seeds:
        size = first[seeds[0]]["study"][f"{part}_images"]
        one, other = (_unpack(rows[seeds[0]][f"{part}_right"], size) for rows in (first, second))
        gains, quantile, over = (one - other).tolist(), NORMAL, f"images of seed {seeds[0]}"
    else:
        return None
    mean, half = statistics.mean(gains), quantile * statistics.stdev(gains) / len(gains) ** 0.5
    return Difference(mean, mean - half, mean + half, over)


def _unpack(bits: str, size: int) -> Any:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=size).astype(np.int64)


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f} %" if len(values) > 1 else f"{mean} %"


def summarize(records: Sequence[dict[str, Any]]) -> Report:
    """Make the tables of all studies: accuracies by row, then paired differences."""
    studies = {json.dumps(record["study"]): record["study"] for record in records}
    report = Report("graph_block", {"studies": list(studies.values())})
    report.figures["rows"] = [
        {name: value for name, value in record.items() if not name.endswith("_right")} for record in records
    ]
    report.figures["differences"] = []
    for key, study in studies.items():
        by_row: dict[str, dict[int, Any]] = {name: {} for name in ROWS}
        for record in records:
            if json.dumps(record["study"]) == key:
                by_row[record["row"]][record["seed"]] = record
        add_tables(report, study, {name: rows for name, rows in by_row.items() if rows})
    return report


def add_tables(report: Report, study: dict[str, Any], by_row: dict[str, dict[int, Any]]) -> None:
    """Add what one study found."""
    sizes = f"val. ({study['val_images']:,})", f"test ({study['test_images']:,})"
    lines = []
    for name, by_seed in by_row.items():
        rows = list(by_seed.values())
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        accuracies = [_spread([row[part] for row in rows]) for part in ("val", "test")]
        epochs = study["epochs" if ROWS[name].stage == "scratch" else "more_epochs"]
        epochs = "given" if name == "a" and study["weights"] else str(epochs)
        time = f"{statistics.mean(seconds):,.0f}" if seconds else "?"
        lines.append([name, ROWS[name].title, epochs, *accuracies, str(len(rows)), time])
    title = f"{study['backbone']} on {study['data']}, {study['train_images']:,} training images"
    title += ", row a given" if study["weights"] else ""
    columns = ["row", "network", "epochs", *sizes, "seeds", "seconds a seed, without row a's"]
    report.tables.append(Table(title, columns, lines))
    lines = []
    for (first, second), text in PAIRS.items():
        found = {part: difference(by_row.get(first, {}), by_row.get(second, {}), part) for part in ("val", "test")}
        val, test = found["val"], found["test"]
        if val is None or test is None:
            continue
        verdict = "higher" if test.low > 0 else "lower" if test.high < 0 else "open"
        lines.append([f"{first} - {second}", text, val.text(), test.text(), test.over, verdict])
        pair = {part: item._asdict() for part, item in (("val", val), ("test", test))}
        report.figures["differences"].append({"study": study, "rows": [first, second], **pair})
    columns = ["rows", "question", *sizes, "95 % interval over", "on the test images"]
    report.tables.append(Table(f"{title}: paired differences in points", columns, lines))
    if study["backbone"] == "resnet18" and study["data"] == "CIFAR-10":
        for letter, block in (("c", "graph"), ("d", "classical")):
            names = [name for name in (f"{letter}-frozen", f"{letter}-tuned") if name in by_row]
            if names:
                val, test = ({name: _mean(by_row[name], part) for name in names} for part in ("val", "test"))
                best = max(names, key=val.__getitem__)  # by the validation images: the test images choose nothing
                found = f"{test[best]:.4f} by {best}, chosen by its {val[best]:.4f} on the validation images"
                report.aim(f"resnet18, then the {block} block: 0.94 on the test images", found, test[best] >= 0.94)


def _mean(by_seed: dict[int, Any], part: str) -> float:
    return statistics.mean(row[part] for row in by_seed.values())


def parse() -> argparse.Namespace:
    """Read the flags, and fill in what depends on others."""
    parser = arguments(__doc__, "graph_block")
    flag = parser.add_argument
    flag("--backbone", default="narrow", choices=["narrow", "resnet18"], help="narrow: SpeedNet's body")
    flag("--weights", type=Path, help="a trained backbone that stands for row a, which is then not trained")
    flag("--seeds", type=int, help="5 for narrow, 1 for resnet18")
    flag("--epochs", type=int, default=12, help="of rows a and b")
    flag("--more-epochs", type=int, default=5, help="of the other rows")
    flag("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="a is always one of them")
    flag("--batch-size", type=int, default=256)
    flag("--small-epochs", type=int, default=0, help="first epochs of rows a and b on crops of 24 pixels")
    flag("--keep", type=float, default=1.0, help="share of the images that rows a and b train on, the hardest")
    flag("--select-from", type=int, default=0, help="epoch from which the hardest are chosen; before it, at random")
    flag("--padding", type=int, default=2, help="pixels around an image before it is cropped")
    flag("--cutout", type=int, default=0, help="side of a square that is blanked in each image, 0 for none")
    flag("--views", type=int, default=1, choices=[1, 2, 6], help="crops that are averaged to score an image")
    flag("--precision", default="bf16-mixed", choices=["fp32", "bf16-mixed"])
    flag("--heads", type=int, default=1, help="of the attention")
    flag("--head-rate", type=float, default=1e-3)
    flag("--backbone-factor", type=float, default=0.1, help="the backbone's rate over the head's where it is tuned")
    flag("--work", type=Path, help=f"finished rows, beside a folder of the same name; {WORK}, with --tiny nowhere")
    flag("--report-only", action="store_true", help="train nothing, print the table of the work file")
    args = parser.parse_args()
    if args.tiny:
        args.epochs = args.more_epochs = 1
        args.batch_size, args.seeds = 64, args.seeds or (1 if args.weights else 2)
    args.seeds = args.seeds or (5 if args.backbone == "narrow" and not args.weights else 1)
    if args.weights and args.seeds != 1:
        parser.error(f"--weights holds the network of one seed, but --seeds is {args.seeds}; give --seeds 1")
    return args


def describe(args: argparse.Namespace, name: str, sets: Sets) -> Study:
    """Collect what the figures will depend on."""
    shared = ("backbone", "epochs", "more_epochs", "batch_size", "precision", "heads", "head_rate", "backbone_factor")
    shared += ("small_epochs", "keep", "select_from", "views", "padding", "cutout")
    return Study(
        data=name,
        train_images=len(sets.train),
        val_images=len(sets.val),
        test_images=len(sets.test),
        widths=None if args.backbone == "resnet18" else (8, 16, 32) if args.tiny else (32, 64, 128),
        weights=hashlib.sha256(args.weights.read_bytes()).hexdigest()[:16] if args.weights else None,
        **{name: getattr(args, name) for name in shared},
    )


def run_missing(args: argparse.Namespace, work: Path) -> None:
    """Train every row and seed that the work file does not hold yet."""
    name, sets = load_sets(args.tiny, args.backbone)
    study = describe(args, name, sets)
    done = {(item["row"], item["seed"]) for item in read(work) if json.dumps(item["study"]) == study.key}
    folder = work.with_suffix("") / study.name
    wanted = [(row, seed) for seed in range(args.seeds) for row in ROWS if row in args.rows or row == "a"]
    missing = [item for item in wanted if item not in done]
    if missing:
        print(estimate(study, sets, missing, bool(args.weights)), flush=True)
    for row, seed in missing:
        print(f"seed {seed}, row {row}: {ROWS[row].title}", flush=True)
        record = run_row(row, study, sets, seed, folder, args.weights)
        append(work, record)
        (folder / f"{row}-seed{seed}" / "last.pt").unlink(missing_ok=True)  # the weights stay
        print(f"val {record['val']:.4f}, test {record['test']:.4f}", flush=True)


@contextlib.contextmanager
def work_file(args: argparse.Namespace) -> Iterator[Path]:
    """Name the work file: a tiny run gets one that is gone afterwards, unless it was named."""
    if args.work or not args.tiny:
        yield args.work or WORK
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, WORK.name)


def main() -> None:
    args = parse()
    with work_file(args) as work:
        if not args.report_only:
            run_missing(args, work)
        records = read(work)
        if not records:
            raise SystemExit(f"{work} holds no finished row; run without --report-only first")
        summarize(records).publish(destination(args, "graph_block"))


if __name__ == "__main__":
    main()
