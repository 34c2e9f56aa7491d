"""Look at a machine, a folder and a network, and say in words what will cost time or go wrong."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from cifarkit.checks import check_integer
from cifarkit.cpu import available_cores
from cifarkit.inference import device_of, dtype_of, evaluation_mode, has_native_bf16
from cifarkit.models import SpeedNet
from cifarkit.training import ClassificationTask, Trainer, estimate_seconds
from cifarkit.training.precision import choose_device

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_LEAST_FREE = 1e9  # bytes on the disk
_SMALL_SIDE = 64  # pixels, below which ImageNet's stem is too coarse
_BATCH = 128
_REUSED_MATTERS = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.MaxPool2d)


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands ("ok", "warning" or "problem"), and a sentence."""

    topic: str
    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.topic}: {self.text}"


def examine_machine(folder: str | Path = ".") -> list[Finding]:
    """Look at versions, devices, threads, bf16, the compiler, and whether runs can be written into a folder."""
    return [_versions(), _devices(), _bf16(), *_threads(), _compiler(), *_folder(Path(folder))]


def examine_model(model: nn.Module, image_size: int = 32) -> list[Finding]:
    """Look for known traps in a network for images of a given side: a coarse stem, activations used twice.

    Raises:
        TypeError: if model is no module, or image_size no integer.
        ValueError: if image_size is below 1, or the network fails on such an image.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    side = check_integer("image_size", image_size, 1)
    return [*_stem(model, side), *_reused(model, side)] or [Finding("network", OK, "no known trap")]


def measure_speed(steps: int = 20, *, model: nn.Module | None = None, image_size: int = 32) -> Finding:
    """Time training updates on batches of 128 random images and say how long an epoch of 50,000 takes.

    Args:
        steps: updates to time, at least 1.
        model: images -> logits; None is a :class:`SpeedNet` of its default width. The images have as many channels as
            its first convolution takes.
    Raises:
        ValueError: if steps is below 1.
    """
    steps = check_integer("steps", steps, 1)
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    network = SpeedNet() if model is None else model
    images = torch.randn(_BATCH, _channels(network), image_size, image_size, dtype=dtype_of(network, torch.float32))
    labels = torch.zeros(_BATCH, dtype=torch.int64)
    task = ClassificationTask(network, torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9), num_classes=1_000)
    trainer = Trainer(max_steps=steps, precision="auto", progress=False)
    per_second = _BATCH * steps / estimate_seconds(trainer, task, [(images, labels)] * steps, steps=steps)
    text = (
        f"{per_second:,.0f} images/s in {trainer.precision.name} by {steps} updates of {type(network).__name__} on "
        f"{trainer.device}; an epoch of 50,000 images takes about {50_000 / per_second:.0f} s"
    )
    return Finding("speed", OK, text)


def _versions() -> Finding:
    from cifarkit import __version__

    versions = {
        "cifarkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    where = f"{platform.system()} {platform.machine()}"
    return Finding("versions", OK, ", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {where}")


def _devices() -> Finding:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("devices", OK, ", ".join(["cpu", *names]))


def _bf16() -> Finding:
    """Judge the device that a Trainer takes, which need not be the processor."""
    device = choose_device("auto")
    name = "this processor" if device.type == "cpu" else f"this device ({device.type})"
    if has_native_bf16(device):
        return Finding("bf16", OK, f"{name} multiplies bf16 natively; Trainer(precision='auto') uses it")
    return Finding("bf16", OK, f"{name} does not multiply bf16 natively: fp32 is faster, and 'auto' takes it")


def _threads() -> Iterator[Finding]:
    used, cores = torch.get_num_threads(), available_cores()
    if used > cores:
        advice = f"set OMP_NUM_THREADS={cores} or torch.set_num_threads({cores})"
        yield Finding("threads", WARNING, f"{used} threads share {cores} cores and wait for each other; {advice}")
    else:
        yield Finding("threads", OK, f"{used} of {cores} cores")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 1.2 * cores:
        yield Finding("load", WARNING, f"{busy:.1f} programs compete for {cores} cores; times below are too long")


def _compiler() -> Finding:
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    found = next((name for name in names if name and shutil.which(name)), None)
    if found or torch.cuda.is_available():
        return Finding("compiler", OK, f"compile=True can work ({found or 'CUDA'})")
    return Finding("compiler", WARNING, "no C++ compiler: compile=True will fall back to eager; install g++ or clang++")


def _folder(folder: Path) -> Iterator[Finding]:
    try:
        places = [part for part in (folder, *folder.absolute().parents) if part.exists()]
        place = next(iter(places), folder)  # the folder may be yet to be made
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("folder", PROBLEM, f"{folder} cannot be written ({reason}); start in a folder of your own")
        return
    if free < _LEAST_FREE:
        yield Finding("folder", WARNING, f"only {free / 1e6:.0f} MB are free in {folder}; checkpoints may not fit")
    else:
        yield Finding("folder", OK, f"{folder.resolve()} can be written, {free / 1e9:.0f} GB free")


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    return next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)


def _channels(model: nn.Module) -> int:
    """Return how many channels the images of a network have."""
    first = _first_convolution(model)
    return 3 if first is None else first.in_channels


def _stem(model: nn.Module, side: int) -> Iterator[Finding]:
    """Warn of a first convolution that reads large windows in strides, made for ImageNet."""
    first = _first_convolution(model)
    if first is None or side >= _SMALL_SIDE:
        return
    window, stride = first.kernel_size[0], first.stride[0]
    if window > stride > 1 and window >= 5:  # a patch embedding has window == stride
        yield Finding(
            "stem",
            WARNING,
            f"{window}x{window} convolution of stride {stride} on images of {side} pixels throws most of them away; "
            "use a 3x3 stem of stride 1, as resnet18(stem='cifar') has",
        )


def _reused(model: nn.Module, side: int) -> Iterator[Finding]:
    """Warn of activations that are called more than once in a pass, which Captum's DeepLift cannot explain."""
    calls = _count_calls(model, side)
    twice = [name for name, count in calls.items() if count > 1]
    if not twice:
        return
    more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
    yield Finding(
        "activations",
        WARNING,
        f"{twice[0]}{more} is called more than once in a pass: captum.attr.DeepLift refuses that or explains it "
        "wrongly; cifarkit.attribution.attribute(..., 'deep_lift') gives each call a module of its own",
    )


def _count_calls(model: nn.Module, side: int) -> Counter[str]:
    calls: Counter[str] = Counter()
    handles = []
    for name, part in model.named_modules():
        if isinstance(part, _REUSED_MATTERS):
            count: Any = lambda *_, name=name: calls.update([name])  # noqa: E731
            handles.append(part.register_forward_hook(count))
    channels = _channels(model)
    try:
        with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the stem, which is a finding of its own
            where: dict[str, Any] = {"device": device_of(model), "dtype": dtype_of(model, torch.float32)}
            model(torch.zeros(1, channels, side, side, **where))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        shape = (1, channels, side, side)
        raise ValueError(f"image_size={side}: the network fails on images of shape {shape}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls
