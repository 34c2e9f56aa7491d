"""VisionTransformer and its blocks: shapes, gradients, attention weights, what it sees and what it does not."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.models import GraphAttention, VisionTransformer
from cifarkit.models.vit import Block

KINDS = ["graph", "self"]


def tiny(**options: Any) -> VisionTransformer:
    settings: dict[str, Any] = {"image_size": 8, "dim": 12, "depth": 2, "num_classes": 5} | options
    return VisionTransformer(**settings)


def photos(count: int = 3, channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize(("size", "channels"), [(8, 3), ((8, 12), 1)])
def test_any_image_that_tiles_gives_one_row_of_logits(attention: str, size: Any, channels: int) -> None:
    model = tiny(image_size=size, channels=channels, attention=attention)
    height, width = model.embedding.image_shape[1:]
    assert model(photos(3, channels, height, width)).shape == (3, 5)


def test_the_defaults_are_those_of_the_contract() -> None:
    model = VisionTransformer().eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert len(model.blocks) == 6
    assert all(isinstance(block.attention, GraphAttention) for block in model.blocks)


@pytest.mark.parametrize("attention", KINDS)
def test_every_parameter_gets_a_gradient(attention: str) -> None:
    model = tiny(attention=attention)
    model(photos()).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    # The same number added to all scores of a query changes no weight, so a bias there has a gradient of zero.
    flat = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert all("attention" in name and name.endswith("bias") for name in flat)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_attention_maps_are_those_the_logits_were_made_with(attention: str, training: bool) -> None:
    model = tiny(attention=attention, dropout=0.5).train(training)
    maps = model.attention_maps(photos())
    assert maps.shape == (2, 3, 3, 4, 4)
    assert not maps.requires_grad
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 3, 4))
    assert all(part.training == training for part in model.modules())
    model.eval()
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, inputs: seen.append(block.weights(inputs[0])))
    model(photos())
    torch.testing.assert_close(maps, torch.stack(seen).detach())


def test_positions_tell_one_patch_from_another() -> None:
    model, images = tiny().eval(), photos()
    moved = images.roll(4, dims=3)  # by one patch: the same patches in another order
    assert not torch.allclose(model(images), model(moved), atol=1e-6)
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(images), model(moved))


def test_the_embedding_keeps_the_scale_of_the_pixels() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(dim=192, depth=1)
    nodes = model.embedding(torch.randn(4, 3, 32, 32))
    assert nodes.std().item() == pytest.approx(1, abs=0.15)
    assert model.head.weight.std().item() == pytest.approx(0.02, abs=0.002)
    assert not model.head.bias.any()


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("mlp_ratio", [0.0, 2.0])
def test_a_block_can_start_as_the_identity(attention: Any, mlp_ratio: float) -> None:
    block, nodes = Block(12, 3, attention=attention, mlp_ratio=mlp_ratio), torch.randn(2, 5, 12)
    assert not torch.equal(block(nodes), nodes)
    assert (block.mlp is None) == (mlp_ratio == 0)
    block.start_as_identity()
    assert torch.equal(block(nodes), nodes)


def test_dropout_works_in_training_alone() -> None:
    model, images = tiny(dropout=0.5), photos()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_attention_may_be_a_function() -> None:
    model = tiny(attention=partial(GraphAttention, dynamic=True))
    assert model(photos()).shape == (3, 5)


@pytest.mark.parametrize("attention", KINDS)
def test_it_learns_a_batch_by_heart(attention: str) -> None:
    torch.manual_seed(0)
    model, images, labels = tiny(attention=attention), photos(12), torch.arange(12) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attention": "graphic"}, ValueError, "attention='graphic' is unknown; use 'graph', 'self' or a function"),
        ({"depth": 0}, ValueError, "depth=0 must be at least 1"),
        ({"heads": 0}, ValueError, "heads=0 must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes=0 must be at least 1"),
        ({"mlp_ratio": -1}, ValueError, "mlp_ratio=-1 must be at least 0"),
        ({"dropout": 1}, ValueError, "dropout=1 must be at least 0 and below 1"),
        ({"patch_size": 3}, ValueError, "patch_size=3 does not tile image_size=8"),
        ({"dim": "wide"}, TypeError, "dim='wide' is a str; give an integer"),
        (
            {"attention": GraphAttention(8)},
            TypeError,
            "attention is a GraphAttention, but every block needs one of its",
        ),
        ({"attention": nn.Linear}, TypeError, "attention made a Linear; give a function that makes a GraphAttention"),
        ({"attention": lambda dim, heads: None}, TypeError, "attention made a NoneType; give a function"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(**arguments)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 8, 8\); got shape \(2, 3, 12, 12\)"):
        tiny()(photos(2, 3, 12, 12))
    with pytest.raises(TypeError, match="images must be a float tensor, transformed as in training; got a list"):
        tiny()([photos()])
