"""Pictures in: image files of any kind, in folders or one by one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from cifarkit.checks import check_integer, check_path, check_size
from cifarkit.data.dataset import ImageDataset, check_classes
from cifarkit.files import shown

_BMP_PIXELS_A_BYTE = 128  # a run of 255 takes two bytes
# The raster formats Pillow decodes by itself; EPS, for example, would start another program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA", "ICO", "PCX", "JPEG2000", "AVIF")
_GREY_OF_16_BITS = ("PNG", "PPM")  # of whose mode "I" 16 of 32 bits are used: PGM, and PNG before Pillow 10.3
_NAMED = 3  # broken pictures; thousands would hide what is wrong with them


def image_folder(
    root: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
) -> ImageDataset:
    """Read root/<class>/<picture>, the classes and pictures sorted by name.

    PNG, JPEG, BMP, GIF's first frame, WebP, TIFF, PPM, TGA, ICO, PCX, JPEG 2000 and AVIF are taken by their suffix and
    turned upright by their EXIF tag; transparency is dropped. Hidden files and others such as ``manifest.jsonl`` are
    ignored, and so are links, with a warning.

    Args:
        root: folder with one folder for each class.
        size: side, or (H, W), in pixels to resize to with antialiasing, which may stretch; None if all pictures
            share one size.
        classes: names of the classes in the order of their labels, such as ``train.classes`` for a second folder that
            is to number them alike; a class may have no folder here. None takes the folders, sorted.
        channels: 3 reads RGB, 1 grey.
    Raises:
        FileNotFoundError: if root is no folder.
        TypeError: if a side of size or channels is no integer, or classes is no sequence of names.
        ValueError: if size is below 1, channels neither 1 nor 3, a folder not among classes or without a picture, or a
            picture is damaged, too large or of another size; the message names the first three.
    """
    root = check_path("root", root)
    if not root.is_dir():
        raise FileNotFoundError(f"{shown(root)}: no such folder")
    shape, mode = None if size is None else check_size("size", size), _mode_of(channels)
    files, links = _class_folders(root)
    _warn_of(links, root)
    _require_pictures(root, files)
    names = [*files] if classes is None else _order_of(classes, files, root)
    paths = [path for name in names for path in files.get(name, [])]
    labels = [label for label, name in enumerate(names) for _ in files.get(name, [])]
    pixels = _read_all(paths, shape, mode, root.name).transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    return ImageDataset(np.ascontiguousarray(pixels), np.array(labels), names)


def read_images(
    source: str | Path | Sequence[str | Path], *, size: int | tuple[int, int] | None = None, channels: int = 3
) -> Tensor:
    """Read pictures that have no labels: those of one folder, sorted by name, or the given files in their order.

    Args:
        source: a folder, one file, or several files; what is taken is as for :func:`image_folder`.
        size, channels: as for :func:`image_folder`.
    Returns:
        uint8 (N, C, H, W), ready for ``Normalize`` and ``predict``.
    Raises:
        FileNotFoundError: if there is no such folder or file.
        TypeError: if a side of size or channels is no integer.
        ValueError: if there is no picture, one is damaged, too large or of another size (the message names the first
            three), or size or channels is out of range.
    """
    mode = _mode_of(channels)
    given = [source] if isinstance(source, str | Path) else source
    paths = [Path(path) for path in given]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{shown(missing[0])}: no such file or folder")
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        paths, links = _pictures_in(folder)
        _warn_of(links, folder)
        if not paths:
            raise ValueError(f"{shown(folder)} holds no picture; for one folder a class use image_folder")
    if not paths:
        raise ValueError(f"source={source!r} names no picture; give a folder or some files")
    shape = None if size is None else check_size("size", size)
    pixels = _read_all(paths, shape, mode, "pictures").transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    return torch.from_numpy(pixels.copy())


def _mode_of(channels: int) -> str:
    """Return Pillow's name for pictures of so many channels."""
    if check_integer("channels", channels) not in (1, 3):
        raise ValueError(f"channels={channels} is not offered; give 3 for RGB or 1 for grey")
    return "L" if channels == 1 else "RGB"


def _read_all(paths: Sequence[Path], shape: tuple[int, int] | None, mode: str, title: str) -> NDArray[np.uint8]:
    """Decode at least one file into uint8 (N, H, W, C); all must have one size. After a broken one look for others."""
    pixels: NDArray[np.uint8] | None = None
    faults: list[str] = []
    for index, path in enumerate(tqdm(paths, desc=title, unit="image", disable=None)):
        try:
            picture = _read_picture(path, shape, mode)  # (H, W, C)
        except ValueError as error:
            faults.append(str(error))
        if faults:
            continue
        if pixels is None:
            pixels = _room_for(len(paths), picture)
        if picture.shape != pixels.shape[1:]:
            sizes = f"{shown(path)} has (H, W) = {picture.shape[:2]}, but {shown(paths[0])} has {pixels.shape[1:3]}"
            raise ValueError(f"{sizes}; pass size= to resize all, or --size to a command")
        pixels[index] = picture
    if faults:
        several = f"{len(faults)} of {len(paths)} pictures cannot be read: " if len(faults) > 1 else ""
        rest = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise ValueError(f"{several}{'; '.join(faults[:_NAMED])}{rest}")
    assert pixels is not None
    return pixels


def _room_for(count: int, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        return np.empty((count, *picture.shape), np.uint8)
    except MemoryError:
        size = f"{picture.shape[0]} x {picture.shape[1]} pixels"
        raise ValueError(f"{count} pictures of {size} do not fit into the memory; pass size= to shrink them") from None


def _class_folders(root: Path) -> tuple[dict[str, list[Path]], int]:
    """List the pictures of each class, both sorted by name, and count the links among both."""
    found = sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path))
    files, links = {}, 0
    for folder in found:
        if folder.is_symlink():
            links += 1
        else:
            files[folder.name], more = _pictures_in(folder)
            links += more
    return files, links


def _warn_of(links: int, folder: Path) -> None:
    if links:
        warnings.warn(
            f"{shown(folder)}: passed over {links} {'link' if links == 1 else 'links'} to pictures or folders; links "
            "are not followed, so put copies in their place",
            stacklevel=3,
        )


def _require_pictures(root: Path, files: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError if there is no class folder or one without a picture."""
    if not files:
        place = shown(root)
        raise ValueError(f"{place} holds no class folder; expected {place}/<class>/<picture>")
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise ValueError(
            f"{shown(root)}: no picture in class folder {shown(', '.join(empty))}; add some or remove the folder"
        )


def _order_of(classes: Sequence[str], folders: Iterable[str], root: Path) -> list[str]:
    """Return the names in the order given, or raise ValueError if a folder is not among them."""
    names = check_classes(classes)
    strangers = [name for name in folders if name not in names]
    if strangers:
        known = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise ValueError(
            f"{shown(root)}: class folder {shown(', '.join(strangers))} is not among classes ({known}); add the name "
            "or remove the folder"
        )
    return [*names]


def _pictures_in(folder: Path) -> tuple[list[Path], int]:
    """List the pictures sorted by name, and count the links that are named as pictures are."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not _is_hidden(path))
    links = [path for path in found if path.is_symlink()]
    return [path for path in found if path.is_file() and not path.is_symlink()], len(links)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _read_picture(path: Path, shape: tuple[int, int] | None, mode: str) -> NDArray[np.uint8]:
    """Decode one file to uint8 (H, W, C), or raise ValueError with its name."""
    name = shown(path)
    if not path.is_file():  # a pipe or a device might never end
        raise ValueError(f"{name}: not a picture but a folder, a pipe or a device")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as image:
                _require_pixels(image, path)
                kind = image.format  # which a copy that is turned upright does not have
                picture = _to_rgb(ImageOps.exif_transpose(image), kind)
                picture = picture if picture.mode == mode else picture.convert(mode)  # grey stays exact
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not a picture, or a damaged one") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: refused as too large: {_one_line(error)}") from None
    except Exception as error:  # decoders raise almost anything on damaged data: struct.error, SyntaxError, IndexError
        raise ValueError(f"{name}: {_one_line(error)}") from None
    if shape is not None and picture.size != (shape[1], shape[0]):
        picture = picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)  # Pillow antialiases when it shrinks
    return np.atleast_3d(np.asarray(picture))


def _require_pixels(image: Image.Image, path: Path) -> None:
    """Refuse a BMP whose header claims more pixels than run lengths can hold: Pillow fills up the rest, slowly."""
    most = _BMP_PIXELS_A_BYTE * path.stat().st_size
    if image.format == "BMP" and image.width * image.height > most:
        raise ValueError(f"its header claims {image.width} x {image.height} pixels, but its bytes hold {most} at most")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS this build of Pillow knows; it has no message for the others."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """Convert to 8-bit RGB; 16-bit grey is scaled, because Pillow would clip it at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _GREY_OF_16_BITS):
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no fixed range; save the picture with 8 bits a channel")
    return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
