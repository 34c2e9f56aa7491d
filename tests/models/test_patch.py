"""PatchEmbedding: the same numbers as patches cut by hand, any rectangle, other images refused."""

from typing import Any

import pytest
import torch

from cifarkit.models import PatchEmbedding


def test_it_is_the_linear_map_of_flattened_patches() -> None:
    embedding, images = PatchEmbedding((8, 12), 4, 5), torch.rand(2, 3, 8, 12)
    patches = [images[:, :, y : y + 4, x : x + 4].flatten(1) for y in (0, 4) for x in (0, 4, 8)]  # row by row
    weight, bias = embedding.project.weight.flatten(1), embedding.project.bias
    assert embedding.grid == (2, 3)
    torch.testing.assert_close(embedding(images), torch.stack(patches, dim=1) @ weight.T + bias)


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(channels: int) -> None:
    assert PatchEmbedding(28, 7, 16, channels)(torch.rand(2, channels, 28, 28)).shape == (2, 16, 16)
    assert PatchEmbedding()(torch.rand(1, 3, 32, 32)).shape == (1, 64, 192)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 32, 32), (3, 32, 32)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\); got shape .*; resize them, or build"):
        PatchEmbedding()(torch.rand(shape))


@pytest.mark.parametrize(
    ("images", "got"), [([1, 2], "a list"), (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8")]
)
def test_what_are_no_transformed_images_is_refused(images: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"images must be a float tensor, transformed as in training; got {got}"):
        PatchEmbedding()(images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patch_size": 5}, ValueError, "patch_size=5 does not tile image_size=32; give a divisor"),
        ({"image_size": (32, 30)}, ValueError, r"patch_size=4 does not tile image_size=\(32, 30\)"),
        ({"image_size": 0}, ValueError, "image_size=0 must be at least 1"),
        ({"dim": 0}, ValueError, "dim=0 must be at least 1"),
        ({"channels": 0}, ValueError, "channels=0 must be at least 1"),
        ({"patch_size": 4.0}, TypeError, r"patch_size=4\.0 is a float; give an integer"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PatchEmbedding(**arguments)
