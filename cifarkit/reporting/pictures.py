"""The pictures of a run folder, made to fit into a page."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cifarkit.reporting.reading import RunFiles

_SECTIONS = {  # the beginning of a file's name -> section, title; the first that fits counts
    "learning_rate": ("sweep", "Learning-rate sweep"),
    "confusion": ("predictions", "Which class is taken for which"),
    "mistakes": ("predictions", "Most confident mistakes"),
    "predictions": ("predictions", "Predictions"),
    "augmented": ("samples", "Augmented training images"),
    "explanation": ("explanations", "Explanation"),
    "attribution": ("explanations", "Explanation"),
    "attention": ("explanations", "Attention"),
    "path": ("samples", "The way of one image out of noise"),
    "nearest": ("samples", "Generated images and the nearest training images"),
    "epoch": ("samples", "Samples"),
    "sample": ("samples", "Samples"),
}
_FOLDERS = {"samples": "samples", "explanations": "explanations"}
_MOST_OF_A_FOLDER = 12
_MOST_PIXELS = 40_000_000  # of a picture that is opened; a crafted file can claim any number
_WIDEST, _NARROWEST = 1600, 640  # pixels; a wider picture is made smaller when it is heavy
_HEAVY = 350_000  # bytes


@dataclass
class Picture:
    """One PNG of a run.

    Attributes:
        section: sweep, predictions, samples, explanations or others.
        file: path below the run folder.
        width, height: in pixels, as embedded.
        content: the PNG.
    """

    section: str
    title: str
    file: str
    width: int
    height: int
    content: bytes

    @property
    def address(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


def find_pictures(run: RunFiles) -> list[Picture]:
    """Read the PNGs of a run folder, samples/ and explanations/; a damaged one is named in run.problems."""
    found: list[Picture] = []
    for path in _paths(run):
        section, title = _place(path, run.folder)
        if picture := _read(run, path, section, title):
            found.append(picture)
    order = [*dict.fromkeys(section for section, _ in _SECTIONS.values()), "others"]
    return sorted(found, key=lambda picture: order.index(picture.section))


def fit_pictures(pictures: Iterable[tuple[RunFiles, Picture]], budget: int) -> list[tuple[RunFiles, Picture]]:
    """Keep those pictures whose base64 text fits into a number of bytes, made smaller if need be; name the others."""
    kept = []
    for run, picture in pictures:
        for width in (_WIDEST, _NARROWEST):
            if 4 * len(picture.content) / 3 > min(budget, _HEAVY) and picture.width > width:
                picture = _shrink(picture, width)
        cost = 4 * len(picture.content) // 3 + 400
        if cost > budget:
            run.problems.append(f"{picture.file} is left out: the page would be too large")
            continue
        budget -= cost
        kept.append((run, picture))
    return kept


def _paths(run: RunFiles) -> list[Path]:
    """Return the PNGs in a fixed order; of folders with many, some that are evenly spread, the last one among them."""
    paths = sorted((path for path in run.folder.glob("*.png") if path.is_file()), key=_by_number)
    if run.epochs:
        paths = [path for path in paths if path.stem != "curves"]  # the page draws its own
    for name in _FOLDERS:
        inside = sorted((path for path in (run.folder / name).glob("*.png") if path.is_file()), key=_by_number)
        if len(inside) > _MOST_OF_A_FOLDER:
            run.problems.append(f"{name}/ holds {len(inside)} pictures; {_MOST_OF_A_FOLDER} of them are shown")
            last = len(inside) - 1
            inside = [inside[round(i * last / (_MOST_OF_A_FOLDER - 1))] for i in range(_MOST_OF_A_FOLDER)]
        paths += inside
    return paths


def _by_number(path: Path) -> list[tuple[str, int]]:
    """Return a key that puts epoch-999 before epoch-1000."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d{0,18})", path.stem)]


def _place(path: Path, folder: Path) -> tuple[str, str]:
    """Return section and title of a picture."""
    name = path.stem.lower()
    section, title = next(
        (place for start, place in _SECTIONS.items() if name.startswith(start)), ("others", path.stem.replace("_", " "))
    )
    if path.parent != folder:
        section = _FOLDERS[path.parent.name]
        title = f"{section[:-1].capitalize()}: {path.stem}"
    return section, title


def _read(run: RunFiles, path: Path, section: str, title: str) -> Picture | None:
    """Return a picture that opens as PNG, or None and a sentence about it."""
    from PIL import Image

    file = path.relative_to(run.folder).as_posix()
    try:
        content = path.read_bytes()
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            warnings.simplefilter("ignore")  # of pictures with many pixels, which are refused below
            width, height = image.size
            if width * height > _MOST_PIXELS:
                run.problems.append(f"{file} is too large for a page: {width} x {height} pixels")
                return None
            image.load()
    except Exception as error:  # Pillow raises many kinds on damaged files
        run.problems.append(f"{file} is damaged or no PNG: {error}")
        return None
    return Picture(section, title, file, width, height, content)


def _shrink(picture: Picture, width: int) -> Picture:
    """Return the picture no wider than so many pixels and in 256 colours, if that makes it lighter."""
    from PIL import Image

    height = max(1, round(picture.height * width / picture.width))
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture.content), formats=["PNG"]) as image:
        smaller = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        smaller.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    content = buffer.getvalue()
    if len(content) >= len(picture.content):
        return picture
    return Picture(picture.section, picture.title, picture.file, width, height, content)
