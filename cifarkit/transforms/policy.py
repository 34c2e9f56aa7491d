"""TrivialAugment: one operation for each image, none of it to tune."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cifarkit.seeding import Draws
from cifarkit.transforms.base import Fill, RandomTransform, check_fill, fill_like, to_dtype, to_float
from cifarkit.transforms.color import adjust_brightness, adjust_contrast, adjust_saturation, blend
from cifarkit.transforms.geometry import affine_nearest, rotation_matrices

_LEVELS = 31  # strengths are 0, 1/30 ... 30/30 of the largest


class TrivialAugment(RandomTransform):
    """Change each image by one operation and one strength, both drawn uniformly; images are grouped by operation.

    ``OPERATIONS`` names the operations in the order of their numbers. Strength level m, uniform in 0, 1/30 ... 1,
    means a shear of 0.99 m, a shift of 32 m px, an angle of 135 m degrees, a factor 1 + 0.99 m of brightness,
    saturation, contrast or sharpness, all of these with a random sign; 8 - 6 m bits; inversion of values from 1 - m up.
    Shears are about the centre, so that less of an image leaves the view than by torchvision's, about a corner.

    Args:
        wide: the strengths above, with which the paper does best; False takes the milder ones of RandAugment, 0.3 m,
            10 m px, 30 m degrees, 0.9 m, 8 - 4 m bits, which suit short runs.
        fill: value in [0, 1] of what comes into view from outside, or one for each channel.
    Raises:
        ValueError: if fill is out of range.
    Source: Müller and Hutter 2021, arXiv 2103.10158, algorithm 1 and table 6.
    """

    needs_unit_range = True

    def __init__(self, *, wide: bool = True, fill: Fill = 0.5) -> None:
        self.wide, self.fill = wide, check_fill(fill)

    def parameters(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw (B, 2) float32, the number of an operation and its strength: slope, px, degrees, factor, bits, value."""
        number = draws.integers(0, len(OPERATIONS))
        level = draws.integers(0, _LEVELS).float() / (_LEVELS - 1)
        sign = 1.0 - 2.0 * draws.bernoulli(0.5).float()
        shear, shift, angle, change, bits = (0.99, 32.0, 135.0, 0.99, 6) if self.wide else (0.3, 10.0, 30.0, 0.9, 4)
        factor = 1 + sign * change * level
        strengths = [
            torch.zeros_like(level),  # identity
            *([sign * shear * level] * 2),
            *([sign * shift * level] * 2),
            sign * angle * level,
            *([factor] * 4),
            8 - (bits * level).round(),
            1 - level,
            *([torch.zeros_like(level)] * 2),  # autocontrast, equalize
        ]
        strength = torch.stack(strengths, dim=1).gather(1, number[:, None])  # (B, 1)
        return torch.cat([number[:, None].float(), strength], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        floats, number = to_float(images), parameters[:, 0].long()
        fill = fill_like(self.fill, floats)
        result = floats.clone()
        for index, operation in enumerate(OPERATIONS.values()):
            group = (number == index).nonzero()[:, 0]
            if operation is not None and len(group):
                result[group] = operation(floats[group], parameters[group, 1], fill).to(result.dtype)
        return to_dtype(result, images.dtype)


def _moved(images: Tensor, fill: Tensor, matrix: tuple[Tensor | float, ...]) -> Tensor:
    """Take pixels from matrix @ (x, y, 1), its six entries being numbers or (B,)."""
    entries = [torch.as_tensor(entry, dtype=torch.float32, device=images.device) for entry in matrix]
    matrices = torch.stack([entry.expand(len(images)) for entry in entries], dim=1).view(-1, 2, 3)
    return affine_nearest(images, matrices, fill)


def _shear_x(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, fill, (1.0, strength, 0.0, 0.0, 1.0, 0.0))


def _shear_y(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, fill, (1.0, 0.0, 0.0, strength, 1.0, 0.0))


def _translate_x(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, fill, (1.0, 0.0, -strength, 0.0, 1.0, 0.0))


def _translate_y(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, fill, (1.0, 0.0, 0.0, 0.0, 1.0, -strength))


def _rotate(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return affine_nearest(images, rotation_matrices(strength), fill)


def _sharpness(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Blend with a 3 x 3 blur, weight 5 in the middle and 1 around; the outermost pixels have no blur and stay."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    # Sums of shifted pictures, because the rounding of a convolution can depend on the batch size.
    total = 4 * images[:, :, 1:-1, 1:-1]
    for top in range(3):
        for left in range(3):
            total = total + images[:, :, top : top + height - 2, left : left + width - 2]
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1] = total / 13
    return blend(images, blurred, strength)


def _posterize(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Keep the given number of leading bits of 8."""
    step = 2 ** (8 - strength)[:, None, None, None]
    return (images.mul(255).round() / step).floor() * step / 255


def _solarize(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return torch.where(images >= strength[:, None, None, None], 1 - images, images)


def _autocontrast(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; one of a single value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Spread the values of each channel evenly, by a table made from its histogram, as Pillow does."""
    values = images.mul(255).round().long().flatten(2)  # (n, C, H * W)
    # On a GPU the check would wait for the device, and the kernel checks anyhow.
    low, high = values.aminmax() if values.device.type == "cpu" and values.numel() else (0, 0)
    if not 0 <= int(low) <= int(high) <= 255:
        raise ValueError("images must be in [0, 1] here; put Normalize behind TrivialAugment")
    histogram = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    brightest = histogram.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - brightest) // 255  # (n, C, 1); 0 leaves the channel alone
    below = histogram.cumsum(dim=2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equalized = table.gather(2, values).to(images.dtype).div_(255).view_as(images)
    return torch.where(step[..., None] > 0, equalized, images)


Operation = Callable[[Tensor, Tensor, Tensor], Tensor]  # float images (n, C, H, W), strengths (n,), fill (C,)

OPERATIONS: dict[str, Operation | None] = {
    "identity": None,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": lambda images, strength, fill: adjust_brightness(images, strength),
    "saturation": lambda images, strength, fill: adjust_saturation(images, strength),
    "contrast": lambda images, strength, fill: adjust_contrast(images, strength),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
