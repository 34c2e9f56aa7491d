"""The folder of an export: whose it is, what is in it, and how pictures get there whole."""

from __future__ import annotations

import io
import json
import os
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from cifarkit.checks import check_path
from cifarkit.data import ImageDataset
from cifarkit.files import flush_folder, read_file, remove_abandoned, shown, write_atomically
from cifarkit.generation.class_names import MANIFEST, SETTINGS, check_class_names, require_portable

_NOTE = "cifarkit"  # the name of a PNG's text chunk that holds its line of the manifest
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FLUSHERS = 16  # threads: each waits for the disk most of the time
_LARGEST_SETTINGS = 10_000_000  # bytes


def claim(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Make a folder this export's, or find that it is; tell whether it is new.

    Raises:
        ValueError: if it holds files of another origin, or an export with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file; give a folder, or the name of a new one")
    path = folder / SETTINGS
    visible = sorted(_visible(folder)) if folder.exists() else []
    if visible and SETTINGS not in visible:
        raise ValueError(
            f"folder={str(folder)!r} holds {visible[0]!r} and no {SETTINGS}, so it is not a dataset begun by "
            "generate_dataset; give an empty folder, or the name of a new one"
        )
    if not visible:
        require_portable(settings["classes"])
        write_atomically(json.dumps(settings, indent=1).encode() + b"\n", path)
    begun = read_settings(folder)
    begun, settings = _flat(begun), _flat(settings)
    for name in {**begun, **settings}:
        if begun.get(name) != settings.get(name):
            raise ValueError(
                f"folder={str(folder)!r} was begun with {name}={begun.get(name)!r}, not {settings.get(name)!r}; "
                "give the same again, or another folder"
            )
    return not visible


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which each fact of ``about`` stands by itself, so that the one that differs can be named."""
    about = settings.get("about")
    if not isinstance(about, Mapping):
        return dict(settings)
    facts = {f"about[{name!r}]": value for name, value in about.items()}
    return {name: value for name, value in settings.items() if name != "about"} | facts


def give_up_if_empty(folder: Path) -> None:
    """Take back a claim to a folder in which nothing has been made, so that other settings may be given."""
    if set(_visible(folder)) == {SETTINGS}:
        (folder / SETTINGS).unlink()


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what an export was begun with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: no such file; a folder that generate_dataset has begun holds it")
    try:
        settings = json.loads(read_file(path, _LARGEST_SETTINGS))
        check_class_names(settings["classes"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{shown(path)} is damaged ({shown(str(error))}); put it back, or give another folder"
        ) from None
    assert isinstance(settings, dict)
    return settings


def find_pictures(folder: Path, classes: Sequence[str], per_class: int | None = None) -> list[tuple[int, int]]:
    """Return (label, index) of the pictures there are, class by class.

    Raises:
        ValueError: if there is anything else, or a picture numbered per_class or above.
    """
    strangers = sorted(_visible(folder) - {SETTINGS, MANIFEST, *classes})
    if strangers:
        raise ValueError(f"{shown(folder / strangers[0])} is none of this export's files; move it elsewhere")
    found = []
    for label, name in enumerate(classes):
        indices = []
        for file in _visible(folder / name) if (folder / name).exists() else ():
            number = re.fullmatch(r"(\d{6})\.png|([1-9]\d{6,})\.png", file)
            if number is None:
                raise ValueError(f"{shown(folder / name / file)} is none of this export's files; move it elsewhere")
            indices.append(int(number[1] or number[2]))
        if per_class is not None and max(indices, default=-1) >= per_class:
            count = max(indices) + 1
            raise ValueError(
                f"per_class={per_class}, but {shown(folder / name)} already holds {count} images and none is ever "
                f"deleted; give per_class={count} or more, or another folder"
            )
        found += [(label, index) for index in sorted(indices)]
    return found


def picture_path(folder: Path, name: str, index: int) -> Path:
    """Return where the picture of a class with a number lies."""
    return folder / name / f"{index:06d}.png"


def encode_picture(pixels: Tensor, line: str) -> bytes:
    """Pack uint8 (C, H, W) into a PNG that carries its line of the manifest."""
    array = pixels.permute(1, 2, 0).numpy()  # (C, H, W) -> (H, W, C)
    note, packed = PngInfo(), io.BytesIO()
    note.add_text(_NOTE, line)
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(packed, "PNG", pnginfo=note)
    return packed.getvalue()


def read_picture(path: Path) -> tuple[Tensor, str] | None:
    """Return uint8 (C, H, W) and the line of the manifest; None if the file is missing or damaged.

    Raises:
        ValueError: if it is something that no export made.
    """
    packed = read_file(path) if path.exists() else b""
    if not any(packed) or _SIGNATURE.startswith(packed):  # what a full disk or a power cut leaves
        return None
    line = None
    if packed.startswith(_SIGNATURE):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                array, line = _decode(packed)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{shown(path)} is refused as too large: {error}") from None
        except Exception:  # decoders raise almost anything on damaged data: struct.error, SyntaxError, IndexError
            return None
    if line is None or not _is_record(line):
        raise ValueError(f"{shown(path)} is no picture that generate_dataset made; move it elsewhere")
    return torch.from_numpy(array.transpose(2, 0, 1).copy()), line  # (H, W, C) -> (C, H, W)


def _decode(packed: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """Return (H, W, C) and the note of a PNG, whose checksums hold."""
    with Image.open(io.BytesIO(packed), formats=("PNG",)) as image:
        image.verify()  # the checksums, which are ignored when pixels are decoded
    with Image.open(io.BytesIO(packed), formats=("PNG",)) as image:
        return np.atleast_3d(np.asarray(image)), getattr(image, "text", {}).get(_NOTE)


def _is_record(line: str) -> bool:
    """Tell whether a note is one line of a manifest, with the number of the attempt."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and type(record.get("attempt")) is int and "\n" not in line


def read_generated(folder: str | Path) -> ImageDataset:
    """Read what ``generate_dataset`` wrote, with its order of the classes, however much of it there is yet.

    Raises:
        FileNotFoundError: if the folder was not begun by ``generate_dataset``.
        ValueError: if it holds another file, a damaged one, or no picture.
    """
    folder = check_path("folder", folder)
    classes = read_settings(folder)["classes"]
    found = find_pictures(folder, classes)
    if not found:
        raise ValueError(f"{shown(folder)} holds no picture yet; let generate_dataset make some")
    images = []
    for label, index in tqdm(found, desc=folder.name, unit="image", disable=None):
        path = picture_path(folder, classes[label], index)
        picture = read_picture(path)
        if picture is None:
            raise ValueError(f"{shown(path)} is damaged; generate_dataset, called as before, makes it anew")
        images.append(picture[0])
    return ImageDataset(torch.stack(images), torch.tensor([label for label, _ in found]), classes)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files that take their names only when all are on the disk: quicker than one after the other.

    Raises:
        OSError: if one cannot be written; none has taken its name then.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            _write(temporary[path], content, path)
        with ThreadPoolExecutor(_FLUSHERS) as pool:  # a disk flushes many files in the time of a few
            list(pool.map(_flush, temporary.values()))
        for path, draft in temporary.items():
            draft.replace(path)
    finally:
        for draft in temporary.values():
            draft.unlink(missing_ok=True)
    for parent in {path.parent for path in files}:
        flush_folder(parent)


def tidy(folder: Path, classes: Sequence[str]) -> None:
    """Remove the temporary files of killed processes."""
    for place in (folder, *(folder / name for name in classes)):
        remove_abandoned(place, rf"\d+\.png|{re.escape(SETTINGS)}|{re.escape(MANIFEST)}")


def _write(draft: Path, content: bytes, path: Path) -> None:
    try:
        draft.write_bytes(content)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write to a full disk does not say to which file
            error.filename = str(path)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _visible(folder: Path) -> set[str]:
    """Return the names in a folder of an export; a link in it could lead the reader or the writer elsewhere."""
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)} is no folder; move it elsewhere")
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            raise ValueError(f"{shown(entry.path)} is a link, a pipe or a device; move it elsewhere")
    return {entry.name for entry in visible}
