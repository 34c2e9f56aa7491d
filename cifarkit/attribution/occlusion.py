"""Attributions from covering one window of the image after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cifarkit.attribution.question import Question
from cifarkit.attribution.recomputing import recomputing
from cifarkit.checks import check_size

_WORTH_TRACING = 100  # evaluations; with fewer, to make a network ready takes longer than it saves
_FEW = 128  # images of a pass that is large enough to keep a processor busy


def occlusion(question: Question, *, window: Any = 4, stride: Any = None, baselines: Any = None) -> Tensor:
    """Return how much the logit falls when a window over a pixel is covered, the mean of all windows that cover it.

    All channels are covered together, so every channel of a pixel has the same value. The model is only evaluated,
    many windows at a time, and needs no gradient; early layers compute only what a window can have changed.

    Args:
        window: pixels, one side or (height, width).
        stride: pixels from one window to the next, at most the window; None is half of it.
        baselines: what covers it: None for zero, the mean colour of images normalised by it; "mean" (of the image),
            "blur", a number, or a tensor.
    Raises:
        ValueError: if the window is larger than the image, or the stride larger than the window.
    Source: Zeiler and Fergus 2013, arXiv 1311.2901, section 4.2; Captum's Occlusion.
    """
    from captum.attr import Occlusion

    sides = question.images.shape[2:]
    windows = check_size("window", window)
    strides = tuple(max(1, side // 2) for side in windows) if stride is None else check_size("stride", stride)
    if windows[0] > sides[0] or windows[1] > sides[1]:
        raise ValueError(f"window={window!r} is larger than the images of {sides[0]}x{sides[1]} pixels")
    if strides[0] > windows[0] or strides[1] > windows[1]:
        raise ValueError(f"stride={stride!r} is larger than window={window!r}, which leaves pixels that nothing covers")
    counts = [-(-(side - own) // step) + 1 for side, own, step in zip(sides, windows, strides, strict=True)]
    channels, evaluations = question.images.shape[1], len(question.images) * counts[0] * counts[1]
    ready = recomputing(question) if evaluations >= _WORTH_TRACING else None
    question, maps = (question.with_frozen_network(evaluations) if ready is None else question), []
    together, covered = _share_out(question, counts, ready is not None)
    for images, targets, starts in question.batches(together, question.baselines(baselines).contiguous()):
        forward = question.forward if ready is None else ready.around(images)
        found = Occlusion(forward).attribute(
            images,
            sliding_window_shapes=(channels, *windows),
            strides=(channels, *strides),
            baselines=starts,
            target=targets,
            perturbations_per_eval=covered,
        )
        maps.append(found)
    return torch.cat(maps)


def _share_out(question: Question, counts: list[int], by_rows: bool) -> tuple[int, int]:
    """Return how many images, and how many windows of each, go into a pass: max_batch in all at the most.

    Where rectangles are computed, few rows of windows make a pass, as those at an edge of the image change less.
    """
    most, positions, row = question.max_batch, counts[0] * counts[1], counts[1]
    few = min(most, _FEW)
    if by_rows and row <= few:
        together = min(len(question.images), few // row)
        return together, few // (together * row) * row
    together = max(1, most // positions)
    passes = -(-positions // most)
    return together, -(-positions // passes)  # all passes alike: a small last one would be slow
