"""Images by a name or a path, as scripts take them from a flag."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from cifarkit.checks import check_integer, check_path
from cifarkit.data.dataset import ImageDataset
from cifarkit.data.pictures import image_folder
from cifarkit.data.shapes import shapes
from cifarkit.data.sources import cifar10, cifar100, load_npz
from cifarkit.files import shown

_CIFAR = {"cifar10": cifar10, "cifar100": cifar100}
NAMED = ("shapes", *_CIFAR)  # what load knows by name; these alone have test images of their own


def load(
    source: str | Path,
    *,
    root: str | Path = "data",
    train: bool = True,
    download: bool = False,
    size: int | None = None,
    count: int | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """Read the images that a name or a path stands for.

    Args:
        source: "shapes", "cifar10", "cifar100", a .npz file (:func:`load_npz`) or a folder with one folder a class
            (:func:`image_folder`).
        root: folder that holds CIFAR, or receives it.
        train: training images if true, else test images; a file or folder is read whole in either case.
        download: fetch CIFAR if root has none.
        size: side in pixels of the pictures of a folder, and of shapes.
        count: at most so many images, in the proportions of the classes; by default all of them, of shapes 20,000 for
            training and 2,000 for testing.
        classes: names in the order of their labels that the images must have, such as ``train.classes`` for those to
            test on; a folder may lack some.
    Raises:
        FileNotFoundError: if there is no such file or folder, or no CIFAR in root.
        TypeError, ValueError: if an argument is out of range, a file is damaged, or the classes are others.
    """
    images = _load(source, root, train, download, size, count, classes)
    if classes is not None and images.classes != tuple(classes):
        pairs = zip_longest(images.classes, classes, fillvalue="none")
        label, (there, asked) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"{shown(source)} has other classes than asked for: label {label} means {there!r} there and {asked!r} here"
        )
    return images


def _load(
    source: str | Path,
    root: str | Path,
    train: bool,
    download: bool,
    size: int | None,
    count: int | None,
    classes: Sequence[str] | None,
) -> ImageDataset:
    count = None if count is None else check_integer("count", count, 1)
    if source == "shapes":
        return shapes(count or (20_000 if train else 2_000), seed=0 if train else 1, size=32 if size is None else size)
    path = check_path("source", source).expanduser()
    if size is not None and (source in _CIFAR or not path.is_dir()):
        raise ValueError(f"size={size} is for a folder of pictures or shapes; leave it out for {shown(source)}")
    if source in _CIFAR:
        images = _CIFAR[str(source)](root, train=train, download=download)
    elif path.exists():
        images = image_folder(path, size=size, classes=classes) if path.is_dir() else load_npz(path)
    else:
        raise FileNotFoundError(f"there is no file or folder {shown(source)}; give one, or {', '.join(NAMED)}")
    return images if count is None or count >= len(images) else images.split(count)[0]
