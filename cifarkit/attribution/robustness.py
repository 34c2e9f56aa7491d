"""Infidelity and sensitivity of explanations: Captum's figures, with noise that depends on the seed alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.explaining import Explain, explainer, undisturbed
from cifarkit.attribution.question import compute_logits
from cifarkit.attribution.scoring import (
    baseline_images,
    bring_to,
    check_attributions,
    check_images,
    check_max_batch,
    check_targets,
)
from cifarkit.checks import check_integer, check_number
from cifarkit.inference import device_of
from cifarkit.seeding import Draws

_STREAM = 2**42  # an epoch no training reaches, so that disturbances share no numbers with augmentation


def infidelity(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    attributions: Tensor,
    baselines: float | str | Tensor | None = None,
    *,
    noise: float | None = None,
    samples: int = 32,
    normalize: bool = False,
    max_batch: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the mean squared error of the attributions in foretelling how the logit changes, float32 (B,).

    Every image meets the same disturbances, whatever the batch. The global random state is not touched.

    Args:
        model, images, targets, attributions, baselines: as for :func:`completeness_error`.
        noise: None removes random squares, for maps that add up to the logit; or the standard deviation of
            Gaussian noise, for gradients.
        samples: disturbances of each image.
        normalize: scale the map of each image to fit best, to compare methods of different scale.
        max_batch, seed: images at a time; of the disturbances.
    Raises:
        TypeError, ValueError: if an argument is of a wrong kind, shape or value.
    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 2.1; run by Captum.
    """
    from captum.metrics import infidelity as captum_infidelity

    images, size, samples = check_images(images), check_max_batch(max_batch), check_integer("samples", samples, 1)
    noise = None if noise is None else check_number("noise", noise, 0, above=True)
    maps = check_attributions(attributions, images, per_channel=True)
    start = baseline_images(0.0 if baselines is None else baselines, images, "baselines")
    classes, device, found = check_targets(model, images, targets, size), device_of(model), []
    tensors = (images, maps.to(images), start, classes)

    def logits_of(shown: Tensor) -> Tensor:
        return compute_logits(model, bring_to(model, shown))

    with undisturbed(model), torch.no_grad():
        for parts in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
            part, own, empty, asked = (tensor.to(device).contiguous() for tensor in parts)
            value = captum_infidelity(
                logits_of,
                _Disturbance(len(part), seed, noise).removed,
                part,
                own,
                baselines=empty,
                target=asked,
                n_perturb_samples=samples,
                max_examples_per_batch=_batch_for_captum(size, len(part), samples),
                normalize=normalize,
            )
            found.append(value.float().cpu())
    return torch.cat(found)


def sensitivity(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    method: str | Explain,
    *,
    radius: float = 0.02,
    disturbed: int = 10,
    max_batch: int | None = None,
    seed: int = 0,
    **options: object,
) -> Tensor:
    """Return the largest relative change of the map when the image changes a little, float32 (B,).

    Args:
        model, images, targets: as for ``attribute``; None asks about the class predicted for the undisturbed image.
        method: a name of METHODS, with its options, or a function (model, images, targets) -> maps. Disturbed copies
            of an image keep the baseline it has in a tensor (B, C, H, W).
        radius: each value is changed by at most this, in the units of the model's input.
        disturbed: copies of each image with other disturbances, of which the worst counts.
        max_batch, seed: images at a time; of the disturbances, and of the method.
    Raises:
        TypeError, ValueError: if an argument is of a wrong kind, shape or value.
    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 3.1; run by Captum.
    """
    from captum.metrics import sensitivity_max

    images, size, disturbed = check_images(images), check_max_batch(max_batch), check_integer("disturbed", disturbed, 1)
    radius = check_number("radius", radius, 0, above=True)
    explain = explainer(method, max_batch, seed, dict(options))
    classes, device, found = check_targets(model, images, targets, size), device_of(model), []
    tensors = (images, classes, *_own_baselines(method, images, options))

    def maps_of(given: Any, target: Tensor, **own: Any) -> Tensor | tuple[Tensor]:
        shown = given[0] if isinstance(given, tuple) else given
        own = {name: value[0] if isinstance(value, tuple) else value for name, value in own.items()}
        every = target.expand(len(shown)) if len(target) == 1 else target  # Captum repeats a single one for nobody
        maps = check_attributions(explain(model, shown, every, **own), shown).to(shown).contiguous()
        return (maps,) if isinstance(given, tuple) else maps  # Captum expects back what it gives

    with undisturbed(model):
        for part, asked, *own in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
            value = sensitivity_max(
                maps_of,
                part.to(device),
                perturb_func=_Disturbance(len(part), seed, radius).shaken,
                perturb_radius=radius,
                n_perturb_samples=disturbed,
                max_examples_per_batch=_batch_for_captum(size, len(part), disturbed),
                target=asked.to(device),
                **({"baselines": own[0].to(device)} if own else {}),  # which Captum repeats with the images
            )
            found.append(value.float().cpu())
    return torch.cat(found)


def _own_baselines(method: str | Explain, images: Tensor, options: dict[str, object]) -> list[Tensor]:
    """Return baselines (B, C, H, W) alone if each image has one of its own, or else nothing."""
    baselines = options.get("baselines")
    if method == "gradient_shap" or not isinstance(baselines, Tensor) or baselines.dim() != 4:
        return []  # a 4D tensor for gradient_shap is a pool, for all images
    return [baseline_images(baselines, images, "baselines")]


def _batch_for_captum(size: int, images: int, samples: int) -> int:
    return max(images, min(size, images * samples))  # outside these bounds Captum warns


class _Disturbance:
    """The disturbances of a batch, in the pieces in which Captum asks for them.

    Sample k of every image draws from stream k, so that neither the batch nor the size of the pieces matters.
    """

    def __init__(self, images: int, seed: int, scale: float | None) -> None:
        self.images, self.seed, self.scale, self.done = images, seed, scale, 0

    def removed(self, images: Tensor, baselines: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the attributions are multiplied by, and the disturbed images: (B * n, C, H, W) each."""
        draws = self._draws(images)
        if self.scale is not None:
            noise = self._for_all(self.scale * draws.normal(*images.shape[1:]), images)
            return noise, images - noise
        square = self._for_all(_random_squares(draws, *images.shape[2:]), images).expand_as(images)
        return square, torch.where(square > 0, baselines, images)

    def shaken(self, images: Tensor) -> Tensor:
        """Return images (B * n, C, H, W) with every value changed by at most the scale."""
        change = self._draws(images).uniform(*images.shape[1:], low=-1.0, high=1.0)
        return images + self._for_all((self.scale or 0) * change, images)

    def _draws(self, images: Tensor) -> Draws:
        count = len(images) // self.images
        self.done += count
        return Draws(self.seed, _STREAM, torch.arange(self.done - count, self.done))

    def _for_all(self, values: Tensor, images: Tensor) -> Tensor:
        """(n, ...) -> (B * n, ...), the rows of an image together, as Captum repeats them."""
        return values.to(images).repeat(self.images, 1, 1, 1)


def _random_squares(draws: Draws, height: int, width: int) -> Tensor:
    """Ones in a square at a random place, its side from 1 to half of the image's: (n, 1, H, W)."""
    side = draws.integers(1, max(min(height, width) // 2, 1) + 1, 1, 1)  # (n, 1, 1)
    top = (draws.uniform(1, 1) * (height - side + 1)).floor()
    left = (draws.uniform(1, 1) * (width - side + 1)).floor()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)  # (n, H, W)
    return inside[:, None].float()
