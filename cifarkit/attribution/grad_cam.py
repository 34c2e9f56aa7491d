"""Attributions of the places of a feature map."""

from __future__ import annotations

import difflib
from dataclasses import replace
from operator import gt
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.feature_maps import FIRST, UNKNOWN, Outputs, channels_first, find_layouts
from cifarkit.attribution.question import Question, compute_logits
from cifarkit.attribution.wrappers import uncompiled, unwrapped


def grad_cam(
    question: Question, *, layer: str | nn.Module | None = None, relu: bool = True, interpolation: str = "bilinear"
) -> Tensor:
    """Return the feature map of a layer, its channels weighted by their mean gradients, enlarged to the image.

    Every channel of a pixel has the same value. The map is as coarse as the layer: 4 x 4 at the end of a ResNet-18
    on 32 pixels, where layer="layer3" gives 8 x 8.

    Args:
        layer: a module of the model, or its name; None is the last one that puts out a feature map with more than
            one place, (B, D, h, w), or (B, h, w, D) as in Swin.
        relu: keep what speaks for the class only, as published.
        interpolation: "bilinear", "nearest" or "bicubic".
    Raises:
        TypeError: if layer is neither.
        ValueError: if the model has no such layer, it puts out no feature map, or one whose channels may be either
            dimension.
    Source: Selvaraju et al. 2016, arXiv 1610.02391, equations 1 and 2; Captum's LayerGradCam.
    """
    if interpolation not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(f"interpolation={interpolation!r} is unknown; use 'bilinear', 'nearest' or 'bicubic'")
    network = unwrapped(question.model)
    if isinstance(layer, str) and network is not question.model:  # a wrapper has the same modules by longer names
        layer = dict(question.model.named_modules()).get(layer, layer)
    question = replace(question, model=network, network=network)
    with uncompiled(network):
        return _maps(question, layer, bool(relu), interpolation)


def _maps(question: Question, layer: Any, relu: bool, interpolation: str) -> Tensor:
    from captum.attr import LayerAttribution, LayerGradCam

    chosen, layout = _find_layer(question, layer)
    sides, maps = tuple(question.images.shape[2:]), []
    with channels_first(chosen, layout) as features:
        method = LayerGradCam(question.forward, features)
        for images, targets in question.batches(question.max_batch):
            coarse = method.attribute(images, target=targets, relu_attributions=relu).detach()  # (B, 1, h, w)
            fine = LayerAttribution.interpolate(coarse.to(images.dtype), sides, interpolation)
            fine = fine.clamp(min=0) if relu else fine  # bicubic swings below 0
            maps.append(fine.expand_as(images))
    return torch.cat(maps)


def _find_layer(question: Question, layer: Any) -> tuple[nn.Module, str]:
    """Return a layer that puts out a feature map, by name, by itself or the last one, and where its channels are."""
    model = question.model
    if layer is not None and not isinstance(layer, str | nn.Module):
        raise TypeError(f"layer={layer!r} is a {type(layer).__name__}; give the name of a module, or the module")
    names: dict[nn.Module, str] = {part: name for name, part in model.named_modules()}
    outputs, sides = _outputs(question), (question.images.shape[2], question.images.shape[3])
    if layer is None:
        return _last_feature_map(model, outputs, sides)
    every = model.named_modules(remove_duplicate=False)  # a module that is used twice has two names
    chosen: nn.Module | None = next((part for name, part in every if layer is part or (name and name == layer)), None)
    if chosen is None:
        near = difflib.get_close_matches(layer, names.values(), 1) if isinstance(layer, str) else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"layer={layer!r} is no module of the model; {hint}See dict(model.named_modules())")
    layouts = find_layouts(outputs, sides, guess=True)
    found = tuple(outputs[chosen].shape) if isinstance(outputs.get(chosen), Tensor) else "nothing here"
    if chosen not in layouts:
        raise ValueError(
            f"layer={names[chosen]!r} puts out {found}; Grad-CAM needs a feature map (B, D, h, w) of several places"
        )
    if layouts[chosen] == UNKNOWN:
        clear = [name for part, name in names.items() if layouts.get(part) == FIRST]
        advice = f", such as {clear[-1]!r}" if clear else ""
        raise ValueError(
            f"layer={names[chosen]!r} puts out {found}, and its shape does not tell whether channels come first or "
            f"last; give a convolution, norm or pool{advice}"
        )
    return chosen, layouts[chosen]


def _outputs(question: Question) -> Outputs:
    """Return what each part puts out for the first image, in the order in which they finish."""
    outputs: Outputs = {}

    def note(part: nn.Module, _: Any, output: Any) -> None:
        outputs.pop(part, None)  # a part that is used again counts as last
        outputs[part] = output

    handles = [part.register_forward_hook(note) for part in question.model.modules()]
    try:
        with torch.no_grad():
            compute_logits(question.model, question.images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _last_feature_map(model: nn.Module, outputs: Outputs, sides: tuple[int, int]) -> tuple[nn.Module, str]:
    convolutions = [part for part in outputs if isinstance(part, nn.Conv2d)]
    tokens = any(
        isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] > 1 for output in outputs.values()
    )
    layouts = find_layouts(outputs, sides, guess=not tokens)
    found = [(part, layout) for part, layout in layouts.items() if layout != UNKNOWN and part is not model]
    if not found or (tokens and not _see_context(convolutions)):
        raise ValueError(
            "grad_cam finds no feature map (B, D, h, w) behind the first layer of this model; give layer=, or look at "
            "its attention maps (plots.attention_maps, attribution.attention_rollout)"
        )
    return found[-1]


def _see_context(convolutions: list[nn.Conv2d]) -> bool:
    """Tell whether convolutions do more than cut an image into patches."""
    overlapping = [part for part in convolutions if any(map(gt, part.kernel_size, part.stride))]
    return len(convolutions) > 1 and bool(overlapping)
