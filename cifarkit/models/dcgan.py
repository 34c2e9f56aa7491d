"""The two networks of a deep convolutional GAN, for images of 32 x 32 pixels and other powers of two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.checks import check_integer
from cifarkit.labels import check_labels
from cifarkit.models.dtypes import check_dtype
from cifarkit.models.spectral import normalize_spectrum

_SMALLEST_SIDE = 4  # of the images inside, from which the generator grows and to which the discriminator shrinks
_DEVIATION = 0.02  # of the first weights
_SLOPE = 0.2  # of the discriminator's LeakyReLU


class Generator(nn.Module):
    """Make images from noise: transposed convolutions that double the side from 4 pixels on.

    Channels are base_channels before the last doubling and twice as many before each earlier one: 256, 128, 64 for
    32 pixels. The class sets scale and shift of every BatchNorm (Miyato and Koyama 2018).

    Args:
        latent_dim: length of a noise vector.
        base_channels: 128 with image_size=64 is the published network.
        num_classes: number of classes K; None takes no labels.
        image_size: side of the images, a power of two from 8 on.
        channels: C of the images.
    Raises:
        TypeError, ValueError: if an argument is of another kind or out of range, also of ``forward``.
    Source: Radford et al. 2016, figure 1 and section 4, "Unsupervised representation learning with DCGANs".
    """

    def __init__(
        self,
        *,
        latent_dim: int = 128,
        base_channels: int = 64,
        num_classes: int | None = None,
        image_size: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        widths = _widths(base_channels, image_size)[::-1]
        self.latent_dim = check_integer("latent_dim", latent_dim, 1)
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 1)
        self.project = nn.Linear(self.latent_dim, _SMALLEST_SIDE**2 * widths[0], bias=False)
        self.norms = nn.ModuleList(_ClassNorm(width, self.num_classes) for width in widths)
        after = [*widths[1:], check_integer("channels", channels, 1)]
        self.growing = nn.ModuleList(
            nn.ConvTranspose2d(width, next_width, kernel_size=4, stride=2, padding=1, bias=False)
            for width, next_width in zip(widths, after, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(after[-1]))  # only the last convolution has no BatchNorm behind it
        initialize(self)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] for latents (B, latent_dim), standard normal, and labels (B,) int64."""
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents is a {type(latents).__name__}; give a float tensor (B, {self.latent_dim})")
        if latents.dim() != 2 or latents.shape[1] != self.latent_dim:
            raise ValueError(f"latents must be (B, {self.latent_dim}); got shape {tuple(latents.shape)}")
        check_dtype("latents", latents, self.project.weight)
        check_labels(labels, len(latents), self.num_classes)
        side = _SMALLEST_SIDE
        h = self.project(latents).view(len(latents), side, side, -1).permute(0, 3, 1, 2)  # (B, C, 4, 4), C last
        for norm, convolution in zip(self.norms, self.growing, strict=True):
            h = convolution(F.relu(norm(h, labels)))
        return torch.tanh(h.to(latents.dtype) + self.bias[:, None, None])


class Discriminator(nn.Module):
    """Tell real images from made ones: convolutions that halve the side down to 4 pixels, and a linear map.

    Channels are base_channels after the first halving and twice as many after each later one. The class enters as in
    Miyato and Koyama 2018, "cGANs with projection discriminator": the logit has the inner product of a vector of the
    class and the features, summed over the pixels, added to it.

    Args:
        base_channels: 128 with image_size=64 is the published network.
        num_classes: number of classes K; None takes no labels.
        spectral_norm: bound every layer by its largest singular value (Miyato et al. 2018) instead of BatchNorm.
        image_size: side of the images, a power of two from 8 on.
        channels: C of the images.
    Raises:
        TypeError, ValueError: if an argument is of another kind or out of range, also of ``forward``.
    Source: Radford et al. 2016, section 4.
    """

    def __init__(
        self,
        *,
        base_channels: int = 64,
        num_classes: int | None = None,
        spectral_norm: bool = False,
        image_size: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        widths = _widths(base_channels, image_size)
        self.image_shape = (check_integer("channels", channels, 1), image_size, image_size)
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 1)
        self.shrinking, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, width in zip([channels, *widths[:-1]], widths, strict=True):
            normalized = width != widths[0] and not spectral_norm
            self.shrinking.append(nn.Conv2d(before, width, kernel_size=4, stride=2, padding=1, bias=not normalized))
            self.norms.append(nn.BatchNorm2d(width) if normalized else nn.Identity())
        self.head = nn.Conv2d(widths[-1], 1, kernel_size=_SMALLEST_SIDE)  # of all that is left: a linear map
        self.classes = None if self.num_classes is None else nn.Embedding(self.num_classes, widths[-1])
        initialize(self)
        if spectral_norm:
            for layer in [*self.shrinking, self.head, self.classes]:
                if layer is not None:
                    normalize_spectrum(layer)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B,), positive for real, of images (B, C, S, S) in [-1, 1] and labels (B,) int64."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images is a {type(images).__name__}; give a float tensor (B, C, S, S) in [-1, 1]")
        if images.dim() != 4 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be (B, {wanted}) in [-1, 1]; got shape {tuple(images.shape)}")
        check_dtype("images", images, self.head.bias)
        check_labels(labels, len(images), self.num_classes)
        h = images
        for convolution, norm in zip(self.shrinking, self.norms, strict=True):
            h = F.leaky_relu(norm(convolution(h)), _SLOPE)
        logits: Tensor = self.head(h).flatten()  # (B, 1, 1, 1) -> (B,)
        return logits if self.classes is None else logits + (self.classes(labels) * h.sum((2, 3))).sum(1)


class _ClassNorm(nn.Module):
    """BatchNorm with a scale and a shift for each class, or one of both for all."""

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(num_classes or 1, channels), nn.Embedding(num_classes or 1, channels)

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.zeros(1, dtype=torch.int64, device=h.device)
        scale, shift = (part(labels)[:, :, None, None].to(h.dtype) for part in (self.scale, self.shift))  # (B, C, 1, 1)
        scaled: Tensor = self.norm(h) * scale + shift
        return scaled


def initialize(network: nn.Module) -> None:
    """Draw the weights of a network anew, as published: normal, of deviation 0.02, around 1 for scales, biases 0.

    Source: Radford et al. 2016, section 4; scales as in the authors' code.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=_DEVIATION)
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, _DEVIATION)
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            nn.init.zeros_(bias)
    for layer in network.modules():
        if isinstance(layer, _ClassNorm):
            nn.init.normal_(layer.scale.weight, 1.0, _DEVIATION)
            nn.init.zeros_(layer.shift.weight)


def _widths(base_channels: int, image_size: int) -> list[int]:
    """Return the channels from the largest inner images to those of 4 x 4 pixels."""
    base, size = check_integer("base_channels", base_channels, 1), check_integer("image_size", image_size)
    halvings = size.bit_length() - _SMALLEST_SIDE.bit_length()
    if size < 2 * _SMALLEST_SIDE or size != _SMALLEST_SIDE << halvings:
        raise ValueError(f"image_size={size} is no power of two from {2 * _SMALLEST_SIDE} on; use 32, or 16 or 64")
    return [base << level for level in range(halvings)]
