"""torchvision's ResNets with a stem for small images, and ImageNet weights for either stem."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet18_Weights, ResNet34_Weights

from cifarkit.checks import check_integer
from cifarkit.files import require_plain_zip, shown, why_unreadable

Stem = Literal["cifar", "imagenet"]
Weights = str | Path | None

_log = logging.getLogger(__name__)
_SMALLEST_SIDE = 64  # a 7x7 stem with its pool leaves stage 4 of a 32-pixel image a single position
_ZIP_START = b"PK\x03\x04"  # by which torch.load tells them, too
_NESTS = ("state_dict", "model", "weights", "task")  # where training scripts keep the weights in their files


def resnet18(num_classes: int = 10, *, stem: Stem = "cifar", weights: Weights = None, channels: int = 3) -> ResNet:
    """Build torchvision's ResNet-18 (11.2 M parameters) for small images.

    Args:
        num_classes: number of logits K.
        stem: "cifar" starts with a 3x3 convolution of stride 1 and no pool, for images of 28 to 64 pixels;
            "imagenet" keeps torchvision's 7x7 convolution of stride 2 and its max-pool.
        weights: None for torchvision's random start, "DEFAULT" for its ImageNet weights (a download of 45 MB),
            or the path of a state_dict, a training checkpoint or a ``.safetensors`` file. A 7x7 kernel is resampled
            for the 3x3 stem, see :func:`resample_stem`; a head of 1000 classes is left out (and logged) when
            num_classes is another number.
        channels: C of the images, 1 for grey; ImageNet weights need 3.
    Raises:
        ValueError: if num_classes, stem or channels is out of range, "DEFAULT" meets other channels than 3, or the
            weights are damaged or of another network.
        TypeError: if an argument is of another type.
        ImportError: if the weights are a .safetensors file and the extra is not installed.
        OSError: if the weights cannot be read or downloaded.
    Shapes:
        (B, C, H, W) float -> (B, K) logits.
    Source: He et al. 2016, section 4.1; the CIFAR stem follows their section 4.2.
    """
    return _build(torchvision.models.resnet18, ResNet18_Weights.DEFAULT, num_classes, stem, weights, channels)


def resnet34(num_classes: int = 10, *, stem: Stem = "cifar", weights: Weights = None, channels: int = 3) -> ResNet:
    """Build torchvision's ResNet-34 (21.3 M parameters) for small images; see :func:`resnet18`."""
    return _build(torchvision.models.resnet34, ResNet34_Weights.DEFAULT, num_classes, stem, weights, channels)


def resample_stem(kernel: Tensor) -> Tensor:
    """Turn 7x7 kernels into the 3x3 kernels that answer as they would on the image enlarged three times.

    Seven pixels of the enlarged image span three of the small one, so one 7x7 window reads a linear function of one
    3x3 window, and folding the bilinear enlargement U into the kernel, U^T w, is exact for *every* image: constant and
    linear patches included. It is the criterion of FlexiViT's PI-resize, <U x, w> = <x, w'>, in the direction that
    needs no pseudo-inverse; taking a 7x7 patch down to 3x3 instead can only be met on average.

    Raises:
        ValueError: if the kernels have another size.
    Shapes:
        (D, C, 7, 7) -> (D, C, 3, 3).
    Source: Beyer et al. 2022, FlexiViT, arXiv 2212.08013, the pseudo-inverse resize.
    """
    if kernel.dim() != 4 or kernel.shape[2:] != (7, 7):
        raise ValueError(f"kernel must be (D, C, 7, 7); got shape {tuple(kernel.shape)}")
    options: dict[str, Any] = {"dtype": torch.float64, "device": kernel.device}
    offsets, nodes = torch.arange(7, **options) / 3, torch.arange(3, **options)  # the enlarged pixels, in small ones
    enlarge = (1 - (offsets[:, None] - nodes).abs()).clamp(min=0)  # (7, 3): the triangle of linear interpolation
    resampled = torch.einsum("dcyx,yh,xw->dchw", kernel.double(), enlarge, enlarge)
    return resampled.to(kernel.dtype)


def _build(
    constructor: Callable[..., ResNet], imagenet: Any, num_classes: int, stem: Stem, weights: Weights, channels: int
) -> ResNet:
    """Make the network, change its stem and fill in the weights."""
    num_classes = check_integer("num_classes", num_classes, 1)
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem={stem!r} is unknown; give 'cifar' (3x3, no pool) or 'imagenet' (7x7, pool)")
    if weights is not None and not isinstance(weights, str | Path):
        raise TypeError(f"weights={weights!r} is a {type(weights).__name__}; give None, 'DEFAULT' or a path")
    if check_integer("channels", channels, 1) != 3 and weights == "DEFAULT":
        raise ValueError(
            f"weights='DEFAULT' reads 3 channels, not channels={channels}; repeat grey images by "
            "images.expand(-1, 3, -1, -1) for a network of 3, or give weights=None or the path of weights of that shape"
        )
    model = constructor(num_classes=num_classes)
    if stem == "cifar":
        model.conv1 = _first_convolution(channels, side=3, stride=1)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = _first_convolution(channels, side=7, stride=2)
    if stem == "imagenet":
        model.register_forward_pre_hook(_CoarseStemWarning())
    if weights is not None:
        source, state = ("ImageNet weights", _download(imagenet)) if weights == "DEFAULT" else _read(Path(weights))
        _load(model, state, source)
    return model


def _first_convolution(channels: int, side: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, 64, kernel_size=side, stride=stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    return layer


class _CoarseStemWarning:
    """A forward pre-hook that warns once when a 7x7 stem meets a small image; copies and pickles with its model."""

    only_warns = True  # so that a copy may do without it

    def __init__(self) -> None:
        self.warned = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.warned or not inputs or not isinstance(inputs[0], Tensor):  # torch.fx traces with other things
            return
        height, width = inputs[0].shape[-2:]
        if min(height, width) < _SMALLEST_SIDE:
            self.warned = True
            warnings.warn(
                f"images of {height}x{width} pixels meet the 7x7 stem and max-pool made for ImageNet, which shrink "
                f"them four times before the first block; build the network with stem='cifar' or enlarge the images "
                f"to {_SMALLEST_SIDE} pixels or more",
                stacklevel=2,
            )


def _download(imagenet: Any) -> dict[str, Tensor]:
    """Fetch ImageNet weights, or find them in torch's cache, by torchvision's own code."""
    try:
        state: dict[str, Tensor] = imagenet.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise OSError(
            f"weights='DEFAULT' could not be had from {imagenet.url} ({error}); download that file by hand and give "
            "its path as weights"
        ) from error
    return state


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Read a file of weights; return its name for messages and the tensors by key."""
    if not path.is_file():
        raise FileNotFoundError(f"weights='{shown(path)}' is no file; give None, 'DEFAULT' or the path of a state_dict")
    packed = path.read_bytes()  # first, so that what fails later is the content and not the disk
    if path.suffix == ".safetensors":
        return shown(path), _find_state_dict(_read_safetensors(packed, path), path)
    try:
        if packed.startswith(_ZIP_START):  # weights older than PyTorch 1.6 are no zip files
            require_plain_zip(packed)
        content = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file makes PyTorch raise nearly anything, OSError included
        reason = why_unreadable(error)
        raise ValueError(
            f"weights='{shown(path)}' is no file of tensors ({reason}); save model.state_dict() with torch.save, "
            "not the model"
        ) from error
    return shown(path), _find_state_dict(content, path)


def _read_safetensors(packed: bytes, path: Path) -> dict[str, Tensor]:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"weights='{shown(path)}': reading it needs: pip install cifarkit[safetensors]") from error
    try:
        return dict(safetensors.torch.load(packed))
    except Exception as error:  # the library's own errors do not name the file
        raise ValueError(f"weights='{shown(path)}' is damaged or no safetensors file ({shown(str(error))})") from error


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Dig the state_dict of a ResNet out of a checkpoint, and cut prefixes such as ``model.`` off its keys."""
    while isinstance(content, Mapping) and "conv1.weight" not in content:
        nested = next((content[name] for name in _NESTS if isinstance(content.get(name), Mapping)), None)
        if nested is None:
            break
        content = nested
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"weights='{shown(path)}' holds no state_dict, only {found}; save model.state_dict() with torch.save"
        )
    content = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefixes = [key.removesuffix("fc.weight") for key in content if key.endswith("fc.weight")]
    prefix = next((prefix for prefix in prefixes if f"{prefix}conv1.weight" in content), "")
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def _load(model: ResNet, state: Mapping[str, Tensor], source: str) -> None:
    """Fit the weights to the model's stem and head and load them, or say which key does not fit."""
    state, own = dict(state), model.state_dict()
    stem, head = state.get("conv1.weight"), state.get("fc.weight")
    if stem is not None and stem.shape[-1] == 7 and own["conv1.weight"].shape[-1] == 3:
        state["conv1.weight"] = resample_stem(stem)
    if head is not None and len(head) == 1000 != model.fc.out_features:
        _log.info("%s: left out the head of 1000 classes; that of %d starts at random", source, model.fc.out_features)
        state |= {key: own[key] for key in ("fc.weight", "fc.bias")}
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    state = counters | state  # files older than PyTorch 0.4.1 have none
    problem = _first_mismatch(state, own)
    if problem is not None:
        raise ValueError(f"{source} does not fit this ResNet: {shown(problem)}")
    model.load_state_dict(state)


def _first_mismatch(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Describe the first missing, unexpected or mis-shaped key and its cure; None if all fit."""
    for key, value in own.items():
        if key not in state:
            return f"'{key}' is missing; give the weights of the same depth (resnet18 or resnet34)"
        if state[key].shape != value.shape:
            got, want = tuple(state[key].shape), tuple(value.shape)
            cure = "give the weights of the same network"
            if key.startswith("fc."):
                cure = f"build it with num_classes={got[0]} and exchange model.fc afterwards"
            elif key == "conv1.weight" and len(got) == 4 and got[1] != want[1]:
                cure = f"build it with channels={got[1]}"
            elif key == "conv1.weight" and got[-1] == 3:
                cure = "build it with stem='cifar'"
            return f"'{key}' has shape {got} and not {want}; {cure}"
    extra = next((key for key in state if key not in own), None)
    return (
        None if extra is None else f"'{extra}' is unexpected; give the weights of the same depth (resnet18 or resnet34)"
    )
