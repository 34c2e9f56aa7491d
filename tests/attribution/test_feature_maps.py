"""Grad-CAM on networks that keep channels last, and what is no feature map at all: never a silent wrong map."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

from cifarkit.attribution import attribute
from cifarkit.attribution.feature_maps import FIRST, LAST, UNKNOWN, find_layouts

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Turn(nn.Module):
    """Puts channels first again, as torchvision's Permute does."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2)


class Scale(nn.Module):
    """A module of no known kind."""

    def forward(self, maps: Tensor) -> Tensor:
        return 2 * maps


class ChannelsLast(nn.Module):
    """Patches, then layers that work on the last dimension."""

    def __init__(self, width: int = 6, patch: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.norm, self.mix, self.scale, self.turn = nn.LayerNorm(width), nn.Linear(width, width), Scale(), Turn()
        self.head = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.patches(images).permute(0, 2, 3, 1))
        return self.head(self.turn(self.scale(torch.tanh(self.mix(maps)))).square().mean((2, 3)))


@pytest.mark.parametrize("layer", ["mix", "scale"])
def test_a_map_with_channels_last_is_turned(layer: str) -> None:
    model, kept = ChannelsLast().eval(), []
    handle = model.get_submodule(layer).register_forward_hook(lambda part, inputs, output: kept.append(output))
    logits = model(IMAGES)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    coarse = (gradient.mean((1, 2), keepdim=True) * kept[0]).sum(3)  # (B, h, w, D) -> (B, h, w)
    expected = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(IMAGES)
    found = attribute(model, IMAGES, 1, "grad_cam", layer=layer, relu=False, interpolation="nearest")
    torch.testing.assert_close(found, expected.detach())
    assert not model.get_submodule(layer)._forward_hooks


def test_turned_here_or_in_the_model_the_map_is_the_same() -> None:
    model = ChannelsLast().eval()
    by_default, here = (attribute(model, IMAGES, 1, "grad_cam", relu=False, layer=layer) for layer in (None, "scale"))
    torch.testing.assert_close(here, by_default)  # of turn, the last one


def swin() -> nn.Module:
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 12, [1, 1], [1, 1], [2, 2], num_classes=4).eval()


def convnext() -> nn.Module:
    torch.manual_seed(0)
    stages = [CNBlockConfig(12, 24, 1), CNBlockConfig(24, None, 1)]
    return ConvNeXt(stages, layer_scale=1.0, num_classes=4).eval()


def layouts(model: nn.Module, size: int) -> dict[str, str]:
    outputs: dict[nn.Module, Any] = {}
    for part in model.modules():
        part.register_forward_hook(lambda part, inputs, output: outputs.__setitem__(part, output))
    model(torch.zeros(1, 3, size, size))
    found, names = find_layouts(outputs, (size, size), guess=True), {part: name for name, part in model.named_modules()}
    return {names[part]: layout for part, layout in found.items()}


def test_layouts_of_swin() -> None:
    found = layouts(swin(), 32)
    assert {name: found[name] for name in ("features.0.0", "features.0", "features", "norm", "permute")} == {
        "features.0.0": FIRST,  # the convolution that cuts patches
        "features.0": LAST,
        "features": LAST,
        "norm": LAST,
        "permute": FIRST,
    }
    assert not {"permute", "norm", "features"} & {*layouts(swin(), 8)}  # a single place


def test_layouts_of_convnext() -> None:
    found = layouts(convnext(), 32)
    names = ("features.1.0.block.0", "features.1.0.block.3", "features.1.0.block.4", "features.1.0", "features.2.0")
    assert [found[name] for name in names] == [FIRST, LAST, LAST, FIRST, FIRST]
    assert "head" not in found
    assert not {name for name in layouts(convnext(), 8) if name.startswith("features.3")}


@pytest.mark.parametrize(("model", "layer"), [(swin(), "permute"), (convnext(), "features")])
def test_the_default_is_the_last_map_of_several_places(model: nn.Module, layer: str) -> None:
    images = torch.randn(1, 3, 32, 32)
    default, named = (attribute(model, images, 1, "grad_cam", relu=False, layer=one) for one in (None, layer))
    assert torch.equal(default, named)
    assert default.unique().numel() > 4


def test_where_the_last_stage_is_one_place_the_stage_before_is_taken() -> None:
    images = torch.randn(1, 3, 8, 8)  # swin's second stage is a single place here
    default, named = (attribute(swin(), images, 1, "grad_cam", relu=False, layer=one) for one in (None, "features.1"))
    assert torch.equal(default, named)
    with pytest.raises(ValueError, match=r"layer='features' puts out \(1, 1, 1, 24\); Grad-CAM needs a feature map"):
        attribute(swin(), images, 1, "grad_cam", layer="features")


def test_a_shape_that_fits_both_ways_is_refused() -> None:
    model = ChannelsLast(width=4).eval()  # (1, 4, 4, 4) all along
    with pytest.raises(ValueError, match=r"does not tell whether channels come first or last; .* such as 'patches'"):
        attribute(model, IMAGES, 1, "grad_cam", layer="scale")
    named, default = (attribute(model, IMAGES, 1, "grad_cam", layer=layer, relu=False) for layer in ("mix", None))
    assert torch.equal(named, default)  # of a Linear, where there can be no doubt


def test_without_layers_for_channels_last_a_shape_is_read_as_pytorch_does() -> None:
    outputs: dict[nn.Module, Any] = {Scale(): torch.zeros(1, 8, 8, 8), Turn(): torch.zeros(1, 8, 40, 40)}
    assert [*find_layouts(outputs, (32, 32), guess=True).values()] == [FIRST]  # the other is finer than the image
    assert find_layouts(outputs, (32, 32), guess=False) == {}
    outputs[nn.Linear(3, 3)] = torch.zeros(1, 5, 5, 3)
    assert [*find_layouts(outputs, (32, 32), guess=True).values()] == [UNKNOWN, LAST]


def test_a_layer_norm_of_whole_maps_keeps_channels_first() -> None:
    outputs: dict[nn.Module, Any] = {nn.Conv2d(3, 8, 1): torch.zeros(1, 8, 6, 6)}
    outputs[nn.LayerNorm([8, 6, 6])] = torch.zeros(1, 8, 6, 6)
    assert [*find_layouts(outputs, (32, 32), guess=False).values()] == [FIRST, FIRST]


class AttentionBehindConvolutions(nn.Module):
    """Its attention weights (B, heads, N, N) pass a module and look like a feature map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.norm, self.drop, self.head = nn.LayerNorm(6), nn.Dropout(), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        nodes = self.norm(self.second(self.first(images).relu()).flatten(2).transpose(1, 2))  # (B, N, D)
        heads = nodes.unflatten(2, (2, 3)).transpose(1, 2)  # (B, heads, N, D / heads)
        weights = self.drop((heads @ heads.mT).softmax(-1))
        return self.head((weights @ heads).transpose(1, 2).flatten(2).mean(1))


def test_attention_weights_are_no_feature_map() -> None:
    model = AttentionBehindConvolutions().eval()
    default, named = (attribute(model, IMAGES, 1, "grad_cam", relu=False, layer=one) for one in (None, "second"))
    assert torch.equal(default, named)


class SplitHeads(nn.Module):
    """A convolutional stem, then tokens whose queries are normed head by head, as in many transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm, self.query_norm, self.head = nn.LayerNorm(8), nn.LayerNorm(4), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.stem(images).flatten(2).transpose(1, 2))  # (B, 8, h, w) -> (B, N, 8)
        heads = self.query_norm(tokens.unflatten(2, (2, 4)).transpose(1, 2))  # (B, N, 8) -> (B, 2, N, 4)
        return self.head(heads.transpose(1, 2).flatten(2).mean(1))


def test_queries_of_heads_are_no_feature_map() -> None:
    model, outputs = SplitHeads().eval(), {}
    for part in model.children():
        part.register_forward_hook(lambda own, _, output: outputs.update({own: output}))
    model(torch.rand(1, 3, 32, 32))
    assert [*find_layouts(outputs, (32, 32), guess=True)] == [model.stem]


def test_a_module_that_is_used_under_two_names_is_found_by_either() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.alias = convolution
    model.forward = lambda images: model[3](model[2](model[1](model[0](images))))  # type: ignore[method-assign]
    found = [attribute(model.eval(), IMAGES, 1, "grad_cam", layer=name, relu=False) for name in ("0", "alias")]
    torch.testing.assert_close(*found)
