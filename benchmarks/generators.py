"""How good are the images of the diffusion model, of the GANs, and of a peer that was given the same minutes?

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/generators.py --classifier runs/judge/last.pt

Trains the DDPM by examples/train_ddpm.py, a model of denoising-diffusion-pytorch of like size (class-conditional, its
own noise schedule, loss and samplers) through the same loop for as long as the DDPM took, and DCGAN in two recipes with
short runs of three seeds that look for collapse. Of the peer's widths and memory layouts the fastest is taken. Each is
scored on features of a SpeedNet of examples/speedrun.py against images of the training set, beside the floor:
other training images against these. A classifier trained only on generated images is scored on real test images. No
guidance but in the rows of "ddpm-guided", of 1, and "ddpm-guided-2"; class-balanced samples. What decides against the
peer are equal samplers at equal steps.

Every row is a line of the work file, so a stopped study goes on with the same flags; a training goes on from its last
checkpoint, an export from its last image. A row that fails is noted and tried again the next time. The JSON is
written after each row. Samplers that take 1,000 steps make fewer images, for which the Fréchet distance is larger and
less sure; a column of the other rows gives it for as many, the first made of each class.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generators_peer as peer
import generators_report as reports
import generators_shared as shared
import torch
from report import DATA, arguments, destination
from torch import Tensor, nn

import cifarkit
from cifarkit import data, generation, models, plots, recipes, training, transforms
from cifarkit.inference import cpu_has_bf16
from cifarkit.models import Discriminator, Generator
from cifarkit.training import DifferentiableAugmentation, GANHealth, GANTask
from cifarkit.training.meters import NonFiniteLossError

WORK = Path("runs/generators.jsonl")
TRAININGS, SCORES = 4, 5  # versions of what generators are trained and scored by: rows of others are not taken over
RECIPES, COLLAPSE_SEEDS = ("plain", "strong"), 3
# DPM-Solver++ at 1,000 steps is near DDIM at 1,000, but not the same: it extrapolates from the step before.
OURS = [(sampler, steps) for steps in (20, 10, 50, 1000) for sampler in ("dpm-solver", "ddim", "ddpm")]
THEIRS = [("ddim", 20), ("ddim", 10), ("ddim", 50), ("ddpm", 1000)]
JUDGED = {"ddpm": ("dpm-solver", 20), "peer": ("ddim", 20)}  # equal calls, for the classifier and the pictures
GUIDANCE = {"ddpm": 0.0, "ddpm-guided": 1.0, "ddpm-guided-2": 2.0}  # of the DDPM; another value needs another name
JUDGED |= dict.fromkeys(GUIDANCE, JUDGED["ddpm"])
SHOWN = ("ddpm", "ddpm-guided-2", "dcgan-strong", "dcgan-plain")  # by the pages; of the first the nearest pairs as well
CLASSIFIER_IMAGES = 20_000
FEATURES_OF = "8-minutes"  # the speed recipe of the classifier whose features are compared
Sample = Callable[[Tensor, generation.SampleGenerators], Tensor]


def rows(with_peer: bool) -> list[str]:
    """Name all rows, what decides first and what takes longest last."""
    walks = {"ddpm": OURS, "peer": THEIRS if with_peer else []}
    scores = [(steps, f"score/{name}/{sampler}/{steps}") for name, own in walks.items() for sampler, steps in own]
    both, gans = ["ddpm", *(["peer"] if with_peer else [])], [f"dcgan-{name}" for name in RECIPES]
    names = [*(f"train/{name}" for name in both), *(row for steps, row in scores if steps == 20)]
    names += [*(f"classifier/{name}" for name in both), "classifier/real", "score/test/-/0"]
    guided = [name for name, guidance in GUIDANCE.items() if guidance]
    names += [*(f"score/{name}/dpm-solver/20" for name in guided), *(f"classifier/{name}" for name in guided)]
    for name in gans:
        names += [f"train/{name}", f"score/{name}/-/1", f"classifier/{name}"]
    names += [f"collapse/{name}/{seed}" for name in gans for seed in range(COLLAPSE_SEEDS)]
    return names + [row for steps, row in sorted(scores, key=lambda pair: pair[0]) if steps != 20]


def build_gan(recipe: str, num_classes: int, tiny: bool) -> GANTask:
    """Build what examples/train_dcgan.py does."""
    strong, shape = recipe == "strong", {"base_channels": 8 if tiny else 64, "num_classes": num_classes}
    generator, discriminator = Generator(**shape), Discriminator(**shape, spectral_norm=strong)
    adam = [torch.optim.Adam(part.parameters(), 2e-4, betas=(0.5, 0.999)) for part in (generator, discriminator)]
    choices: dict[str, Any] = {"loss": "hinge", "augment": DifferentiableAugmentation()} if strong else {}
    return GANTask(generator, discriminator, *adam, **choices)


class Study:
    """One work file's worth of rows.

    Attributes:
        settings: what any row depends on.
    """

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.tiny, self.work = args, args.tiny, work
        self.name, self.everything, self.test_set = shared.load_sets(args.tiny)
        self.train_set = self.everything.split(0.98, 0.02)[0]  # what examples/train_ddpm.py trains on, for all alike
        self.classes, self.num_classes = self.train_set.classes, self.train_set.num_classes
        self.base = {"version": TRAININGS, "data": self.name, "tiny": args.tiny}
        given = shared.file_hash(args.ddpm) if args.ddpm else None
        ddpm = self.base | {"minutes": args.minutes, "ddpm": given} | ({} if given else shared.ddpm_recipe())
        peers = {name: getattr(args, name) for name in ("peer_shapes", "peer_objective", "peer_rate")}
        self.trained = {  # what each generator depends on, so that scoring in another way trains nothing anew
            "ddpm": ddpm,
            "peer": ddpm | peers,
            "dcgan": self.base | {"gan_minutes": args.gan_minutes},
            "collapse": self.base | {"short_minutes": args.short_minutes},
        }
        self.scored = {name: getattr(args, name) for name in ("samples", "few", "real")}
        self.scored |= {"scores": SCORES}
        self.scored |= {"classifier_steps": args.classifier_steps, "classifier_images": CLASSIFIER_IMAGES}
        self.scored["classifier"] = shared.file_hash(args.classifier) if args.classifier else None
        everything = [*self.trained.values(), self.scored]
        self.settings = {name: value for part in everything for name, value in part.items()}
        self.settings |= {"guidance": GUIDANCE, "test_images": len(self.test_set)}
        if args.ddpm and (seconds := shared.read_end(args.ddpm)["seconds"]) > 60 * args.minutes:
            raise SystemExit(f"--ddpm was trained for {seconds / 60:.1f} minutes, more than --minutes {args.minutes:g}")

    def settings_of(self, row: str) -> dict[str, Any]:
        """Return what a row depends on."""
        kind, name = row.split("/")[:2]
        trained = self.trained.get(kind) or self.trained.get(name.partition("-")[0], self.base)
        return trained if kind in ("train", "collapse") else trained | self.scored

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of this study from the work file."""
        return [row for row in shared.read(self.work) if row["study"] == self.settings_of(row["row"])]

    def folder(self, row: str) -> Path:
        """Name the folder of all that depends on a training: its checkpoints, its images, their grids."""
        key = hashlib.sha256(repr(self.settings_of(row)).encode()).hexdigest()[:8]
        return self.work.with_suffix("") / f"{row.replace('/', '-')}-{key}"

    def run(self, row: str) -> dict[str, Any]:
        """Make one row."""
        kind, name, *rest = row.split("/")
        started = time.monotonic()
        if kind == "train":
            found = self.train(name)
        elif kind == "collapse":
            found = self.train_gan(name, int(rest[0]), self.args.short_minutes, self.folder(row))
        elif kind == "score":
            found = self.score(name, rest[0], int(rest[1]))
        else:
            found = self.judge(name)
        return {"row": row, "study": self.settings_of(row), "all_seconds": time.monotonic() - started} | found

    def train(self, name: str) -> dict[str, Any]:
        args, folder = self.args, self.folder(f"train/{name}")
        if name.startswith("dcgan"):
            return self.train_gan(name, 0, args.gan_minutes, folder)
        if name == "peer":
            self.require_trained("ddpm")
            seconds = shared.read_end(self.weights("ddpm"))["seconds"]
            most = max(args.minutes, seconds / 60)
            choices = (args.peer_shapes, args.peer_objective, args.peer_rate)
            return peer.train(self.train_set, folder, *choices, seconds=seconds, most_minutes=most, tiny=self.tiny)
        if not args.ddpm:
            source = "cifar10" if self.name == "CIFAR-10" else "shapes"
            shared.train_ddpm(source, folder, args.minutes, self.tiny)
        network = shared.read_ddpm(self.weights("ddpm"), self.num_classes, self.tiny)
        return {"parameters": count_parameters(network), **shared.read_end(self.weights("ddpm"))}

    def train_gan(self, name: str, seed: int, minutes: float, folder: Path) -> dict[str, Any]:
        cifarkit.seed_everything(seed)
        recipe = name.removeprefix("dcgan-")
        task, health = build_gan(recipe, self.num_classes, self.tiny), GANHealth()
        transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(0.5, 0.5)])
        loader = data.Loader(self.train_set, 64, shuffle=True, drop_last=True, seed=seed, transform=transform)
        callbacks: list[training.Callback] = [health, training.ModelCheckpoint(folder, every_n_steps=500)]
        if recipe == "strong":
            callbacks.append(training.ExponentialMovingAverage(0.999, network="generator"))
        # The last look at the samples and the last save must fit into the minutes, too.
        callbacks += [] if self.tiny else [training.TimeLimit(60 * minutes - min(60.0, 1.2 * minutes))]
        end = {"max_epochs": 1 if self.tiny else 100_000}
        loggers = [training.CSVLogger(folder)]
        trainer = training.Trainer(**end, precision="bf16-mixed", callbacks=callbacks, loggers=loggers)
        lost = None
        try:
            run = trainer.fit(task, loader, resume="auto")
        except NonFiniteLossError as error:  # a finding about the recipe; what it had saved last is what it came to
            if not (folder / "last.pt").exists():
                raise
            lost = str(error)
        found = shared.read_end(folder / "last.pt", lost or run.stopped_because)
        found |= {"parameters": count_parameters(task.generator), "returned": health.returned, "lost": lost is not None}
        diversity = health.diversity if math.isfinite(health.diversity) else None
        return found | {"verdict": health.verdict, "diversity": diversity, "collapsed_classes": health.collapsed}

    def require_trained(self, name: str) -> None:
        """Raise unless a generator's training is finished: what is made from an earlier checkpoint would not be it."""
        finished, _ = reports.latest(self.rows())
        if f"train/{name}" not in finished:
            raise RuntimeError(f"train/{name} is not finished; its row must come first")

    def weights(self, name: str) -> Path:
        """Return the checkpoint of a generator."""
        given: Path | None = self.args.ddpm if network_of(name) == "ddpm" else None
        return given or self.folder(f"train/{network_of(name)}") / "last.pt"

    def sample(self, name: str, sampler: str, steps: int) -> Sample:
        """Return the trained generator as a function of labels and random streams."""
        self.require_trained(network_of(name))
        weights = self.weights(name)
        if network_of(name) == "ddpm":
            network = shared.read_ddpm(weights, self.num_classes, self.tiny)
            return shared.ddpm_sample(network, sampler, steps, self.train_set.image_shape, GUIDANCE[name])
        if name == "peer":
            choice = peer.read_choice(weights.parent)
            model = peer.build(choice, self.num_classes, steps, 0.0 if sampler == "ddim" else 1.0)
            return peer.sample_from(cifarkit.load_weights(model, weights, average="ema"), choice.layout)
        recipe = name.removeprefix("dcgan-")
        generator = build_gan(recipe, self.num_classes, self.tiny).generator
        cifarkit.load_weights(generator, weights, average="ema" if recipe == "strong" else None)
        generator.eval()

        def sample(labels: Tensor, generators: generation.SampleGenerators) -> Tensor:
            with torch.inference_mode():
                images: Tensor = generator(generators.normal(generator.latent_dim), labels)
            return images

        return sample

    def images(self, name: str, sampler: str, steps: int, count: int) -> tuple[data.ImageDataset, float | None]:
        """Make so many images, or take what an earlier row made; return the seconds, too, if all are new."""
        if name == "test":
            return first_of_each_class(self.test_set, count), None
        steps = min(steps, 3) if self.tiny else steps
        folder = self.folder(f"train/{network_of(name)}") / "images" / f"{name}-{sampler}-{steps}"
        folders = folder.iterdir() if folder.exists() else ()
        held = max((len([*part.glob("*.png")]) for part in folders if part.is_dir()), default=0)
        started, weights = time.monotonic(), shared.file_hash(self.weights(name))
        guided = {"guidance": GUIDANCE[name]} if GUIDANCE.get(name) else {}
        made = generation.generate_dataset(
            self.sample(name, sampler, steps),
            classes=self.classes,
            per_class=max(count // self.num_classes, held),  # an export can grow, but never shrinks
            folder=folder,
            about={"generator": name, "sampler": sampler, "steps": steps, "weights": weights} | guided,
        )
        seconds = None if held else time.monotonic() - started
        return first_of_each_class(made, count), seconds

    @functools.cached_property
    def judge_of_features(self) -> tuple[nn.Module, transforms.Normalize, str]:
        normalize = transforms.Normalize(*self.everything.mean_std())
        if not self.args.classifier:
            cifarkit.seed_everything(0)
            recipe = shared.classifier_recipe(tiny=True)
            task = recipe.task(self.train_set)
            recipe.trainer(progress=False).fit(task, recipe.loader(self.train_set))
            return task.model, normalize, "a tiny SpeedNet"
        recipe = recipes.SPEEDRUN[FEATURES_OF]
        network: nn.Module = models.SpeedNet(self.num_classes, widths=recipe.widths, depth=recipe.depth)
        cifarkit.load_weights(network, self.args.classifier)
        right = cifarkit.predict(network, normalize(self.test_set.images)).argmax(1) == self.test_set.labels
        precision, accuracy = "bf16" if cpu_has_bf16() else "fp32", 100 * right.float().mean()
        return network, normalize, f"SpeedNet of {FEATURES_OF} in {precision}, {accuracy:.1f} % on test images"

    def features(self, images: Tensor) -> Tensor:
        network, normalize, _ = self.judge_of_features
        return generation.features(network, images, transform=normalize, precision="auto")

    @functools.cached_property
    def real(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Features and labels of the images compared with, and of other training images in random order: the floor."""
        real, others = self.train_set.split(self.args.real, self.args.samples)
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
        floor = self.features(others.images)[order], others.labels[order]
        return (self.features(real.images), real.labels), floor

    def score(self, name: str, sampler: str, steps: int) -> dict[str, Any]:
        count = self.args.few if steps >= 1000 else self.args.samples
        made, seconds = self.images(name, sampler, steps, count)
        few = first_of_each_class(made, self.args.few)
        (on_real, real_labels), (on_others, other_labels) = self.real
        floor, least = (first_indices(other_labels, most) for most in (count, self.args.few))
        found = generation.score(
            on_real,
            self.features(made.images),
            features=self.judge_of_features[2],
            split=f"a random choice of those of {self.name} that the generators were trained on",
            labels=(real_labels, made.labels),
            classes=self.classes,
            other_real=on_others[floor],
            other_labels=other_labels[floor],
        )
        network, normalize, _ = self.judge_of_features
        right = cifarkit.predict(network, normalize(made.images)).argmax(1) == made.labels
        grids = self.folder(f"train/{network_of(name)}") / "grids"
        grids.mkdir(parents=True, exist_ok=True)
        picture = grids / f"{name}-{sampler.replace('-', '')}-{steps}.png"
        draw_rows(made, picture)
        figures = found.as_dict() | {"images": count, "sampling_seconds": seconds}
        figures["frechet_few"] = generation.frechet_distance(on_real, self.features(few.images))
        figures["floor_few"] = generation.frechet_distance(on_real, on_others[least])
        if name != "test" and (sampler, steps) == JUDGED.get(name, ("-", 1)):
            figures |= self.look_for_copies(made, picture.with_name(f"{picture.stem}-copies.png"))
        return figures | {"seen_as_labelled": right.float().mean().item(), "picture": str(picture)}

    def look_for_copies(self, made: data.ImageDataset, picture: Path) -> dict[str, Any]:
        """Say how near images are to those trained on, and draw the nearest beside theirs."""
        check = generation.check_copies(self.train_set.images, made.images, self.test_set.images, mirror=True)
        plots.nearest_pairs(made.images, self.train_set.images, *check.copies, mirror=True, path=picture)
        return {"copies": str(check), "nearer_than_99_percent": check.share, "pairs": str(picture)}

    def judge(self, name: str) -> dict[str, Any]:
        """Train the small classifier on generated images alone; "real" is on as many real ones."""
        count = 200 if self.tiny else CLASSIFIER_IMAGES
        if name == "real":
            made = self.train_set.split(count)[0]
        else:
            made = self.images(name, *JUDGED.get(name, ("-", 1)), count)[0]
        steps = 4 if self.tiny else self.args.classifier_steps
        accuracy = shared.train_classifier(made, self.test_set, steps=steps, seed=0, tiny=self.tiny)
        return {"accuracy": accuracy, "images": len(made), "classifier_steps": steps}


def network_of(name: str) -> str:
    """Name the training whose network a generator samples from."""
    return "ddpm" if name in GUIDANCE else name


def count_parameters(network: nn.Module) -> int:
    return sum(part.numel() for part in network.parameters())


def first_of_each_class(images: data.ImageDataset, count: int) -> data.ImageDataset:
    """Return the first of each class, so many in all; each is made from a seed of its own, so the first are as any."""
    return images.subset(first_indices(images.labels, count))


def first_indices(labels: Tensor, count: int) -> Tensor:
    """Return where the first of each class stand, so many in all, as many of each class."""
    classes = labels.unique()
    chosen = [(labels == label).nonzero()[: count // len(classes), 0] for label in classes]
    return torch.cat(chosen).sort().values


def draw_rows(made: data.ImageDataset, path: Path) -> None:
    """Draw the first ten images of each class as a row, with its name over the first."""
    chosen = first_of_each_class(made, 10 * made.num_classes)
    order = chosen.labels.argsort(stable=True)
    new = chosen.labels[order].diff(prepend=torch.tensor([-1])) != 0
    names = [made.classes[label] if first else "" for label, first in zip(chosen.labels[order], new, strict=True)]
    plots.image_grid(chosen.images[order], names, columns=10, path=path)


def is_among(row: str, names: list[str]) -> bool:
    """Tell whether a row is one of those named, or below one: score/ddpm holds score/ddpm/ddim/20."""
    return any(f"{row}/".startswith(f"{name.rstrip('/')}/") for name in names)


def seconds_a_step(study: Study, name: str) -> float:
    """Time two sampling steps of an untrained network; return the seconds of one step of one image."""
    count = 10 if study.tiny else 100
    labels = torch.arange(count) % study.num_classes
    generators = generation.SampleGenerators([torch.Generator().manual_seed(0) for _ in range(count)])
    if name == "peer":
        choice = peer.Choice(study.args.peer_shapes[0], "channels_last", study.args.peer_objective)
        sample = peer.sample_from(peer.build(choice, study.num_classes, steps=2), choice.layout)
    else:
        shape = study.train_set.image_shape
        network = (shared.RECIPE.tiny() if study.tiny else shared.RECIPE).network(study.num_classes, shape)
        sample = shared.ddpm_sample(network, "dpm-solver", 2, shape)
    sample(labels, generators)  # the first call warms up
    started = time.monotonic()
    sample(labels, generators)
    return (time.monotonic() - started) / 2 / count


def estimate(study: Study, missing: list[str]) -> float:
    """Return about how many minutes the missing rows take: trainings as told, sampling as timed, the rest guessed."""
    args, total, around = study.args, 0.0, 0 if study.tiny else 1  # around: minutes of all else in a score
    scored = {network_of(row.split("/")[1]) for row in missing if row.startswith(("score", "classifier"))}
    each = {name: seconds_a_step(study, name) / 60 for name in sorted(scored & {"ddpm", "peer"})}
    each |= {name: 2 * each.get("ddpm", 0) for name, guidance in GUIDANCE.items() if guidance}
    for kind, name, *rest in (row.split("/") for row in missing):
        if kind == "train":
            total += args.gan_minutes if "gan" in name else 0 if name == "ddpm" and args.ddpm else args.minutes
        elif kind == "collapse":
            total += args.short_minutes
        elif kind == "score":
            steps = int(rest[1])
            total += around + (args.few if steps >= 1000 else args.samples) * steps * each.get(name, 0)
        else:
            # Some of the images are those of a score, if that is made as well.
            steps = JUDGED.get(name, ("", 1))[1]
            total += around * (6 + max(0, CLASSIFIER_IMAGES - args.samples) * steps * each.get(name, 0))
    return total


def make_rows(study: Study, missing: list[str], path: Path | None) -> list[str]:
    """Make all rows, and the JSON after each; note those that fail and go on; return their names."""
    failed = []
    for row in missing:
        print(row, flush=True)
        try:
            record = study.run(row)
        except Exception as error:
            traceback.print_exc()
            record = {"row": row, "study": study.settings_of(row), "failed": f"{type(error).__name__}: {error}"}
            failed.append(row)
        shared.append(study.work, record)
        with contextlib.redirect_stdout(io.StringIO()):  # the tables are printed once, at the end
            publish(study, path)
    return failed


def publish(study: Study, path: Path | None) -> None:
    """Write the report, and beside published figures the pictures that the pages show."""
    found = study.rows()
    if not found:
        raise SystemExit(f"{study.work} holds no finished row of this study; run without --report-only first")
    if not reports.summarize(found, study.settings).publish(path) or path is None or path.parent != DATA:
        return
    for name, item in reports.latest(found)[0].items():
        kind, generator, *walk = name.split("/")
        if kind == "score" and generator in SHOWN and walk == [str(part) for part in JUDGED.get(generator, ("-", 1))]:
            shutil.copyfile(item["picture"], DATA.parent / "images" / f"generators-{generator}.png")
            if generator == SHOWN[0]:
                shutil.copyfile(item["pairs"], DATA.parent / "images" / f"generators-{generator}-copies.png")


def parse() -> argparse.Namespace:
    """Read the flags, and fill in what depends on others."""
    parser = arguments(__doc__, "generators")
    flag = parser.add_argument
    flag("--classifier", type=Path, help=f"checkpoint of examples/speedrun.py --recipe {FEATURES_OF}, for features")
    flag("--ddpm", type=Path, help="last.pt of a run of examples/train_ddpm.py of at most --minutes, not to train one")
    flag("--minutes", type=float, default=120.0, help="of the DDPM; the peer gets what it took")
    flag("--gan-minutes", type=float, default=45.0, help="of each DCGAN")
    flag("--short-minutes", type=float, default=4.0, help="of each short run of a DCGAN")
    flag("--samples", type=int, default=5_000, help="images to score")
    flag("--few", type=int, default=500, help="images to score where they take 1,000 steps")
    flag("--real", type=int, default=10_000, help="training images to compare with")
    flag("--classifier-steps", type=int, default=800, help=f"updates of the classifier on {CLASSIFIER_IMAGES:,} images")
    flag("--no-peer", action="store_true", help="go on although the peer is not installed")
    flag("--peer-shapes", nargs="+", default=[*peer.SHAPES], help="widths and multipliers; the fastest is taken")
    flag("--peer-objective", default="pred_v", help="pred_v, which ours predicts, or pred_noise, its own default")
    flag("--peer-rate", type=float, default=5e-4, help="of Adam; the DDPM's")
    flag("--rows", nargs="*", metavar="NAME", help="only these, or those below them, such as train/ddpm score/ddpm")
    flag("--work", type=Path, help=f"finished rows, beside a folder of the same name; {WORK}, with --tiny nowhere")
    flag("--report-only", action="store_true", help="make no row, print the tables of the work file")
    args = parser.parse_args()
    if args.tiny:
        args.minutes = args.gan_minutes = args.short_minutes = 0.1
        args.samples, args.few, args.real, args.classifier, args.ddpm = 60, 30, 200, None, None
        args.peer_shapes = ["8-1-2", "16-1-2"]
    elif not args.classifier:
        parser.error("--classifier is needed: distances are between its features")
    if not args.tiny and not args.no_peer and not args.report_only and not peer.is_installed():
        parser.error(f"{peer.PACKAGE} is not installed: pip install it, or say --no-peer to do without the comparison")
    for name in ("samples", "few"):
        if getattr(args, name) % 10:
            parser.error(f"--{name} must be a multiple of 10, as many of each class")
    return args


def main() -> None:
    args = parse()
    with_peer = peer.is_installed() and not args.no_peer
    if not with_peer:
        print(f"WITHOUT THE PEER, {peer.PACKAGE}")
    path = destination(args, "generators")
    if strange := [name for name in args.rows or [] if not any(is_among(row, [name]) for row in rows(with_peer))]:
        raise SystemExit(f"--rows {strange[0]} names no row; those there are: {', '.join(rows(with_peer))}")
    with shared.work_file(args, WORK) as work, contextlib.ExitStack() as stack:
        study = Study(args, work)
        if args.report_only:
            publish(study, path)
            return
        stack.enter_context(shared.locked(work.with_suffix(".lock")))
        done, _ = reports.latest(study.rows())
        wanted = [row for row in rows(with_peer) if not args.rows or is_among(row, args.rows)]
        missing = [row for row in wanted if row not in done]
        if missing:
            shared.warn_of_load(max(1.0, 0.5 * (os.cpu_count() or 1)))
            print(f"{len(missing)} rows to go, about {estimate(study, missing):.0f} minutes", flush=True)
        failed = make_rows(study, missing, path)
        publish(study, path)
        if failed:
            raise SystemExit(f"{len(failed)} rows failed: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    main()
