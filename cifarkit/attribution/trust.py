"""All figures of trust of one method at once, as they are printed beside its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.attribution.faithfulness import (
    completeness_error,
    deletion_curve,
    insertion_curve,
    pool_completeness_error,
)
from cifarkit.attribution.randomization import randomization_check
from cifarkit.attribution.robustness import infidelity, sensitivity
from cifarkit.checks import check_integer

ADD_UP = ("input_x_gradient", "integrated_gradients", "deep_lift", "gradient_shap")  # to the logit, at least nearly


@dataclass(frozen=True)
class Trust:
    """How far the maps of one method can be trusted, means over the images; None for what was not asked for.

    Attributes:
        method: that made the maps.
        completeness: share by which their sums miss the change of the logit; only for maps that are meant to add up.
            Infinite where the logit does not change. The logits of a pool of baselines count with their mean.
        deletion, insertion: areas under the curves, the first best small, the second large.
        infidelity: of the best scaled map, as a share of that of a map that foretells nothing. The mean image stands
            for a pool of baselines, out of which gradient_shap draws.
        sensitivity: largest relative change of a map when the image changes a little.
        kept, kept_absolute: rank correlation of maps with those of random weights, with sign and without; NaN if no map
            could be compared.
        verdict: what the randomisation check says of that, in words.
    """

    method: str
    completeness: float | None
    deletion: float
    insertion: float
    infidelity: float | None = None
    sensitivity: float | None = None
    kept: float | None = None
    kept_absolute: float | None = None
    verdict: str | None = None

    def note(self) -> str:
        """Return all figures that were asked for as short lines to stand beside a picture."""
        figures = {name: value for name in _NOTED if (value := getattr(self, name)) is not None}
        lines = [f"{name} {value:.2f}" for name, value in figures.items()]
        return "\n".join(lines if self.verdict is None else [*lines, self.verdict.partition(":")[0]])

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, ready for JSON, which knows no infinity and no NaN: None takes their place."""
        finite = {name: not isinstance(value, float) or math.isfinite(value) for name, value in asdict(self).items()}
        return {name: value if finite[name] else None for name, value in asdict(self).items()}


_NOTED = ("completeness", "deletion", "insertion", "infidelity", "sensitivity", "kept")
_COLUMNS = {
    "completeness": "completeness error ↓",
    "deletion": "deletion area ↓",
    "insertion": "insertion area ↑",
    "infidelity": "infidelity, of 1 ↓",
    "sensitivity": "sensitivity ↓",
    "kept": "rank correlation kept ↓",
    "kept_absolute": "without sign ↓",
}


def table(found: Iterable[Trust]) -> dict[str, Any]:
    """Return the figures of several methods as "columns" and "rows" of text."""
    rows = []
    for one in found:
        figures = [getattr(one, name) for name in _COLUMNS]
        check = "" if one.verdict is None else one.verdict.partition(":")[0]
        rows.append([one.method, *("" if value is None else f"{value:.3f}" for value in figures), check])
    return {"columns": ["method", *_COLUMNS.values(), "randomisation check"], "rows": rows}


def trust(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    method: str,
    attributions: Tensor,
    *,
    disturbed: int = 0,
    stages: int = 4,
    curve_steps: int | None = None,
    max_batch: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Trust:
    """Say how far maps can be trusted.

    Args:
        model, images, targets, method, options: as they were given to ``attribute``.
        attributions: what it returned.
        disturbed: copies of each image for the sensitivity. 0 leaves out all that takes many passes: it, infidelity
            and the randomisation check; the first and the last make the maps anew disturbed + stages + 2 times.
        stages: of the randomisation check.
        curve_steps: of the deletion and insertion curves; None is 32.
        max_batch, seed: images at a time; of the disturbances and random weights.
    Raises:
        TypeError, ValueError: if an argument does not fit.
    """
    disturbed = check_integer("disturbed", disturbed, 0)
    request, maps = (model, images, targets), attributions
    start: Any = options.get("baselines")
    pooled = method == "gradient_shap" and isinstance(start, Tensor) and start.dim() == 4
    sums_off: Callable[..., Tensor] = pool_completeness_error if pooled else completeness_error
    figures = Trust(
        method,
        sums_off(*request, maps, start, max_batch=max_batch).mean().item() if method in ADD_UP else None,
        deletion_curve(*request, maps, steps=curve_steps, max_batch=max_batch).area,
        insertion_curve(*request, maps, steps=curve_steps, max_batch=max_batch).area,
    )
    if not disturbed:
        return figures
    start = start.mean(0) if pooled else start
    missed, changes = (
        infidelity(*request, foretold, start, normalize=True, max_batch=max_batch, seed=seed)
        for foretold in (maps, torch.zeros_like(maps))
    )
    again: dict[str, Any] = {"max_batch": max_batch, "seed": seed} | options
    check = randomization_check(*request, method, stages=stages, **again)
    return replace(
        figures,
        infidelity=(missed / changes).mean().item(),
        sensitivity=sensitivity(*request, method, disturbed=disturbed, **again).mean().item(),
        kept=check.kept,
        kept_absolute=check.kept_absolute,
        verdict=check.verdict,
    )
