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
from cifarkit.attribution.question import Question, ask, explain_missing_gradient, has_gradient, random_states_kept
from cifarkit.attribution.scoring import check_max_batch, check_model
from cifarkit.checks import check_integer
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
_OTHER_NAMES = {  # of methods, as Captum, papers and habit have them
    "ig": "integrated_gradients",
    "intgrad": "integrated_gradients",
    "gradient": "saliency",
    "vanilla_gradient": "saliency",
    "noise_tunnel": "smooth_grad_squared",
    "noisetunnel": "smooth_grad_squared",
    "smoothgrad_sq": "smooth_grad_squared",
    "shap": "gradient_shap",
    "expected_gradients": "gradient_shap",
    "sliding_window": "occlusion",
    "cam": "grad_cam",
}
_OTHER_OPTIONS = {  # by their names in Captum and elsewhere: what may be meant, the first that the method has
    "n_steps": ("steps", "samples"),
    "steps": ("samples",),
    "n_samples": ("samples", "steps"),
    "nt_samples": ("samples", "steps"),
    "samples": ("steps",),
    "stdevs": ("stdev",),
    "baseline": ("baselines",),
    "sliding_window_shapes": ("window",),
    "strides": ("stride",),
    "abs": ("absolute",),
    "relu_attributions": ("relu",),
    "interpolate_mode": ("interpolation",),
    "batch_size": ("max_batch",),
    "internal_batch_size": ("max_batch",),
    "nt_samples_batch_size": ("max_batch",),
    "perturbations_per_eval": ("max_batch",),
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
        max_batch: the most images in one pass, which bounds memory; None is 128. It changes no result beyond rounding.
        precision: "fp32"; "bf16" is faster where the processor has it; "auto" is bf16 there.
        seed: of the noise, and of what a model draws that is random in evaluation mode, which is warned about; the
            global random states are left alone.
    Returns:
        (B, C, H, W), on the device of the images, without a gradient.
    Raises:
        TypeError, ValueError: if an argument or option does not fit, or the method cannot explain this model.
    """
    check_model(model)
    function = _find_method(method)
    _check_options(method, function, options)
    if any(part.training for part in model.modules()):
        message = "the model is in training mode; it is explained in evaluation mode. Call model.eval() before"
        warnings.warn(message, stacklevel=2)
    size, seed, device = check_max_batch(max_batch), check_integer("seed", seed), device_of(model)
    if device.type == "cpu":
        keep_freed_memory()
    with (
        torch.inference_mode(False),
        evaluation_mode(model),
        random_states_kept(),
        inference_autocast(precision, device),
        _without_captum_warnings(),
    ):
        # In fp32 gradients stay those of the model itself, and Captum's to the last digits: with folded BatchNorms a
        # ReLU at the edge may fall to the other side by rounding alone.
        question = ask(model, images, targets, size, seed)
        if method in _MANY_PASSES and torch.is_autocast_enabled(device.type):
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
        plain = method.lower().replace("-", "_").replace(" ", "_")
        near = [_OTHER_NAMES[plain]] if plain in _OTHER_NAMES else difflib.get_close_matches(plain, METHODS, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"method={method!r} is unknown; {hint}There are {', '.join(METHODS)}")
    return _FUNCTIONS[method]


def _check_options(method: str, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
    own = list(inspect.signature(function).parameters)[1:]  # the first is the question
    every = [*own, "max_batch", "precision", "seed"]
    for name in options:
        if name in own:
            continue
        near = [meant for meant in _OTHER_OPTIONS.get(name, ()) if meant in every]
        near = near or difflib.get_close_matches(name, every, 1, 0.6)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{method} has no option {name!r}; {hint}It has {', '.join(own) or 'none'}")


@contextmanager
def _without_captum_warnings() -> Iterator[None]:
    """Silence what Captum warns about hooks and gradients that it sets and takes away again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"captum(\.|$)")
        yield
