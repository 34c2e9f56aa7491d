"""How good are the images of the diffusion model, of the GANs, and of a peer that was given the same minutes?

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/generators.py --classifier runs/<resnet18>/last.pt

Trains the DDPM by examples/train_ddpm.py, a model of denoising-diffusion-pytorch of like size (class-conditional, its
own noise schedule, loss and samplers) through the same loop for the same minutes, and DCGAN in two recipes with short
runs of three seeds that look for collapse. Each is scored on features of a ResNet-18 of examples/train_classifier.py
against images of the training set, beside the floor: other training images against these. A classifier trained only
on generated images is scored on real test images. No guidance anywhere, class-balanced samples.

Every row is a line of the work file, so a stopped study goes on with the same flags; a training goes on from its last
checkpoint, an export from its last image. Samplers that take 1,000 steps make fewer images, for which the Fréchet
distance is larger; the column "of the first" compares all rows at that smaller number.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import generators_shared as shared
import torch
from report import Report, Table, arguments, destination
from torch import Tensor, nn

import cifarkit
from cifarkit import Task, Update, data, generation, models, plots, training, transforms
from cifarkit.models import Discriminator, Generator
from cifarkit.training import DifferentiableAugmentation, GANHealth, GANTask
from cifarkit.training.health import COLLAPSED

WORK = Path("runs/generators.jsonl")
PEER = "denoising_diffusion_pytorch"
RECIPES, COLLAPSE_SEEDS = ("plain", "strong"), 3
OURS = [("ddim", n) for n in (10, 20, 50, 1000)] + [("ddpm", n) for n in (10, 20, 50, 1000)]
OURS += [("dpm-solver", n) for n in (10, 20, 50)]  # at 1,000 steps it is DDIM but for rounding
THEIRS = [("ddim", 10), ("ddim", 20), ("ddim", 50), ("eta1", 50), ("ddpm", 1000)]  # eta1: its default eta for DDIM
JUDGED = {"ddpm": ("dpm-solver", 20), "peer": ("ddim", 20)}  # equal calls, for the classifier
Sample = Callable[[Tensor, generation.SampleGenerators], Tensor]


def rows(peer: bool) -> list[str]:
    """Name all rows in order: trainings first, then scores, then classifiers."""
    names = ["train/ddpm", *(["train/peer"] if peer else []), *(f"train/dcgan-{name}" for name in RECIPES)]
    names += [f"collapse/dcgan-{name}/{seed}" for name in RECIPES for seed in range(COLLAPSE_SEEDS)]
    names += [f"score/ddpm/{sampler}/{steps}" for sampler, steps in OURS]
    names += [f"score/peer/{sampler}/{steps}" for sampler, steps in THEIRS if peer]
    names += [f"score/dcgan-{name}/-/1" for name in RECIPES]
    names += ["classifier/ddpm", *(["classifier/peer"] if peer else [])]
    return names + [f"classifier/dcgan-{name}" for name in RECIPES] + ["classifier/real"]


class PeerTask(Task):
    """Train the peer's model by its own loss; batches are (images in [0, 1], labels)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model, self.optimizers = model, {"model": optimizer}

    def updates(self, batch: tuple[Tensor, ...]) -> Iterator[Update]:
        images, labels = batch
        yield Update(self.model(images, classes=labels), "model")


def build_peer(args: argparse.Namespace, num_classes: int, steps: int = 1000, eta: float = 1.0) -> nn.Module:
    """Build the peer: defaults of its U-Net and diffusion, but labels dropped as seldom as ours are."""
    peer = importlib.import_module(f"{PEER}.classifier_free_guidance")
    peer.tqdm = lambda items, **_: items  # its bars would fill the log
    network = peer.Unet(args.peer_dim, num_classes, cond_drop_prob=0.1, dim_mults=tuple(args.peer_multipliers))

    def without_guidance(*inputs: Any, **_: Any) -> tuple[Tensor, Tensor]:
        # Its own returns one tensor if cond_scale is 1 where two are unpacked (2.3.4), which fails or mixes images up.
        predicted = network(*inputs, cond_drop_prob=0.0)
        return predicted, predicted

    network.forward_with_cond_scale = without_guidance
    return peer.GaussianDiffusion(network, image_size=32, sampling_timesteps=steps, ddim_sampling_eta=eta)


def peer_sample(model: nn.Module) -> Sample:
    """Sample by the peer's own walk in bf16 and channels_last."""
    model = model.eval().to(memory_format=torch.channels_last)

    def sample(labels: Tensor, generators: generation.SampleGenerators) -> Tensor:
        torch.manual_seed(generators.initial_seed() % 2**31)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            images = model.sample(classes=labels)
        return images.float() * 2 - 1

    return sample


def build_gan(recipe: str, num_classes: int, tiny: bool) -> GANTask:
    """Build what examples/train_dcgan.py does."""
    strong, shape = recipe == "strong", {"base_channels": 8 if tiny else 64, "num_classes": num_classes}
    generator, discriminator = Generator(**shape), Discriminator(**shape, spectral_norm=strong)
    adam = [torch.optim.Adam(part.parameters(), 2e-4, betas=(0.5, 0.999)) for part in (generator, discriminator)]
    choices: dict[str, Any] = {"loss": "hinge", "augment": DifferentiableAugmentation()} if strong else {}
    return GANTask(generator, discriminator, *adam, **choices)


def file_hash(path: Path) -> str:
    """Return the start of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Study:
    """One work file's worth of rows.

    Attributes:
        settings: what the figures depend on.
        folder: of checkpoints, images and grids.
    """

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.tiny = args, args.tiny
        self.name, self.everything, self.test_set = shared.load_sets(args.tiny)
        self.train_set = self.everything.split(0.98, 0.02)[0]  # what examples/train_ddpm.py trains on, for all alike
        self.classes, self.num_classes = self.train_set.classes, self.train_set.num_classes
        names = ("minutes", "gan_minutes", "short_minutes", "samples", "few", "real", "peer_dim", "peer_multipliers")
        self.settings = {"data": self.name, "tiny": args.tiny} | {name: getattr(args, name) for name in names}
        for name, path in {"classifier": args.classifier, "ddpm": args.ddpm}.items():
            self.settings[name] = file_hash(path) if path else None
        key = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:8]
        self.folder = work.with_suffix("") / key

    def run(self, row: str) -> dict[str, Any]:
        """Make one row."""
        kind, name, *rest = row.split("/")
        started = time.monotonic()
        if kind == "train":
            found = self.train(name, 0, self.args.gan_minutes, self.folder / name)
        elif kind == "collapse":
            seed = int(rest[0])
            found = self.train(name, seed, self.args.short_minutes, self.folder / f"{name}-short-{seed}")
        elif kind == "score":
            found = self.score(name, rest[0], int(rest[1]))
        else:
            found = self.judge(name)
        return {"row": row, "study": self.settings, "all_seconds": time.monotonic() - started} | found

    def train(self, name: str, seed: int, gan_minutes: float, folder: Path) -> dict[str, Any]:
        if name == "ddpm":
            if not self.args.ddpm:
                source = "cifar10" if self.name == "CIFAR-10" else "shapes"
                shared.train_ddpm(source, folder, self.args.minutes, self.tiny)
            run = cifarkit.load_checkpoint(self.weights("ddpm"))["run"]
            network: nn.Module = shared.read_ddpm(self.weights("ddpm"), self.num_classes, self.tiny)
            found = {"updates": run["step"], "seconds": run["seconds"]}
        elif name == "peer":
            cifarkit.seed_everything(seed)
            network = build_peer(self.args, self.num_classes)
            flip = transforms.RandomHorizontalFlip()
            loader = data.Loader(self.train_set, 16 if self.tiny else 128, shuffle=True, seed=seed, transform=flip)
            task = PeerTask(network, torch.optim.Adam(network.parameters(), self.args.peer_rate))
            run, _ = shared.fit_in_minutes(task, loader, folder, self.args.minutes, self.tiny)
            found = {"updates": run.step, "seconds": run.seconds}
        else:
            return self.train_gan(name.removeprefix("dcgan-"), seed, gan_minutes, folder)
        return found | {"parameters": sum(part.numel() for part in network.parameters())}

    def train_gan(self, recipe: str, seed: int, minutes: float, folder: Path) -> dict[str, Any]:
        cifarkit.seed_everything(seed)
        task, health = build_gan(recipe, self.num_classes, self.tiny), GANHealth()
        transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(0.5, 0.5)])
        loader = data.Loader(self.train_set, 64, shuffle=True, drop_last=True, seed=seed, transform=transform)
        callbacks: list[training.Callback] = [health, training.ModelCheckpoint(folder, every_n_steps=500)]
        if recipe == "strong":
            callbacks.append(training.ExponentialMovingAverage(0.999, network="generator"))
        callbacks += [] if self.tiny else [training.TimeLimit(60 * minutes)]
        end = {"max_epochs": 1 if self.tiny else 100_000}
        loggers = [training.CSVLogger(folder)]
        trainer = training.Trainer(**end, precision="bf16-mixed", callbacks=callbacks, loggers=loggers)
        run = trainer.fit(task, loader, resume="auto")
        parameters = sum(part.numel() for part in task.generator.parameters())
        diversity = [line["sample_diversity"] for line in run.history if "sample_diversity" in line]
        found = {"updates": run.step, "seconds": run.seconds, "parameters": parameters, "returned": health.returned}
        return found | {"verdict": health.verdict, "diversity": diversity}

    def weights(self, name: str) -> Path:
        """Return the checkpoint of a generator."""
        given: Path | None = self.args.ddpm if name == "ddpm" else None
        return given or self.folder / name / "last.pt"

    def sample(self, name: str, sampler: str, steps: int) -> Sample:
        """Return the trained generator as a function of labels and random streams."""
        if not self.weights(name).exists():
            raise SystemExit(f"{self.weights(name)} is missing; add train/{name} to --rows")
        if name == "ddpm":
            network = shared.read_ddpm(self.weights("ddpm"), self.num_classes, self.tiny)
            return shared.ddpm_sample(network, sampler, steps, self.train_set.image_shape)
        weights = self.weights(name)
        if name == "peer":
            eta = 0.0 if sampler == "ddim" else 1.0
            model = build_peer(self.args, self.num_classes, steps, eta)  # 1,000 steps are its ancestral walk
            return peer_sample(cifarkit.load_weights(model, weights, average="ema"))
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
        steps = min(steps, 3) if self.tiny else steps
        folder = self.folder / "images" / f"{name}-{sampler}-{steps}"
        folders = folder.iterdir() if folder.exists() else ()
        held = max((len([*part.glob("*.png")]) for part in folders if part.is_dir()), default=0)
        started = time.monotonic()
        made = generation.generate_dataset(
            self.sample(name, sampler, steps),
            classes=self.classes,
            per_class=max(count // self.num_classes, held),  # an export can grow, but never shrinks
            folder=folder,
            about={
                "generator": name,
                "sampler": sampler,
                "steps": steps,
                "weights": file_hash(self.weights(name)),
            },
        )
        seconds = None if held else time.monotonic() - started
        return (made if len(made) == count else made.split(count)[0]), seconds

    @functools.cached_property
    def judge_of_features(self) -> tuple[nn.Module, transforms.Normalize, str]:
        normalize = transforms.Normalize(*self.everything.split(0.9, 0.1)[0].mean_std())
        if not self.args.classifier:
            cifarkit.seed_everything(0)
            recipe = shared.classifier_recipe(tiny=True)
            task = recipe.task(self.train_set)
            recipe.trainer(progress=False).fit(task, recipe.loader(self.train_set))
            return task.model, normalize, "a tiny SpeedNet"
        network = cifarkit.load_weights(models.resnet18(self.num_classes), self.args.classifier)
        right = cifarkit.predict(network, normalize(self.test_set.images)).argmax(1) == self.test_set.labels
        return network, normalize, f"ResNet-18, {100 * right.float().mean():.1f} % on test images"

    def features(self, images: Tensor) -> Tensor:
        network, normalize, _ = self.judge_of_features
        return generation.features(network, images, transform=normalize, precision="auto")

    @functools.cached_property
    def real(self) -> tuple[data.ImageDataset, Tensor, Tensor]:
        """The images compared with, their features, and those of other training images, for the floor."""
        real, others = self.train_set.split(self.args.real, self.args.samples)
        return real, self.features(real.images), self.features(others.images)

    def score(self, name: str, sampler: str, steps: int) -> dict[str, Any]:
        count = self.args.few if steps >= 1000 else self.args.samples
        made, seconds = self.images(name, sampler, steps, count)
        few = made if count == self.args.few else made.split(self.args.few)[0]
        (real, on_real, on_others), on_made = self.real, self.features(made.images)
        said = self.judge_of_features[2]
        found = generation.score(
            on_real,
            on_made,
            features=said,
            split=f"{self.name} training images, a random choice",
            labels=(real.labels, made.labels),
            classes=self.classes,
            other_real=on_others[torch.randperm(len(on_others), generator=torch.Generator().manual_seed(0))[:count]],
        )
        network, normalize, _ = self.judge_of_features
        right = cifarkit.predict(network, normalize(made.images)).argmax(1) == made.labels
        grids = self.folder / "grids"
        grids.mkdir(parents=True, exist_ok=True)
        shown = shared.first_of_each(made.images, made.labels, 10)
        picture = grids / f"{name}-{sampler.replace('-', '')}-{steps}.png"
        plots.image_grid(shown, columns=len(shown) // self.num_classes, path=picture)
        frechet_few = generation.frechet_distance(on_real, self.features(few.images))
        figures = found.as_dict() | {"images": count, "sampling_seconds": seconds, "frechet_few": frechet_few}
        return figures | {"seen_as_labelled": right.float().mean().item(), "picture": str(picture)}

    def judge(self, name: str) -> dict[str, Any]:
        """Train the small classifier on generated images alone; "real" is on as many real ones."""
        count = 40 if self.tiny else 10_000
        if name == "real":
            made = self.train_set.split(200 if self.tiny else count)[0]
        else:
            made = self.images(name, *JUDGED.get(name, ("-", 1)), 200 if self.tiny else count)[0]
        steps = 4 if self.tiny else self.args.classifier_steps
        accuracy = shared.train_classifier(made, self.test_set, steps=steps, seed=0, tiny=self.tiny)
        return {"accuracy": accuracy, "images": len(made), "classifier_steps": steps}


def seconds_a_step(study: Study, name: str) -> float:
    """Time two sampling steps of an untrained network; return the seconds of one step of one image."""
    count = 10 if study.tiny else 100
    labels = torch.arange(count) % study.num_classes
    generators = generation.SampleGenerators([torch.Generator().manual_seed(0) for _ in range(count)])
    if name == "peer":
        sample = peer_sample(build_peer(study.args, study.num_classes, steps=2))
    else:
        width, multipliers = (shared.TINY_WIDTH, shared.TINY_MULTIPLIERS) if study.tiny else (64, shared.MULTIPLIERS)
        shape = {"base_channels": width, "multipliers": multipliers, "patch": shared.PATCH}
        network = models.UNet(num_classes=study.num_classes, **shape)
        sample = shared.ddpm_sample(network, "dpm-solver", 2, study.train_set.image_shape)
    sample(labels, generators)  # the first call warms up
    started = time.monotonic()
    sample(labels, generators)
    return (time.monotonic() - started) / 2 / count


def estimate(study: Study, missing: list[str]) -> float:
    """Return about how many minutes the missing rows take: trainings as told, sampling as timed, the rest guessed."""
    args, total, around = study.args, 0.0, 0 if study.tiny else 1  # around: minutes of all else in a score
    walking = {row.split("/")[1] for row in missing if row.startswith(("score", "classifier"))} & {"ddpm", "peer"}
    each = {name: seconds_a_step(study, name) / 60 for name in sorted(walking)}
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
            total += around * (4 + max(0, 10_000 - args.samples) * steps * each.get(name, 0))
    return total


def summarize(found: list[dict[str, Any]], settings: dict[str, Any]) -> Report:
    """Make the tables of one study."""
    by_row = {item["row"]: item for item in found}
    report = Report("generators", settings, ("denoising-diffusion-pytorch",), figures={"rows": found})
    lines = []
    for row, item in by_row.items():
        if row.startswith(("train", "collapse")):
            minutes, said = item["seconds"] / 60, item.get("verdict", "-") or "-"
            cells = [f"{item['parameters'] / 1e6:.2f}", f"{item['updates']:,}", f"{minutes:.1f}", said]
            lines.append([row.partition("/")[2], *cells])
    columns = ["generator", "parameters, M", "updates", "minutes of training", "last line of health"]
    report.tables.append(Table("Trainings; a number behind a name is the seed of a short run", columns, lines))
    scores = [item for item in found if item["row"].startswith("score")]
    for item in scores[:1]:
        print(item["protocol"])
    lines = []
    for item in scores:
        name, sampler, steps = item["row"].split("/")[1:]
        figures, floor = item["figures"], item["floor"]
        pairs = [f"{figures[key]:.3g} ({floor[key]:.3g})" for key in ("frechet", "kernel", "precision", "recall")]
        rest = [f"{item['frechet_few']:.3g}", f"{100 * item['seen_as_labelled']:.1f} %", item["worst_class"]]
        lines.append([name, sampler, steps, f"{item['images']:,}", *pairs, *rest])
    few = f"Fréchet of the first {settings['few']:,}"
    columns = ["generator", "sampler", "steps", "images", "Fréchet", "kernel", "precision", "recall", few]
    columns += ["seen as labelled", "worst class (kernel)"]
    report.tables.append(Table("Scores; in brackets real images against real ones", columns, lines))
    judged = [item for item in found if item["row"].startswith("classifier")]
    lines = [[i["row"].partition("/")[2], f"{i['images']:,}", f"{100 * i['accuracy']:.2f} %"] for i in judged]
    report.tables.append(Table("Classifier trained on these alone", ["images of", "images", "real test images"], lines))
    if settings["tiny"] or settings["data"] != "CIFAR-10":
        return report
    if "classifier/ddpm" in by_row:
        accuracy = by_row["classifier/ddpm"]["accuracy"]
        report.aim("synthetic-only accuracy of the DDPM at least 0.60", f"{accuracy:.4f}", accuracy >= 0.6)
    best = {
        name: min((i["frechet_few"] for i in scores if i["row"].split("/")[1] == name), default=None)
        for name in ("ddpm", "peer")
    }
    if best["ddpm"] is not None and best["peer"] is not None:
        said = f"{best['ddpm']:.3g} and {best['peer']:.3g}, the best sampler of each, {settings['few']:,} images"
        report.aim("Fréchet distance below the peer's", said, best["ddpm"] < best["peer"])
    short = [item for item in found if item["row"].startswith("collapse")]
    if short:
        collapsed = [item["row"] for item in short if not item["diversity"] or item["diversity"][-1] < COLLAPSED]
        said = ", ".join(collapsed) or f"none of {len(short)}"
        report.aim("no collapse in short runs of three seeds", said, not collapsed)
    return report


def parse() -> argparse.Namespace:
    """Read the flags, and fill in what depends on others."""
    parser = arguments(__doc__, "generators")
    flag = parser.add_argument
    flag("--classifier", type=Path, help="checkpoint of a ResNet-18 of examples/train_classifier.py, for features")
    flag("--ddpm", type=Path, help="last.pt of a run of examples/train_ddpm.py as below, which is then not trained")
    flag("--minutes", type=float, default=120.0, help="of the DDPM and of the peer")
    flag("--gan-minutes", type=float, default=45.0, help="of each DCGAN")
    flag("--short-minutes", type=float, default=4.0, help="of each short run of a DCGAN")
    flag("--samples", type=int, default=5_000, help="images to score")
    flag("--few", type=int, default=500, help="images to score where they take 1,000 steps")
    flag("--real", type=int, default=10_000, help="training images to compare with")
    flag("--classifier-steps", type=int, default=400, help="updates of the classifier on 10,000 images")
    flag("--peer-dim", type=int, default=28, help="width of the peer; 28 with its own multipliers is 7.6 M parameters")
    flag("--peer-multipliers", type=int, nargs="+", default=[1, 2, 4, 8])
    flag("--peer-rate", type=float, default=5e-4, help="of Adam; the DDPM's")
    flag("--rows", nargs="*", metavar="PREFIX", help="only rows that begin so, such as train/ddpm score/ddpm")
    flag("--work", type=Path, help=f"finished rows, beside a folder of the same name; {WORK}, with --tiny nowhere")
    flag("--report-only", action="store_true", help="make no row, print the tables of the work file")
    args = parser.parse_args()
    if args.tiny:
        args.minutes = args.gan_minutes = args.short_minutes = 0.1
        args.samples, args.few, args.real, args.classifier, args.ddpm = 60, 30, 200, None, None
    elif not args.classifier:
        parser.error("--classifier is needed: distances are between its features")
    return args


def main() -> None:
    args = parse()
    peer = not args.tiny and importlib.util.find_spec(PEER) is not None
    if not peer:
        print(f"without the peer, {PEER}" + (", as --tiny is" if args.tiny else ", which is not installed"))
    with shared.work_file(args, WORK) as work:
        study = Study(args, work)
        done = {item["row"] for item in shared.read(work, study.settings)}
        wanted = [row for row in rows(peer) if not args.rows or row.startswith(tuple(args.rows))]
        missing = [] if args.report_only else [row for row in wanted if row not in done]
        if missing:
            print(f"{len(missing)} rows to go, about {estimate(study, missing):.0f} minutes", flush=True)
        for row in missing:
            print(row, flush=True)
            shared.append(work, study.run(row))
        found = shared.read(work, study.settings)
        if not found:
            raise SystemExit(f"{work} holds no finished row of this study; run without --report-only first")
        summarize(found, study.settings).publish(destination(args, "generators"))


if __name__ == "__main__":
    main()
