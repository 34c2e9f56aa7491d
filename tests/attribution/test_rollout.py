"""Attention rollout: closed forms, whatever the number of layers; cells over the image; messages."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.attribution import attention_rollout, rollout
from cifarkit.models import HybridClassifier, VisionTransformer

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def some_weights(layers: int, heads: int = 2, nodes: int = 5) -> Tensor:
    return torch.randn(layers, 3, heads, nodes, nodes, generator=torch.Generator().manual_seed(1)).softmax(-1)


def test_nodes_that_attend_to_themselves_have_equal_shares() -> None:
    weights = torch.eye(4).expand(3, 2, 1, 4, 4)
    assert rollout(weights).tolist() == [[0.25] * 4] * 2


def test_uniform_attention_gives_equal_shares() -> None:
    torch.testing.assert_close(rollout(torch.full((3, 2, 2, 5, 5), 0.2)), torch.full((2, 5), 0.2))


def test_one_layer_is_the_mean_of_heads_and_queries_mixed_with_what_each_node_keeps() -> None:
    weights = some_weights(1)
    expected = 0.5 * weights[0].mean((1, 2)) + 0.5 / 5
    torch.testing.assert_close(rollout(weights), expected)
    torch.testing.assert_close(rollout(weights, residual=0), weights[0].mean((1, 2)))
    torch.testing.assert_close(rollout(weights, residual=1), torch.full((3, 5), 0.2))


def test_layers_are_multiplied_the_last_one_on_the_left() -> None:
    weights = some_weights(3)
    product = torch.eye(5).expand(3, 5, 5)
    for layer in weights.mean(2):
        product = (0.5 * layer + 0.5 * torch.eye(5)) @ product
    torch.testing.assert_close(rollout(weights), product.mean(1))


def test_all_that_reaches_the_class_can_come_from_one_node() -> None:
    weights = torch.zeros(1, 1, 1, 4, 4)
    weights[..., 2] = 1  # every node asks node 2
    assert rollout(weights, residual=0).tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("attention", ["graph", "self"])
def test_a_transformer_gives_each_pixel_the_share_of_its_cell(attention: Any) -> None:
    model = VisionTransformer(image_size=8, patch_size=4, dim=8, depth=2, heads=2, attention=attention).train()
    found = attention_rollout(model, IMAGES)
    assert found.shape == (3, 8, 8)
    shares = rollout(model.attention_maps(IMAGES))
    assert torch.equal(found[:, ::4, ::4].flatten(1), shares)
    assert torch.equal(found[:, 3::4, 3::4].flatten(1), shares)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    assert model.training
    torch.testing.assert_close(attention_rollout(model, IMAGES, max_batch=2), found)


def test_a_hybrid_classifier_has_one_layer() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    model = HybridClassifier(backbone, num_classes=3, image_size=8)
    found = attention_rollout(model, IMAGES)
    assert torch.equal(found[:, ::2, ::2].flatten(1), rollout(model.attention_maps(IMAGES)[None]))


def test_cells_need_not_be_squares_and_the_grid_can_be_given() -> None:
    model = Looker(some_weights(2, nodes=6))
    wide = attention_rollout(model, IMAGES[..., :6].repeat(1, 1, 1, 2))  # 8 x 12 pixels, 2 x 3 cells
    assert wide.unique().numel() == wide[:, ::4, ::4].unique().numel() == 18
    tall = attention_rollout(model, IMAGES, grid=(3, 2))
    assert torch.equal(tall[:, [0, 3, 7]][:, :, [0, 4]].flatten(1), rollout(model.weights))


def test_weights_of_bf16_are_taken() -> None:
    assert rollout(some_weights(2).bfloat16()).dtype == torch.float32


class Looker(nn.Module):
    """Has the weights that a test gives."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = weights

    def attention_maps(self, images: Tensor) -> Any:
        return self.weights


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0], TypeError, "weights must be a float tensor, got list; give what attention_maps"),
        (torch.ones(1, 1, 1, 2, 2).int(), TypeError, "got torch.int32"),
        (some_weights(1)[0], ValueError, r"it must be \(layers, B, heads, N, N\); of one layer give weights\[None\]"),
        (some_weights(1)[..., :3], ValueError, r"weights has shape \(1, 3, 2, 5, 3\)"),
        (some_weights(1)[:0], ValueError, r"weights has shape \(0, 3, 2, 5, 5\)"),
        (-some_weights(1), ValueError, "weights hold values from -.* at least 0, as behind a softmax"),
        (some_weights(1) / 0, ValueError, "must be finite"),
        (some_weights(1).mT, ValueError, "rows of weights sum to values from .* each must sum to 1 over dimension -1"),
    ],
)
def test_refuses_weights(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rollout(weights)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": nn.Linear(2, 2)}, TypeError, "model is a Linear, which has no attention_maps"),
        ({"model": 3}, TypeError, "model is a int; give a torch.nn.Module"),
        ({"images": IMAGES[0]}, ValueError, r"images must be \(B, C, H, W\)"),
        ({"images": IMAGES[:2]}, ValueError, "gave weights for 3 images; it got 2"),
        ({"residual": 2}, ValueError, "residual=2 must be at least 0 and at most 1"),
        ({"max_batch": 0}, ValueError, "max_batch=0 must be at least 1"),
        ({"grid": (2, 2)}, ValueError, r"grid=\(2, 2\) has 4 cells but the model has 5 nodes"),
        ({"grid": 5}, ValueError, r"grid=5 must be two numbers"),
        ({}, ValueError, re.escape("5 nodes fill no grid of 2 rows; give grid=(rows, columns)")),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention_rollout(**({"model": Looker(some_weights(2)), "images": IMAGES} | change))
