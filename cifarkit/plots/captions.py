"""What stands over explained images: what the network made of each, and what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cifarkit.plots.figure import class_indices

_SHORT = 9  # letters of a name that leave room for its probability beside it


def captions_of(
    count: int, classes: Sequence[str] | None, logits: Tensor | None, labels: Any, targets: Any
) -> list[list[str]]:
    """Return the lines over each image: the predicted class and its probability, another one asked about, the true one.

    Raises:
        TypeError, ValueError: if an argument does not fit.
    """
    if logits is not None and not isinstance(logits, Tensor):
        raise TypeError(f"logits is a {type(logits).__name__}; give a tensor (B, K), as predict(model, images) returns")
    if logits is not None and (logits.dim() != 2 or len(logits) != count or not logits.isfinite().all()):
        raise ValueError(f"logits has shape {tuple(logits.shape)}; give ({count}, K), one finite row for each image")
    most = len(classes) if classes is not None else (logits.shape[1] if logits is not None else 2**31)
    if logits is not None and logits.shape[1] != most:
        raise ValueError(f"classes has {most} names but logits has {logits.shape[1]} columns; give one for each")
    chosen = {}
    for name, values in (("labels", labels), ("targets", targets)):
        if values is not None:
            chosen[name] = class_indices(values, name, most).tolist()
            if len(chosen[name]) != count:
                raise ValueError(f"{name} has {len(chosen[name])} entries; give one for each of {count} images")

    def called(index: int) -> str:
        return str(classes[index]) if classes is not None else f"class {index}"

    captions: list[list[str]] = [[] for _ in range(count)]
    best = None if logits is None else logits.detach().cpu().double().softmax(1).max(1)
    for index, lines in enumerate(captions):
        guess = None if best is None else int(best.indices[index])
        if best is not None and guess is not None:
            share = f"{100 * float(best.values[index]):.0f} %"
            lines += [f"{called(guess)} {share}"] if len(called(guess)) <= _SHORT else [called(guess), share]
        if "targets" in chosen and chosen["targets"][index] != guess:
            lines.append(f"why {called(chosen['targets'][index])}?")
        if "labels" in chosen:
            lines.append(f"({called(chosen['labels'][index])})")
    return captions
