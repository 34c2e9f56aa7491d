"""Which settings of a speed recipe train best for the operations they cost, on images held out of the training set?

    CIFARKIT_DATA=<folder with cifar10-train.npz> python benchmarks/recipe_variants.py --recipe 8-minutes
    ... --variants "" "epochs=8 sides=0:20,3:24,6:32 keep=1" --seeds 0 1

A variant is the recipe with the fields that its text names; the empty one is the recipe itself. The test images are
never looked at, so what is chosen here may be judged by them later. Operations do not depend on what else the machine
does, seconds do. Finished trainings are lines of the work file, so a stopped search goes on with the same flags.
"""

from __future__ import annotations

import ast
import json
import os
import statistics
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from report import Report, Table, arguments, destination
from speedrun import accuracy, read, settings_of, training_operations

from cifarkit import data, predict, recipes, seed_everything, transforms

WORK = Path("runs/recipe_variants.jsonl")
VIEWS = (1, 6)


def parse(variant: str) -> dict[str, Any]:
    """Read fields of a SpeedRecipe: "sides=0:20,3:32 widths=32,128,128 keep=0.5"."""
    names = {item.name for item in fields(recipes.SpeedRecipe)}
    found: dict[str, Any] = {}
    for part in variant.split():
        name, equals, value = part.partition("=")
        if name not in names or not equals:
            raise SystemExit(f"--variants: {part!r} is no field=value; the fields are {', '.join(sorted(names))}")
        if ":" in value:
            value = "{" + value + "}"
        try:
            found[name] = ast.literal_eval(value)  # "32,128,128" is a tuple
        except (ValueError, SyntaxError):
            raise SystemExit(f"--variants: {part!r} has no number, row of numbers or epoch:side after '='") from None
    return found


def run(recipe: recipes.SpeedRecipe, seed: int, held_out: float, tiny: bool) -> dict[str, Any]:
    """Train once and score on the images held out."""
    folder = os.environ.get("CIFARKIT_DATA")
    if folder is None and not tiny:
        raise SystemExit("set CIFARKIT_DATA to the folder with cifar10-train.npz")
    everything = data.shapes(1_000) if tiny else data.load_npz(Path(folder or "", "cifar10-train.npz"))
    train, val = everything.split(1 - held_out, held_out)
    seed_everything(seed)
    started = time.perf_counter()
    task, loader = recipe.task(train), recipe.loader(train, seed=seed)
    recipe.trainer(progress=False).fit(task, loader)
    seconds = time.perf_counter() - started
    images = transforms.Normalize(*train.mean_std())(val.images)
    found = {views: accuracy(predict(task.model, images, views=views), val.labels) for views in VIEWS}
    operations = training_operations(task, loader, recipe.epochs)
    return {
        "images": len(train),
        "val_images": len(val),
        "seconds": seconds,
        "operations": operations,
        "acc": found,
    }


def summarize(records: list[dict[str, Any]]) -> Report:
    """Make a table for each recipe, the best variant first."""
    report = Report("recipe_variants", {})
    report.figures["trainings"] = records
    for recipe, share in dict.fromkeys((item["recipe"], item["held_out"]) for item in records):
        own = [item for item in records if (item["recipe"], item["held_out"]) == (recipe, share)]
        groups = [
            [item for item in own if item["variant"] == name] for name in dict.fromkeys(item["variant"] for item in own)
        ]
        groups.sort(key=lambda found: -statistics.mean(item["acc"]["6"] for item in found))
        columns = ["variant", "seeds", *(f"{views} view{'s' * (views > 1)}, %" for views in VIEWS), "PFLOP", "seconds"]
        first = own[0]
        title = f"{recipe}: trained on {first['images']:,} images, scored on {first['val_images']:,} others"
        report.tables.append(Table(title, columns, [row(found) for found in groups]))
    return report


def row(found: list[dict[str, Any]]) -> list[str]:
    """Sum up one variant."""
    mean = statistics.mean
    return [
        found[0]["variant"] or "as it is",
        str(len(found)),
        *(f"{100 * mean(item['acc'][str(views)] for item in found):.2f}" for views in VIEWS),
        f"{mean(item['operations'] for item in found) / 1e15:.4f}",
        f"{mean(item['seconds'] for item in found):.0f}",
    ]


def main() -> None:
    parser = arguments(__doc__, "recipe_variants")
    parser.add_argument("--recipe", default="8-minutes", choices=list(recipes.SPEEDRUN))
    parser.add_argument("--variants", nargs="*", default=[""], metavar="FIELDS")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the training images")
    parser.add_argument("--work", type=Path, help=f"finished trainings; {WORK}, with --tiny nowhere")
    parser.add_argument("--report-only", action="store_true", help="train nothing, print the table of the work file")
    args = parser.parse_args()
    settings = {variant: parse(variant) for variant in args.variants}
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or (Path(scratch, WORK.name) if args.tiny else WORK)
        for seed in () if args.report_only else args.seeds:
            for variant, changes in settings.items():
                add_missing(work, args, variant, changes, seed)
        records = [item for item in read(work) if is_current(item, args.tiny)]
        if not records:
            raise SystemExit(f"{work} holds no finished training")
        summarize(records).publish(destination(args, "recipe_variants"))


def is_current(record: dict[str, Any], tiny: bool) -> bool:
    """Tell whether a training was made by what its variant is now, of a recipe that may have changed since."""
    recipe = replace(recipes.TINY if tiny else recipes.SPEEDRUN[record["recipe"]], **parse(record["variant"]))
    same_size: bool = record["tiny"] == tiny
    return same_size and record.get("settings") == settings_of(recipe)


def add_missing(work: Path, args: Any, variant: str, changes: dict[str, Any], seed: int) -> None:
    """Train one variant unless the work file holds it."""
    recipe = replace(recipes.TINY if args.tiny else recipes.SPEEDRUN[args.recipe], **changes)
    key = {"recipe": args.recipe, "variant": variant, "seed": seed, "tiny": args.tiny, "held_out": args.held_out}
    key["settings"] = settings_of(recipe)
    if any(key.items() <= item.items() for item in read(work)):
        return
    line = json.dumps(key | run(recipe, seed, args.held_out, args.tiny))
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
