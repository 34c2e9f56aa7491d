"""What several commands need: images by name, and the settings that a trained run leaves in its folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from cifarkit import data, transforms
from cifarkit.files import read_file, shown, write_atomically
from cifarkit.training import Logger, Run, distributed

Result = TypeVar("Result")

_SETTINGS = "settings.json"
_NEEDED = {  # what `train` notes of each kind of network
    "classifier": ("network", "classes", "image_size", "mean", "std", "flags"),
    "diffusion model": ("network", "classes", "image_shape", "flags"),
}
_FLAGS = ("data", "root", "download", "seed", "tiny", "recipe", "val", "epochs", "base_channels")
_LATER_FLAGS = {"size": None, "minutes": None}  # which runs of before did not note
# Of the images, their order and the end: a run keeps them.
_KEPT_FLAGS = ("data", "size", "seed", "val", "tiny", "recipe", "minutes")
_LARGEST = 10_000_000  # bytes of settings
_ROOT = "data"
TINY = 600  # images of --tiny


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which images to take."""
    flag = parser.add_argument
    flag("--data", default="shapes", help="shapes, cifar10, cifar100, a .npz file or a folder with one folder a class")
    flag("--root", help=f"where CIFAR lies (default: {_ROOT})")
    flag("--size", type=int, help="pixels of a side, to resize the pictures of a folder to")
    flag("--download", action="store_true", help="fetch CIFAR if it is not there")
    flag("--seed", type=int, default=0)
    flag("--tiny", action="store_true", help="a few seconds, to see that it works")


def load_images(args: argparse.Namespace, *, train: bool, classes: Sequence[str] | None = None) -> data.ImageDataset:
    """Load the images that the flags name; a file or folder has no test images and gives a tenth of its own.

    Args:
        classes: those of a run, so that labels mean the same.
    Raises:
        ValueError: if the flags do not fit, or the images have other classes.
    """
    if args.size is not None and (args.data in data.NAMED or Path(args.data).is_file()):
        raise ValueError(f"--size {args.size} is for a folder of pictures; leave it out for --data {args.data}")
    if args.data in data.NAMED:
        count = TINY if args.tiny else None
        where = {"root": args.root or _ROOT, "train": train, "download": args.download, "count": count}
        return data.load(args.data, **where, classes=classes)
    if not Path(args.data).exists():
        raise ValueError(f"--data {args.data}: no such file or folder; give one, or {', '.join(data.NAMED)}")
    images = data.load(args.data, size=args.size, classes=classes).split(0.9, 0.1, seed=0)[0 if train else 1]
    return images.split(min(TINY, len(images)))[0] if args.tiny else images


def require_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds a run of other settings, which would be lost.

    Of a run without a checkpoint to go on from only the network has to be the same.
    """
    if not has_settings(folder):
        return
    old = read_settings(folder)
    if any(old[name] != settings[name] for name in ("kind", "network", "classes")):
        raise ValueError(f"{shown(folder)} holds a run of another network; give another --folder")
    for name in _KEPT_FLAGS if any(folder.glob("*.pt")) else ():
        there, here = (_LATER_FLAGS | given["flags"] for given in (old, settings))
        if _plain(there[name]) != _plain(here[name]):
            raise ValueError(
                f"{shown(folder)} holds a run of --{name} {there[name]!r}, not {here[name]!r}; go on with the flags it "
                f"had by --resume {shown(folder)}, or give another --folder"
            )


def _plain(value: Any) -> Any:
    """Return a flag so that photos and photos/ are the same."""
    return Path(value) if isinstance(value, str) else value


def has_settings(folder: Path) -> bool:
    """Tell whether a run has been begun in the folder."""
    return (folder / _SETTINGS).exists()


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note in the run folder what the other commands need to build its network anew; of several processes rank 0.

    Raises:
        ValueError: if the folder holds another run, see :func:`require_same_run`.
    """
    require_same_run(folder, settings)
    if distributed.rank() == 0:
        write_atomically(f"{json.dumps(settings, indent=2)}\n".encode(), folder / _SETTINGS)


class SettingsWriter(Logger):
    """Write the settings of a run as soon as it has taken up its checkpoint, if there is one: it might be refused."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def start(self, run: Run) -> None:
        write_settings(self.folder, self.settings)


@distributed.process_group()
def on_first_rank(look: Callable[[], Result]) -> Result:
    """Let rank 0 look at the run folder for all processes, which may be on machines without it."""
    return distributed.from_first_rank(look)


def read_settings(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Return what :func:`write_settings` noted.

    Raises:
        ValueError: if the folder has none, or they are damaged, incomplete or of a network of another kind.
    """
    path = Path(folder) / _SETTINGS
    if not Path(folder).is_dir():
        raise ValueError(f"{shown(folder)}: no such folder; give that of a run")
    if not path.is_file():
        raise ValueError(
            f"{shown(folder)} holds no {_SETTINGS}, which `python -m cifarkit train` writes; take the weights of other "
            "runs by load_weights(model, path), with average='ema' for the averaged ones, as the guides show"
        )
    try:
        settings: dict[str, Any] = json.loads(read_file(path, _LARGEST))
        found = settings["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # the last of brackets in brackets
        raise ValueError(f"{shown(path)} is damaged: {error}") from error
    if found not in [*_NEEDED]:  # it may be anything, unhashable things too
        kinds = ", ".join(_NEEDED)
        raise ValueError(f"{shown(path)} is damaged: its kind {repr(found)[:100]} is none of {kinds}")
    if kind is not None and found != kind:
        raise ValueError(f"{shown(folder)} is a run of a {found}; this command needs a {kind}")
    if not isinstance(settings.get("flags", {}), dict):
        raise ValueError(f"{shown(path)} is damaged: its flags are no names and values")
    missing = [key for key in _NEEDED[found] if key not in settings]
    missing += [f"flags.{name}" for name in _FLAGS if name not in settings.get("flags", _FLAGS)]
    if missing:
        raise ValueError(f"{shown(path)} is incomplete: it lacks {', '.join(map(repr, missing))}; train again")
    return settings


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of a training, as JSON holds them."""
    return {name: value for name, value in vars(args).items() if name not in ("run", "folder", "resume", "traceback")}


def recorded_flags(settings: dict[str, Any], args: argparse.Namespace | None = None) -> argparse.Namespace:
    """Return the flags that a run was started with, but for where its data lie now, if args say so."""
    moved = {name: getattr(args, name, None) for name in ("root", "download")}
    moved = {name: value for name, value in moved.items() if value}
    return argparse.Namespace(**(_LATER_FLAGS | settings["flags"] | moved))


def normalization(settings: dict[str, Any]) -> transforms.Normalize:
    """Return the transform that the network was trained with."""
    return transforms.Normalize(settings["mean"], settings["std"])


def load_classifier(folder: str | Path, settings: dict[str, Any]) -> nn.Module:
    """Build the network of a run and load its weights, the best ones if the run kept them apart."""
    from cifarkit.models import SpeedNet
    from cifarkit.training import load_weights

    network = SpeedNet(**settings["network"])
    best = Path(folder) / "best.pt"
    return load_weights(network, best if best.is_file() else last_checkpoint(folder)).eval()


def last_checkpoint(folder: str | Path) -> Path:
    """Return the last.pt of a run.

    Raises:
        FileNotFoundError: if it has none yet.
    """
    path = Path(folder) / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{shown(folder)} holds no checkpoint yet; train on by python -m cifarkit train --resume {shown(folder)}"
        )
    return path
