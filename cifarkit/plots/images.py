"""Grids of images, among them the predictions a model was wrongly sure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarkit.plots.figure import DPI, FilePath, Range, class_indices, finish, new_figure, require_same_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL_PIXELS = 192  # a picture of a grid is 2.4 cm wide on the page
_TEXT_POINTS, _TEXT_CHARACTERS = 7.5, 18  # size of a caption, and how much of it fits over a picture
_LONGEST_TEXT = 24  # longer lines are cut; up to here the text is made smaller


def image_grid(
    images: Tensor,
    labels: Sequence[int] | Sequence[str] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    columns: int = 8,
    path: FilePath = None,
    *,
    value_range: Range = None,
    title: str = "",
) -> Figure:
    """Lay images out in rows, each pixel a crisp square, with a caption over each.

    Args:
        images: (B, C, H, W), one or three channels, uint8 or float.
        labels: B class indices, or B captions of one or two lines; None writes no caption.
        classes: K names that turn indices into captions; None shows the index.
        columns: images in a row.
        value_range: the float values shown black and white, beyond which they are clipped, such as (-1, 1) for a
            generator; None means [0, 1] and refuses other values. uint8 images ignore it.
        title: a line over the grid.
    Raises:
        TypeError: if images is not a uint8 or float tensor.
        ValueError: if a shape, a length, a label or a value does not fit.
    """
    pixels = to_pixels(images, value_range)
    if columns < 1:
        raise ValueError(f"columns={columns} is no row; give at least 1")
    captions = [] if labels is None else _captions(labels, classes)
    if labels is not None:
        require_same_length(labels=captions, images=pixels)
    return finish(_draw_grid(pixels, captions, columns if title else min(columns, len(pixels)), title), path)


def confident_mistakes(
    images: Tensor,
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    count: int = 16,
    path: FilePath = None,
    *,
    value_range: Range = None,
) -> Figure:
    """Show the wrong predictions the model was surest of, captioned "cat 97 % (dog)": predicted, (true).

    Args:
        images: (N, C, H, W); with value_range, as in :func:`image_grid`.
        logits: (N, K) float.
        labels: (N,) true class indices.
        classes: K names.
        count: the most pictures to show; without a mistake the figure says so in words.
    Raises:
        ValueError: if lengths, shapes or the number of classes do not fit together.
    """
    worst = most_confident_mistakes(logits, labels, count)
    require_same_length(images=images, logits=logits)
    if len(classes) != logits.shape[1]:
        raise ValueError(
            f"classes has {len(classes)} names but logits has {logits.shape[1]} columns; give one for each"
        )
    if len(worst) == 0:
        figure = new_figure(4, 1)
        figure.text(0.5, 0.5, f"No mistake among {len(labels)} images", fontsize=10, ha="center", va="center")
        return finish(figure, path)
    confidence, predicted = logits.detach().cpu()[worst].double().softmax(1).max(1)
    triples = zip(predicted.tolist(), confidence.tolist(), labels.cpu()[worst].tolist(), strict=True)
    captions = [f"{classes[guess][:18]} {100 * sure:.0f} %\n({classes[true][:22]})" for guess, sure, true in triples]
    columns, title = min(8, max(4, math.isqrt(len(worst)))), "Most confident mistakes: predicted (true)"
    return image_grid(images.cpu()[worst], captions, None, columns, path, value_range=value_range, title=title)


def most_confident_mistakes(logits: Tensor, labels: Tensor, count: int = 16) -> Tensor:
    """Return the indices (M,) of the wrong predictions with the highest softmax probability, the surest first.

    Args:
        logits: (N, K) float.
        labels: (N,) true class indices.
        count: the highest M.
    Raises:
        ValueError: if logits is not (N, K) and finite, labels is not (N,) within 0 to K - 1, or count is below 1.
    """
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it must be (N, K), one finite row for each image")
    if count < 1:
        raise ValueError(f"count={count} asks for nothing; give at least 1")
    true = torch.from_numpy(class_indices(labels, "labels", logits.shape[1]))
    require_same_length(labels=true, logits=logits)
    confidence, predicted = logits.detach().cpu().double().softmax(1).max(1)
    wrong = (predicted != true).nonzero()[:, 0]  # (N,) -> (M,)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:count]]


def to_pixels(images: Tensor, value_range: Range = None) -> NDArray[np.uint8]:
    """Turn a batch (B, C, H, W) into uint8 (B, H, W, 3); arguments and errors are those of :func:`image_grid`."""
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(
            f"images must be a uint8 or float tensor, got {getattr(images, 'dtype', type(images).__name__)}"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; it must be (B, 1 or 3, H, W) with at least one image"
        )
    images = images.detach().cpu()
    if images.is_floating_point():
        (lowest, highest), (low, high) = (x.item() for x in images.double().aminmax()), value_range or (0.0, 1.0)
        seen = f"images hold values from {lowest:.3g} to {highest:.3g}"
        if not (low < high and math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(f"{seen}, value_range={value_range}: values must be finite, the range (low, high)")
        if value_range is None and (lowest < -0.01 or highest > 1.01):  # 1 %: resampling may overshoot
            raise ValueError(f"{seen}, outside [0, 1]; pass value_range=(low, high)")
        images = ((images.double() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()  # (B, C, H, W) -> (B, H, W, 3)


def _captions(labels: Sequence[int] | Sequence[str] | Tensor, classes: Sequence[str] | None) -> list[str]:
    """Turn labels into the text over each picture, every line cut to the width of a picture."""
    texts = []
    for label in labels.tolist() if isinstance(labels, Tensor) else labels:
        if classes is not None and not isinstance(label, str):
            if not 0 <= label < len(classes):
                raise ValueError(f"labels holds {label} but classes has {len(classes)} names, 0 to {len(classes) - 1}")
            label = classes[label]
        texts.append("\n".join(line[:_LONGEST_TEXT] for line in str(label).split("\n")))
    return texts


def _draw_grid(pixels: NDArray[np.uint8], captions: list[str], columns: int, title: str) -> Figure:
    """Compose one big image, so that 500 pictures are as quick as 5, and write the text over it."""
    count, height, width, _ = pixels.shape
    zoom = max(1, round(_CELL_PIXELS / width))  # a whole number keeps the squares equal
    longest = max((len(part) for text in captions for part in text.split("\n")), default=0)
    points = _TEXT_POINTS * min(1, _TEXT_CHARACTERS / max(longest, 1))
    line = 1.3 * _TEXT_POINTS / 72 * DPI / zoom  # height of a line of text, in image pixels
    strip = math.ceil(line * max((text.count("\n") + 1 for text in captions), default=0) + 4 / zoom)
    gap, head, rows = math.ceil(10 / zoom), math.ceil(1.4 * line) if title else 0, math.ceil(count / columns)
    canvas = np.full((head + rows * (strip + height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    figure = new_figure(canvas.shape[1] * zoom / DPI, canvas.shape[0] * zoom / DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    for index, picture in enumerate(pixels):
        top = head + gap + index // columns * (strip + height + gap) + strip
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
        if captions:
            axes.text(
                left - 0.5, top - 0.5 - 6 / zoom, captions[index], fontsize=points, linespacing=1.15, parse_math=False
            )
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.text(gap - 0.5, gap - 0.5, title, fontsize=_TEXT_POINTS + 1.5, weight="bold", va="top", parse_math=False)
    axes.set_axis_off()
    return figure
