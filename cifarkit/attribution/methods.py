"""Which pixels made the model say so? One function for eight methods; Captum computes them all.

Every method takes any number of images, holds at most ``max_batch`` of them in a pass, and leaves the model as it was.
The options of a method are the keyword arguments of its function:

- "saliency": :func:`~cifarkit.attribution.gradients.saliency`
- "input_x_gradient": :func:`~cifarkit.attribution.gradients.input_x_gradient`
- "integrated_gradients": :func:`~cifarkit.attribution.integrated.integrated_gradients`
- "smooth_grad_squared": :func:`~cifarkit.attribution.noisy.smooth_grad_squared`
- "deep_lift": :func:`~cifarkit.attribution.deep_lift.deep_lift`
- "gradient_shap": :func:`~cifarkit.attribution.noisy.gradient_shap`
- "occlusion": :func:`~cifarkit.attribution.occlusion.occlusion`
- "grad_cam": :func:`~cifarkit.attribution.grad_cam.grad_cam`
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.deep_lift import deep_lift
from cifarkit.attribution.grad_cam import grad_cam
from cifarkit.attribution.gradients import input_x_gradient, saliency
from cifarkit.attribution.integrated import integrated_gradients
from cifarkit.attribution.noisy import gradient_shap, smooth_grad_squared
from cifarkit.attribution.occlusion import occlusion
from cifarkit.attribution.question import Question, ask, explain_missing_gradient, has_gradient
from cifarkit.attribution.scoring import check_max_batch
from cifarkit.inference import device_of, evaluation_mode, inference_autocast
from cifarkit.memory import keep_freed_memory

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "saliency": saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smooth_grad_squared": smooth_grad_squared,
    "deep_lift": deep_lift,
    "gradient_shap": gradient_shap,
    "occlusion": occlusion,
    "grad_cam": grad_cam,
}
METHODS = tuple(_FUNCTIONS)
_MANY_PASSES = {"integrated_gradients": 16, "smooth_grad_squared": 200, "gradient_shap": 50}  # an image, at the least
_CAPTUM_NAMES = {
    "n_steps": "steps",
    "n_samples": "samples",
    "nt_samples": "samples",
    "stdevs": "stdev",
    "baseline": "baselines",
    "sliding_window_shapes": "window",
    "strides": "stride",
    "abs": "absolute",
    "relu_attributions": "relu",
    "interpolate_mode": "interpolation",
    "internal_batch_size": "max_batch",
    "nt_samples_batch_size": "max_batch",
    "perturbations_per_eval": "max_batch",
}


def attribute(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    method: str,
    *,
    max_batch: int | None = None,
    precision: str = "fp32",
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Say how much each pixel and channel counts for the logit of a class.

    Args:
        model: images -> logits (B, K); explained in evaluation mode, with a warning if it is in training mode.
        images: (B, C, H, W) float, transformed (normalised) as in training.
        targets: a class for all images, int64 (B,), or None for the predicted classes.
        method: one of METHODS; options are its own, see the functions named at the top of this module.
        max_batch: the most images in one pass, which bounds memory; None is 128. It changes no result beyond rounding,
            except what ``gradient_shap`` draws from several baselines, and noise on a GPU.
        precision: "fp32"; "bf16" is faster where the processor has it; "auto" is bf16 there.
        seed: of the noise; the global random states are left alone.
    Returns:
        (B, C, H, W), on the device of the images, without a gradient.
    Raises:
        TypeError, ValueError: if an argument or option does not fit, or the method cannot explain this model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps images to logits")
    function = _find_method(method)
    _check_options(method, function, options)
    if any(part.training for part in model.modules()):
        message = "the model is in training mode; it is explained in evaluation mode. Call model.eval() before"
        warnings.warn(message, stacklevel=2)
    size, device = check_max_batch(max_batch), device_of(model)
    if device.type == "cpu":
        keep_freed_memory()
    with (
        torch.inference_mode(False),
        evaluation_mode(model),
        torch.autocast(device.type, enabled=False),  # one the caller has open
        inference_autocast(precision, device),
        _without_captum_warnings(),
    ):
        # In fp32 gradients stay those of the model itself, and Captum's to the last digits: with folded BatchNorms a
        # ReLU at the edge may fall to the other side by rounding alone.
        question = ask(model, images, targets, size, seed)
        if method in _MANY_PASSES and precision != "fp32":
            question = question.with_frozen_network(_MANY_PASSES[method] * len(question.images))
        try:
            maps = function(question, **options)
        except RuntimeError as error:
            if method != "occlusion":
                _raise_clearer(question, error)
            raise
        _check_maps(maps, method, question)
    return maps.detach().to(images)


def _raise_clearer(question: Any, error: RuntimeError) -> None:
    """Raise ValueError, caused by the error, if a missing gradient is behind it."""
    try:
        explain_missing_gradient(question)
    except ValueError as clearer:
        raise clearer from error


def _check_maps(maps: Tensor, method: str, question: Question) -> None:
    if not maps.isfinite().all():
        raise ValueError(f"{method} gave NaN or infinite attributions; look for them in the model's weights")
    if not maps.any():
        no = "nothing speaks for the class (see relu=False)" if method == "grad_cam" else "the logit does not change"
        if method not in ("grad_cam", "occlusion") and not has_gradient(question):
            no = "the gradient is 0 everywhere (rounding or thresholds in the model?)"
        warnings.warn(f"{method}: every attribution is 0; on these images {no}", stacklevel=3)


def _find_method(method: Any) -> Callable[..., Tensor]:
    if not isinstance(method, str):
        raise TypeError(f"method={method!r} is a {type(method).__name__}; give one of {', '.join(METHODS)}")
    if method not in _FUNCTIONS:
        near = difflib.get_close_matches(method.lower().replace("-", "_").replace(" ", "_"), METHODS, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"method={method!r} is unknown; {hint}There are {', '.join(METHODS)}")
    return _FUNCTIONS[method]


def _check_options(method: str, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
    valid = list(inspect.signature(function).parameters)[1:]  # the first is the question
    for name in options:
        if name in valid:
            continue
        translated = _CAPTUM_NAMES.get(name)
        if translated in (*valid, "max_batch"):
            near = [translated]
        else:
            near = difflib.get_close_matches(name, [*valid, "max_batch", "precision", "seed"], 1, 0.6)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{method} has no option {name!r}; {hint}It has {', '.join(valid) or 'none'}")


@contextmanager
def _without_captum_warnings() -> Iterator[None]:
    """Silence what Captum warns about hooks and gradients that it sets and takes away again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"captum(\.|$)")
        yield
