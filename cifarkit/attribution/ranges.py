"""Whether images lie where normalised ones do; maps of others look like maps but explain another question."""

from __future__ import annotations

import warnings

from torch import Tensor

_BRIGHTEST = 30  # no normalised image has values as large without any below 0
_UNLIKELY = 10  # seldom reached by normalised images; those of CIFAR-10 and ImageNet stay below 3
_PIXEL = 255  # centred or not, no pixel is farther from 0


def check_range(images: Tensor) -> None:
    """Refuse raw pixels, and warn of what they may have become by a preparation that left out the division by 255.

    Raises:
        ValueError: if images hold whole numbers or large values without negative ones, or values beyond any pixel's.
    """
    lowest, highest = (float(value) for value in images.aminmax())
    whole = 1.5 < highest <= _PIXEL and bool((images == images.round()).all())
    what = f"{'whole numbers' if whole else 'values'} from {lowest:g} to {highest:g}"
    if lowest >= 0 and (whole or highest > _BRIGHTEST):
        raise ValueError(
            f"images hold {what}, as pixels do before they are prepared; divide them by 255 and normalise them as in "
            "training"
        )
    if max(-lowest, highest) > _PIXEL:
        raise ValueError(
            f"images hold {what}, as pixels do that are normalised without being divided by 255 before; normalised "
            f"images seldom exceed {_UNLIKELY}"
        )
    if max(-lowest, highest) > _UNLIKELY:
        warnings.warn(
            f"images hold {what}, but normalised ones seldom exceed {_UNLIKELY}: unless the model was trained on such "
            "values, divide pixels by 255 before they are normalised",
            stacklevel=4,
        )
