"""Features of images: what a classifier's last layer reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from cifarkit.checks import check_callable, check_integer
from cifarkit.files import read_file, require_plain_zip, shown, why_unreadable
from cifarkit.inference import device_of, dtype_of, evaluation_mode, inference_autocast
from cifarkit.layout import EitherLayout

INCEPTION_FILE = "inception_v3_google-0cc3c7bd.pth"
_INCEPTION_SIDE = 299
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of each channel


@torch.no_grad()
def features(
    model: nn.Module,
    images: Tensor,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 500,
    precision: str = "fp32",
) -> Tensor:
    """Return the features (N, D) that the last linear layer of a classifier reads; the model is left as it was.

    They are judged by figures such as :func:`frechet_distance`. A classifier knows the images it was trained on, so
    their features differ a little from those of other real images: compare with the floor.

    Args:
        model: images (B, C, H, W) -> logits, such as cifarkit's or that of :func:`inception`.
        images: (N, C, H, W), uint8, or float in [0, 1] with a transform, transformed as in training without one.
        transform: float images in [0, 1] -> what the model takes, such as ``Normalize(*train_set.mean_std())``.
        batch_size: images at a time.
        precision: "fp32", "bf16", or "auto" as in ``predict``.
    Raises:
        TypeError: if model is no module, or images are no such tensor.
        ValueError: if a shape or an argument is wrong, or the model has no linear layer that reads (B, D).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps images to logits")
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(
            f"images must be a uint8 or float tensor, got {getattr(images, 'dtype', type(images).__name__)}"
        )
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (N, C, H, W), N at least 1")
    if transform is not None:
        check_callable("transform", transform, "give a callable of images, such as Normalize(*train_set.mean_std())")
    device, found = device_of(model), []
    chunks = torch.split(images, check_integer("batch_size", batch_size, 1))
    with evaluation_mode(model), inference_autocast(precision, device), _last_linear_input(model) as seen:
        network = EitherLayout(model)
        for chunk in tqdm(chunks, desc="features", unit="batch", leave=False, disable=None):
            batch = chunk.float() / 255 if chunk.dtype == torch.uint8 else chunk
            batch = batch if transform is None else transform(batch)
            seen.clear()
            network(batch.to(device, dtype_of(model, batch.dtype)))
            if not seen or seen[0].shape[0] != len(chunk) or seen[0].dim() != 2:
                got = f"reads {tuple(seen[0].shape)}" if seen else "never runs"
                name = type(model).__name__
                raise ValueError(f"model={name}: its last linear layer {got}; it must read (B, D), one row an image")
            found.append(seen[0].float().cpu())
    return torch.cat(found)


def inception(weights: str | Path | None = None) -> nn.Module:
    """Make torchvision's Inception v3 for :func:`features`: float images in [0, 1], of any size, or uint8.

    Its weights are not those of the network that published Fréchet distances come from, and images are enlarged by
    PyTorch: values are near those, and not to be compared with them. Nothing is downloaded.

    Args:
        weights: torchvision's file of weights; None looks where ``torch.hub`` keeps files. An image needs some 15 MB
            on its way, so give ``features`` a batch_size of 50.
    Raises:
        FileNotFoundError: if it is not there; the message tells where to get it.
        ValueError: if it is damaged or of another network.
    """
    from torchvision.models import Inception_V3_Weights, inception_v3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if weights is None else Path(weights)
    if not path.is_file():
        url = Inception_V3_Weights.IMAGENET1K_V1.url
        raise FileNotFoundError(f"weights='{shown(path)}' is no file; fetch {url} and put it there, or give its path")
    try:
        content = read_file(path)
        if content.startswith(b"PK\x03\x04"):  # weights older than PyTorch 1.6, as torchvision's own, are no zip files
            require_plain_zip(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        with torch.device("meta"):  # no numbers are drawn for weights that are replaced at once
            model = inception_v3(weights=None, init_weights=False, transform_input=True)
        model.load_state_dict(state, assign=True)
    except Exception as error:  # a damaged or foreign file makes PyTorch raise nearly anything
        reason = why_unreadable(error)
        raise ValueError(f"weights='{shown(path)}' are not those of torchvision's Inception v3 ({reason})") from error
    return nn.Sequential(_Enlarge(), model).eval()


class _Enlarge(nn.Module):
    """Bring images in [0, 1] to the size and the scale that torchvision's ImageNet networks take."""

    def forward(self, images: Tensor) -> Tensor:
        size = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        large = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in _IMAGENET)
        return (large - mean) / std


@contextmanager
def _last_linear_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what the linear layer that ran last was given; the hooks go when the block ends, however it ends."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [inputs[0]]

    hooks = [layer.register_forward_pre_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
