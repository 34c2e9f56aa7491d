"""Whether an explanation depends on what the model has learnt: it must change when the weights are made random."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cifarkit.attribution.explaining import Explain, explainer, method_name
from cifarkit.attribution.ranks import rank_correlation
from cifarkit.attribution.scoring import (
    bring_to,
    check_attributions,
    check_images,
    check_max_batch,
    check_targets,
)
from cifarkit.attribution.wrappers import unwrapped
from cifarkit.checks import check_integer, check_number
from cifarkit.inference import device_of
from cifarkit.seeding import RngState

_MADE_FROM = ("_orig", "_g", "_v")  # ends of what weight_norm and spectral_norm form a weight from

Layer = tuple[str, nn.Module]


@dataclass(frozen=True)
class RandomizationCheck:
    """How maps change while the layers of a model are made random, from the last to the first.

    Attributes:
        method: that made the maps.
        layers: names of those made random at each stage, on top of those before.
        correlations: rank correlation with the maps of the trained model, float64 (S, B), of maps with their sign; NaN
            where the map of the trained model is constant, as of Grad-CAM where nothing speaks for the class.
        absolute: the same of maps without sign.
        limit: mean of them from which on the check fails.
    """

    method: str
    layers: tuple[tuple[str, ...], ...] = field(repr=False)
    correlations: Tensor = field(repr=False)
    absolute: Tensor = field(repr=False)
    limit: float

    @property
    def kept(self) -> float:
        """How much of the map stays, whatever the model: the mean correlation, signs included; NaN without any."""
        return float(self.correlations.nanmean())

    @property
    def kept_absolute(self) -> float:
        """The same of maps without sign."""
        return float(self.absolute.nanmean())

    @property
    def passed(self) -> bool:
        """Whether the maps become others; not known to, if none could be compared."""
        return self.kept < self.limit

    @property
    def verdict(self) -> str:
        """What that means, in words."""
        if self.correlations.isnan().all():
            return "UNDECIDED: every map of the trained model is constant, so there is nothing to compare"
        if not self.passed:
            return "FAILS: the map comes from the image more than from what the model has learnt"
        if self.kept_absolute >= self.limit:
            return "passes by its signs: how large the values are comes from the image more than from the model"
        return "passes: the map depends on what the model has learnt"

    def __str__(self) -> str:
        count = sum(len(names) for names in self.layers)
        stages = " -> ".join(f"{value:.2f}" for value in self.correlations.nanmean(1))
        return (
            f"{self.method}, {count} layers made random from {self.layers[0][0]} to {self.layers[-1][-1]}: rank "
            f"correlation {stages}, mean {self.kept:.2f} (without sign {self.kept_absolute:.2f}); {self.verdict}"
        )


def randomization_check(
    model: nn.Module,
    images: Tensor,
    targets: int | Tensor | None,
    method: str | Explain,
    *,
    stages: int | None = 4,
    limit: float = 0.5,
    max_batch: int | None = None,
    seed: int = 0,
    **options: object,
) -> RandomizationCheck:
    """Compare the maps of a trained model with those of copies whose layers are random, from the last on.

    The mean over stages decides: maps of guided backpropagation change only when the first layers do. Images whose map
    is constant do not count.

    Args:
        model, images, targets: as for ``attribute``; None asks about the class predicted by the trained model.
        method: a name of METHODS, with its options, or a function (model, images, targets) -> maps.
        stages: comparisons on the way, each after as many layers; None compares after every layer.
        limit: rank correlation, as a mean over stages and images, from which on the check fails.
        max_batch, seed: images at a time; of the random weights, and of the method.
    Raises:
        TypeError, ValueError: for a wrong argument, or a model without weights.
    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3, cascading randomisation.
    """
    images, size = check_images(images), check_max_batch(max_batch)
    stages = None if stages is None else check_integer("stages", stages, 1)
    limit, seed = check_number("limit", limit, 0, 1, above=True), check_integer("seed", seed)
    explain = explainer(method, max_batch, seed, _by_name(model, options))
    classes = check_targets(model, images, targets, size)
    plain = getattr(model, "_orig_mod", model)  # of torch.compile, which does not call the hooks below
    subject = copy.deepcopy(plain).eval()  # explained before, too, so that nothing is left in the model itself
    shown, asked = images.to(device_of(subject)), classes.to(device_of(subject))
    trained = check_attributions(explain(subject, shown, asked), images)
    signed, absolute, names = [], [], []
    for stage in _stages(_layers(unwrapped(subject), bring_to(subject, shown[:1])), stages):
        for index, (_, layer) in stage:
            _make_random(layer, seed + index)
        now = check_attributions(explain(subject, shown, asked), images)
        names.append(tuple(name for _, (name, _) in stage))
        signed.append(_compare(trained.sum(1), now.sum(1)))
        absolute.append(_compare(trained.abs().sum(1), now.abs().sum(1)))
    return RandomizationCheck(method_name(method), tuple(names), torch.stack(signed), torch.stack(absolute), limit)


def _by_name(model: nn.Module, options: dict[str, object]) -> dict[str, object]:
    """Return options with the names of modules instead of the modules, which a copy of the model does not have."""
    names: dict[object, str] = {part: name for name, part in model.named_modules()}
    named = {key: names.get(value) for key, value in options.items() if isinstance(value, nn.Module)}
    return options | {key: name for key, name in named.items() if name}


def _compare(trained: Tensor, now: Tensor) -> Tensor:
    """Return the rank correlation of each pair of maps (B, H, W), NaN where the trained model's says nothing."""
    constant = trained.flatten(1).amax(1) == trained.flatten(1).amin(1)
    return rank_correlation(trained, now).masked_fill(constant, float("nan"))


def _layers(model: nn.Module, images: Tensor) -> list[Layer]:
    """Return the modules that own weights, the last one to work first.

    A layer that is never called, as one whose weights are used by its parent, goes with the module defined before it.
    """
    calls: dict[nn.Module, int] = {}

    def note(part: nn.Module, _: object) -> None:  # what a hook returns would replace the input
        calls.setdefault(part, len(calls))

    parts = list(model.named_modules())
    hooks = [part.register_forward_pre_hook(note) for _, part in parts]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    turn, turns = 0, dict[nn.Module, int]()
    for _, part in parts:
        turn = turns[part] = calls.get(part, turn)
    owners = [(name or "the model", part) for name, part in parts if _learns(part)]
    if not owners:
        raise ValueError("model has no weights that could be made random; the check needs a network that learns")
    return sorted(owners, key=lambda owner: turns[owner[1]])[::-1]


def _learns(part: nn.Module) -> bool:
    """Tell whether a module has weights of its own, or statistics that it can forget, as BatchNorm has."""
    statistics = any(True for _ in part.buffers(recurse=False)) and hasattr(part, "reset_parameters")
    return statistics or any(True for _ in part.parameters(recurse=False))


def _stages(layers: list[Layer], stages: int | None) -> Iterator[list[tuple[int, Layer]]]:
    """Cut the layers into groups as equal as can be, each layer with its number."""
    count, numbered = min(stages or len(layers), len(layers)), list(enumerate(layers))
    for stage in range(count):
        yield numbered[stage * len(layers) // count : (stage + 1) * len(layers) // count]


@torch.no_grad()
def _make_random(layer: nn.Module, seed: int) -> None:
    """Initialise a layer anew, or draw its weights from a normal distribution if it does not say how that is done."""
    state = RngState.capture()
    try:
        torch.manual_seed(seed)
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        own = dict(layer.named_parameters(recurse=False))
        if callable(reset):
            reset()
            own = {name: weight for name, weight in own.items() if name.endswith(_MADE_FROM)}
        for weight in own.values():
            weight.copy_(torch.randn(weight.shape) * weight.square().mean().sqrt().cpu())
    finally:
        state.restore()
