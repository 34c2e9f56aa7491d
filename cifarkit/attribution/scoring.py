"""What the figures of trust share: arguments checked once, and class scores in batches without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer, check_number
from cifarkit.inference import device_of, dtype_of, evaluation_mode, frozen_copy, inference_autocast, predict
from cifarkit.layout import EitherLayout

MAX_BATCH = 128  # images at a time if the caller does not say


def check_max_batch(max_batch: int | None) -> int:
    """Return the number of images at a time."""
    return MAX_BATCH if max_batch is None else check_integer("max_batch", max_batch, 1)


def check_images(images: Any) -> Tensor:
    """Return images if they are a finite float tensor (B, C, H, W) with something in it.

    Raises:
        TypeError: if they are no float tensor.
        ValueError: if the shape is wrong or a value is not finite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor, transformed as in training; got {got}")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"images must be (B, C, H, W), at least one; got shape {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values; look at the data and transforms")
    return images.detach()


def check_targets(model: nn.Module, images: Tensor, targets: Any, max_batch: int) -> Tensor:
    """Return the class asked about for each image, int64 (B,) on the CPU: targets, or the predicted class for None.

    Raises:
        TypeError: if targets are no integers, or the model is no module.
        ValueError: if their number is wrong, the model has no such class, or it gives no logits.
    """
    check_model(model)
    with evaluation_mode(model), torch.no_grad():  # not by predict, which takes for granted what is checked here
        count = first_logits(model, bring_to(model, images[:1])).shape[1]
    if targets is not None:
        return check_class_numbers(targets, len(images), count)
    return predict(model, images, batch_size=max_batch, precision="fp32").argmax(1)


def bring_to(model: nn.Module, images: Tensor) -> Tensor:
    """Bring images to the device of a model, and to the dtype of its first weight of floating point."""
    dtype = dtype_of(model, images.dtype)
    return images.to(device_of(model), dtype)


def check_model(model: Any) -> None:
    """Refuse with a TypeError what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps images to logits")


def first_logits(model: nn.Module, image: Tensor) -> Tensor:
    """Return logits (1, K) of one image (1, C, H, W), which stays as it is, or say what does not fit.

    Raises:
        ValueError: if the model fails, returns anything else, or changes its images.
    """
    given = image.clone()
    try:
        logits = model(given)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        wanted = f"the model fails on images of shape (C, H, W) = {tuple(image.shape[1:])}; give them as in training"
        wrapped = ", and wrap a model that takes more than images in a module that takes them alone"
        message = f"{wanted}{wrapped if isinstance(error, TypeError) else ''}. It says: {error}"
        raise ValueError(message) from error
    if not torch.equal(given, image):
        raise ValueError(
            "the model changes its images in place, so every pass would see others; let its forward pass make new "
            "ones, as in images = images - mean instead of images.sub_(mean)"
        )
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 1:
        return logits
    if isinstance(logits, Tensor):
        got = str(tuple(logits.shape))
    else:
        first = f"[{next(iter(logits), '')!r}]" if isinstance(logits, Mapping) else "[0]"
        got = (
            f"a {type(logits).__name__}; wrap it in a module whose forward returns the logits alone, as outputs{first}"
        )
    raise ValueError(f"the model must map images (B, C, H, W) to logits (B, K); for one image it returned {got}")


def check_class_numbers(targets: Any, count: int, num_classes: int) -> Tensor:
    """Return int64 (B,) on the CPU from one class for all images, or from one for each.

    Raises:
        TypeError: if targets are no integers.
        ValueError: if their number is wrong, or there is no such class.
    """
    if isinstance(targets, Tensor | np.ndarray) and targets.ndim:
        values = torch.as_tensor(targets).detach().cpu()
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"targets must be class numbers, int64 (B,); got {values.dtype}")
        if tuple(values.shape) != (count,):
            raise ValueError(f"targets must be one class for each of {count} images; got shape {tuple(values.shape)}")
    elif isinstance(targets, list | tuple):
        kind = type(targets).__name__
        raise TypeError(f"targets is a {kind}; give an integer, a tensor (B,), or None for the predicted class")
    else:
        values = torch.full((count,), check_integer("targets", targets))
    wrong = values[(values < 0) | (values >= num_classes)]
    if len(wrong):
        raise ValueError(f"targets hold class {int(wrong[0])}; the model has classes 0 to {num_classes - 1}")
    return values.long()


def check_attributions(attributions: Any, images: Tensor, *, per_channel: bool = False) -> Tensor:
    """Return maps (B, C, H, W) on the CPU, where C may be 1 unless per_channel; (B, H, W) gains a channel.

    Raises:
        TypeError: if they are no float tensor.
        ValueError: if they do not fit the images, or a value is not finite.
    """
    if not isinstance(attributions, Tensor) or not attributions.is_floating_point():
        got = attributions.dtype if isinstance(attributions, Tensor) else type(attributions).__name__
        raise TypeError(f"attributions must be a float tensor, as attribute(...) returns it; got {got}")
    maps = attributions.detach().cpu()
    if maps.dim() == 3 and not per_channel:
        maps = maps[:, None]  # (B, H, W) -> (B, 1, H, W)
    single = (len(images), 1, *images.shape[2:])
    if maps.shape != images.shape and (per_channel or tuple(maps.shape) != single):
        wanted = "of the same shape" if per_channel else "of the same shape, or one map (B, H, W) for all channels"
        raise ValueError(f"attributions are {tuple(maps.shape)} for images {tuple(images.shape)}; give them {wanted}")
    if not maps.isfinite().all():
        raise ValueError("attributions hold NaN or infinite values; no figure can be made of them")
    return maps


def baseline_images(baseline: Any, images: Tensor, name: str = "baseline") -> Tensor:
    """Return what stands for "nothing to see" (B, C, H, W), on the device of the images.

    Args:
        baseline: "mean" (the mean colour of each image), "blur" (Gaussian, an eighth of a side wide), a number, or
            a tensor: (C,) or anything that expands to the images.
    Raises:
        TypeError: if it is none of these.
        ValueError: if the word is unknown or the tensor does not fit.
    """
    if isinstance(baseline, str):
        if baseline not in ("mean", "blur"):
            raise ValueError(f"{name}={baseline!r} is unknown; use 'mean', 'blur', a number or a tensor")
        return images.mean((2, 3), keepdim=True).expand_as(images) if baseline == "mean" else _blur(images)
    if not isinstance(baseline, Tensor):
        return torch.full_like(images, check_number(name, baseline))
    values = baseline.detach().to(images)
    if values.dim() == 1:
        values = values[:, None, None]  # (C,) -> (C, 1, 1)
    try:
        return values.expand_as(images)
    except RuntimeError:
        shapes = f"{tuple(baseline.shape)} for images {tuple(images.shape)}"
        raise ValueError(f"{name} has shape {shapes}; give (C,), one image, or one for each image") from None


def _blur(images: Tensor) -> Tensor:
    """Blur with a Gaussian as two matrix products; beyond the edge there is nothing, and the weights still add to 1."""

    def weights(side: int) -> Tensor:
        """Return what each of the pixels of a row gets from the others (side, side)."""
        place = torch.arange(side, device=images.device, dtype=images.dtype)
        gauss = (-0.5 * ((place[:, None] - place) / (side / 8)).square()).exp()
        return gauss / gauss.sum(1, keepdim=True)

    return weights(images.shape[2]) @ images @ weights(images.shape[3]).T


@torch.no_grad()
def class_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    images: Tensor,
    *,
    count: int,
    probability: bool,
    precision: str = "fp32",
) -> Tensor:
    """Return the score of one class for each image of batches, float32 (count,), in evaluation mode.

    Args:
        model: images -> logits (B, K).
        batches: (images, targets (B,)), made as they are needed.
        images: some of those it will see, for the check of the frozen copy that long work uses.
        count: images in all batches.
        probability: softmax of the logits instead of the logit; the sigmoid if there is but one.
        precision: "auto", "fp32" or "bf16", as for :func:`~cifarkit.predict`.
    """
    device, found = device_of(model), []
    with evaluation_mode(model), inference_autocast(precision, device):
        network = EitherLayout(frozen_copy(model, images, count))
        for batch, targets in batches:
            logits = network(bring_to(model, batch)).float()
            chances = logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()  # one logit says yes or no
            scores = chances if probability else logits
            found.append(scores.gather(1, targets.to(device)[:, None])[:, 0].cpu())
    return torch.cat(found)
