"""Change the transform as training goes on: small crops first, whole images last."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from cifarkit.checks import check_integer, check_transform, has_parameter
from cifarkit.seeding import Draws
from cifarkit.transforms.base import Transform, draws_for, to_float


class ByEpoch(Transform):
    """Use each transform from its epoch on, until the next one takes over.

    A network with a global pooling, such as SpeedNet or a ResNet, reads images of any size, and 24 x 24 are 0.56 times
    the pixels of 32 x 32. So it may learn the first epochs from smaller crops, in less time.

    Args:
        stages: {first epoch: transform}, epochs from 0; one stage must begin at 0.
    Raises:
        TypeError: if stages is no mapping of integers to callables of images.
        ValueError: if no stage begins at epoch 0, or one begins before it.
    Example:
        ``ByEpoch({0: RandomCrop(24, padding=0), 5: RandomCrop(32, padding=2)})``
    Source: progressive training on smaller images, after Howard 2018 (DAWNBench) and Touvron et al. 2019 (FixRes).
    """

    accepts_uint8 = True

    def __init__(self, stages: Mapping[int, Callable[..., Tensor]]) -> None:
        if not isinstance(stages, Mapping):
            raise TypeError(f"stages is a {type(stages).__name__}; give {{first epoch: transform}}, such as {{0: ...}}")
        starts = sorted(check_integer("a first epoch in stages", epoch, 0) for epoch in stages)
        if not starts or starts[0] != 0:
            raise ValueError(f"stages begin at epochs {starts}; one must begin at 0")
        self.stages: dict[int, Callable[..., Tensor]] = {
            epoch: check_transform(f"stages[{epoch}]", stages[epoch]) for epoch in starts
        }
        members = self.stages.values()
        self.needs_unit_range = any(getattr(member, "needs_unit_range", False) for member in members)
        self.leaves_unit_range = any(getattr(member, "leaves_unit_range", False) for member in members)
        self.keyed = all(bool(getattr(member, "keyed", has_parameter(member, "draws"))) for member in members)
        self.stateless = all(bool(getattr(member, "stateless", False)) for member in members)

    def at(self, epoch: int) -> Callable[..., Tensor]:
        """Return the transform of an epoch."""
        return self.stages[max(start for start in self.stages if start <= epoch)]

    def __call__(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws_for(images, draws)
        transform = self.at(draws.epoch if draws.stage is None else draws.stage)
        if not getattr(transform, "accepts_uint8", False):
            images = to_float(images)
        return transform(images, draws=draws) if has_parameter(transform, "draws") else transform(images)
