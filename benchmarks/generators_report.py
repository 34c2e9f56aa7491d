"""The tables and aims of benchmarks/generators.py, made of the rows of its work file."""

from __future__ import annotations

from typing import Any

from report import FAILED, Report, Table

from cifarkit.training.health import COLLAPSED

Rows = dict[str, dict[str, Any]]
EQUAL = [("ddim", 10), ("ddim", 20), ("ddim", 50), ("ddpm", 1000)]  # what both sides walk alike
COLLAPSE_ROWS = 6  # two recipes, three seeds
SECONDS = {"ddpm": 120 * 60, "dcgan-plain": 45 * 60, "dcgan-strong": 45 * 60}  # what the trainings may take


def latest(found: list[dict[str, Any]]) -> tuple[Rows, dict[str, str]]:
    """Return the finished rows by name, and why others failed; the later of two lines of a row counts."""
    by_row = {item["row"]: item for item in found}
    failed = {name: item["failed"] for name, item in by_row.items() if "failed" in item}
    return {name: item for name, item in by_row.items() if "failed" not in item}, failed


def summarize(found: list[dict[str, Any]], settings: dict[str, Any]) -> Report:
    """Make the tables of one study."""
    rows, failed = latest(found)
    report = Report("generators", settings, ("denoising-diffusion-pytorch",), figures={"rows": [*rows.values()]})
    report.tables += [table for table in (trainings(rows), choices(rows)) if table.rows]
    report.tables += scores(rows, settings)
    judged = {name.partition("/")[2]: item for name, item in rows.items() if name.startswith("classifier")}
    lines = [[name, f"{item['images']:,}", f"{100 * item['accuracy']:.2f} %"] for name, item in judged.items()]
    if lines:
        columns = ["images of", "images", f"accuracy on {settings['test_images']:,} real test images"]
        report.tables.append(Table("A small classifier trained on these images alone, seed 0", columns, lines))
    copies = [[name.partition("/")[2], item["copies"]] for name, item in rows.items() if "copies" in item]
    if copies:
        report.tables.append(Table("Are there copies of training images?", ["generator", "nearest ones"], copies))
    if failed:
        report.figures["failed"] = failed
        report.tables.append(Table(FAILED, ["row", "error"], [[*item] for item in failed.items()]))
    if not settings["tiny"] and settings["data"] == "CIFAR-10":
        aim(report, rows)
    return report


def trainings(rows: Rows) -> Table:
    lines = []
    for name, item in rows.items():
        if name.startswith(("train", "collapse")):
            planned = "" if item["planned"] is None else f" of {item['planned']:,}"
            end = item["stopped_because"] or ("as planned" if item["planned"] else "no plan is known")
            cells = [f"{item['parameters'] / 1e6:.2f}", f"{item['updates']:,}{planned}", f"{item['seconds'] / 60:.1f}"]
            lines.append([name.partition("/")[2], *cells, end, item.get("verdict") or "-"])
    columns = ["generator", "parameters, M", "updates", "minutes of training", "ended", "last line of health"]
    return Table("Trainings; a number behind a name is the seed of a short run", columns, lines)


def choices(rows: Rows) -> Table:
    """Show what the peer's width and layout were chosen by."""
    item = rows.get("train/peer", {"seconds_an_update": {}})
    taken = ", ".join((item["choice"]["shape"], item["choice"]["layout"])) if "choice" in item else ""
    lines = [
        [name, f"{seconds:.3f}", "taken" if name == taken else ""]
        for name, seconds in item["seconds_an_update"].items()
    ]
    columns = ["width and multipliers, layout", "seconds an update", ""]
    return Table("The peer's size and layout, chosen by speed", columns, lines)


def scores(rows: Rows, settings: dict[str, Any]) -> list[Table]:
    """Make a table for each number of images, since figures of different numbers cannot be compared."""
    items = {name: item for name, item in rows.items() if name.startswith("score")}
    tables, few = [], settings["few"]
    keys = ("frechet", "kernel", "precision", "recall", "density", "coverage")
    for count in sorted({item["images"] for item in items.values()}, reverse=True):
        own, lines = {name: item for name, item in items.items() if item["images"] == count}, []
        for name, item in sorted(own.items(), key=lambda pair: [*pair[0].split("/")[1:3], int(pair[0].split("/")[3])]):
            figures, floor = item["figures"], item["floor"]
            cells = [f"{figures[key]:.3g} ({floor[key]:.3g})" for key in keys]
            cells += [f"{item['frechet_few']:.3g} ({item['floor_few']:.3g})"] if count != few else []
            worst, beneath = item["worst_class"], item["floor_per_class"].get(item["worst_class"])
            worst = f"{worst}, {item['per_class'][worst]:.3g}" + (f" ({beneath:.3g})" if beneath is not None else "")
            lines.append([*name.split("/")[1:], *cells, f"{100 * item['seen_as_labelled']:.1f} %", worst])
        columns = ["generator", "sampler", "steps", "Fréchet", "kernel", "precision", "recall", "density", "coverage"]
        columns += [f"Fréchet of {few:,} of them"] if count != few else []
        protocol = next(iter(own.values()))["protocol"]
        title = f"Scores of {count:,} images; in brackets real images against real ones. Protocol: {protocol}"
        tables.append(Table(title, [*columns, "seen as labelled", "worst class, kernel distance"], lines))
    return [*tables, *best_of(items, settings["samples"])]


def best_of(items: Rows, count: int) -> list[Table]:
    """Show each generator's best sampler; it decides nothing, as ours has more to choose from."""
    lines = []
    for generator in dict.fromkeys(name.split("/")[1] for name in items):
        own = {name: i for name, i in items.items() if name.split("/")[1] == generator and i["images"] == count}
        if len(own) > 1:
            name = min(own, key=lambda key: own[key]["figures"]["frechet"])
            cells = [" ".join(name.split("/")[2:]), f"{own[name]['figures']['frechet']:.3g}", str(len(own))]
            lines.append([generator, *cells])
    columns = ["generator", "sampler and steps", "Fréchet", "chosen out of"]
    return [Table(f"Best of all samplers, {count:,} images; not what decides", columns, lines)] if lines else []


def aim(report: Report, rows: Rows) -> None:
    """Say what was aimed at and is known by now."""
    for name, most in SECONDS.items():
        if item := rows.get(f"train/{name}"):
            said = f"{item['seconds'] / 60:.1f} minutes, {item['parameters'] / 1e6:.2f} M"
            small = name != "ddpm" or item["parameters"] <= 8e6
            claim = f"{name} within {most // 60} minutes" + (" and 8 M parameters" if name == "ddpm" else "")
            report.aim(claim, said, item["seconds"] <= most and small)
    if item := rows.get("classifier/ddpm"):
        accuracy = item["accuracy"]
        report.aim("synthetic-only accuracy of the DDPM at least 0.60", f"{accuracy:.4f}", accuracy >= 0.6)
    if "train/ddpm" in rows and "train/peer" in rows:
        ours, theirs = (rows[f"train/{name}"]["seconds"] / 60 for name in ("ddpm", "peer"))
        claim = "the peer was given the same minutes, at most 3 % fewer"
        report.aim(claim, f"{theirs:.1f} against {ours:.1f}", theirs >= 0.97 * ours)
    for sampler, steps in EQUAL:
        pair = [rows.get(f"score/{name}/{sampler}/{steps}") for name in ("ddpm", "peer")]
        if pair[0] and pair[1]:
            one, other = (item["figures"]["frechet"] for item in pair if item)
            said = f"{one:.3g} and {other:.3g}, {pair[0]['images']:,} images"
            report.aim(f"Fréchet distance below the peer's, {sampler}, {steps} steps", said, one < other)
    short = {name: item for name, item in rows.items() if name.startswith("collapse")}
    if short:
        collapsed = {name: said for name, item in short.items() if (said := collapse_of(item))}
        said = "; ".join(f"{name}: {what}" for name, what in collapsed.items()) or "none"
        said += f"; {len(short)} of {COLLAPSE_ROWS} runs are finished"
        report.aim("no collapse in short runs of three seeds", said, not collapsed and len(short) == COLLAPSE_ROWS)


def collapse_of(item: dict[str, Any]) -> str:
    """Say how a short run collapsed, or nothing; one without a measure, or ended by NaN, is none that went well."""
    if item["diversity"] is None or not item["diversity"] >= COLLAPSED:
        return f"diversity {item['diversity']}"
    if item["collapsed_classes"]:
        return f"labels {item['collapsed_classes']}"
    return "weights were lost" if item["lost"] else ""
