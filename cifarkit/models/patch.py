"""Images as rows of patch vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cifarkit.checks import check_integer, check_size


class PatchEmbedding(nn.Module):
    """Cut images into square patches and map each patch to a vector.

    A strided convolution is the same linear map as flattening each patch first, without the copy.

    Args:
        image_size: side of the input in pixels, or (height, width); multiples of patch_size.
        patch_size: side of one patch in pixels.
        dim: length of a patch vector.
        channels: of the input images.
    Raises:
        TypeError: if an argument is no integer, or images are no tensor of floating point.
        ValueError: if one is below 1, the patches do not tile the image, or an image has another shape.
    Shapes:
        (B, C, H, W) -> (B, N, D), N = (H / patch_size) * (W / patch_size), row by row.
    Source: Dosovitskiy et al. 2020, section 3.1.
    """

    def __init__(
        self, image_size: int | Sequence[int] = 32, patch_size: int = 4, dim: int = 192, channels: int = 3
    ) -> None:
        super().__init__()
        height, width = check_size("image_size", image_size)
        patch_size, dim = check_integer("patch_size", patch_size, 1), check_integer("dim", dim, 1)
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size={patch_size} does not tile image_size={image_size}; give a divisor of it")
        self.image_shape = (check_integer("channels", channels, 1), height, width)
        self.grid = (height // patch_size, width // patch_size)  # rows and columns of patches
        self.project = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise TypeError(f"images must be a float tensor, transformed as in training; got {got}")
        if images.dim() != 4 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images must be (B, {wanted}); got shape {tuple(images.shape)}; resize them, or build the network "
                "with their image_size and channels"
            )
        patches: Tensor = self.project(images)
        return patches.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D)
