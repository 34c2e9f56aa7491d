"""HybridClassifier: starts as the network it is put behind, leaves a frozen one alone, takes any that has a map."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.data import FeatureLoader, ImageDataset, Loader
from cifarkit.models import GraphAttention, HybridClassifier, SpeedNet, UNet, resnet18
from cifarkit.models.hybrid import AttentionHead

KINDS = ["graph", "self"]


class TinyNet(nn.Module):
    """A network as torchvision makes them: features, a mean, a classifier."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 8, 3, 1, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class Timm(nn.Module):
    """A network as timm makes them."""

    def __init__(self, output_fmt: str = "NCHW") -> None:
        super().__init__()
        self.conv, self.output_fmt, self.fc = nn.Conv2d(3, 8, 3), output_fmt, nn.Linear(8, 5, bias=False)

    def forward_features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images)
        return maps if self.output_fmt == "NCHW" else maps.permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).mean((2, 3)))
        return logits


class TimmEfficientNet(nn.Module):
    """One whose conv_head is part of forward_features, as in timm's EfficientNet, MobileNetV2 and MnasNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.conv_head, self.classifier = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward_features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv_head(self.conv_stem(images).relu())
        return maps

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.forward_features(images).mean((2, 3)))
        return logits


def photos(count: int = 4, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def hybrid_of(backbone: nn.Module, **options: Any) -> HybridClassifier:
    settings: dict[str, Any] = {"num_classes": 5, "image_size": 8} | options
    return HybridClassifier(backbone, **settings)


def lived_in(network: nn.Module) -> nn.Module:
    """Move BatchNorm's statistics away from their start."""
    for _ in range(2):
        network.train()(2 * photos(8, 16) + 1)
    return network.eval()


def train(model: nn.Module, batches: Any, steps: int = 4, learning_rate: float = 0.1) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, learning_rate, momentum=0.9)
    model.train()
    for _, (inputs, labels) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# The start.


@pytest.mark.parametrize("attention", KINDS)
def test_behind_a_resnet_it_starts_with_the_logits_of_the_resnet(attention: Any) -> None:
    torch.manual_seed(0)
    network = resnet18(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    hybrid = HybridClassifier(network, attention=attention, num_classes=5, heads=4, mlp_ratio=1.0).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(hybrid(images), network.eval()(images), atol=1e-6, rtol=1e-6)
        assert hybrid.features(images).shape == (2, 512, 4, 4)
    assert hybrid.backbone is network
    names = {f"backbone.{name}" for name in network.state_dict()}
    assert names == {name for name in hybrid.state_dict() if not name.startswith("head.")}


class Pooled(nn.Module):
    """Features, a pooling of one's own, a linear map."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.features, self.fc, self.pool = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), pool

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(images)))
        return logits


def test_behind_a_speednet_it_starts_with_the_logits_of_the_speednet() -> None:
    network = lived_in(SpeedNet(5, widths=(8, 8, 8)))
    hybrid = hybrid_of(network, image_size=32).eval()
    assert hybrid.head.pool == "max"
    torch.testing.assert_close(hybrid(photos(2, 32)), network(photos(2, 32)))


@pytest.mark.parametrize(
    ("pool", "name"), [(lambda maps: maps.amax((2, 3)), "max"), (lambda maps: maps.mean((2, 3)), "mean")]
)
def test_the_head_pools_as_the_backbone_does(pool: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    hybrid = hybrid_of(Pooled(pool)).eval()
    assert hybrid.head.pool == name
    torch.testing.assert_close(hybrid(photos()), hybrid.backbone(photos()))
    assert not caplog.records


def test_another_pooling_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hybrid = hybrid_of(Pooled(lambda maps: maps[:, :, 0, 0]))
    assert hybrid.head.pool == "mean"
    assert "starts with other logits than Pooled: its own pooling is neither a mean nor a maximum" in caplog.text


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_pooling_that_is_asked_for_is_taken_and_weights_do_not_carry_it(pool: str) -> None:
    network = Pooled(lambda maps: maps.amax((2, 3)))
    asked = hybrid_of(network, pool=pool).eval()
    assert asked.head.pool == pool
    assert torch.equal(asked.head.linear.weight, network.fc.weight)
    headless = hybrid_of(network.features, pool=pool).eval()  # of which nothing tells how it was pooled
    headless.head.load_state_dict(asked.head.state_dict())
    assert torch.equal(headless(photos()), asked(photos()))
    assert hybrid_of(network.features).head.pool == "mean"


def test_an_unknown_pooling_is_named() -> None:
    with pytest.raises(ValueError, match="pool='median' is unknown; use 'mean' or 'max'"):
        AttentionHead(8, 1, 5, pool="median")
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        AttentionHead(8, 1, 0)
    with pytest.raises(ValueError, match="pool='' is unknown; use 'mean' or 'max'"):
        hybrid_of(TinyNet(), pool="")


@pytest.mark.parametrize(
    "build",
    [
        TinyNet,
        Timm,
        partial(Timm, "NHWC"),
        TimmEfficientNet,
        partial(torchvision.models.DenseNet, 4, (2, 2), 8, num_classes=5),
        partial(torchvision.models.MobileNetV2, 5, 0.25, [[1, 16, 1, 1]]),
        partial(torchvision.models.SwinTransformer, [2, 2], 8, [1, 1], [1, 1], [2, 2], num_classes=5),
        partial(torchvision.models.ShuffleNetV2, [1, 1, 1], [8, 8, 16, 16, 16], num_classes=5),
        partial(torchvision.models.MNASNet, 0.25, num_classes=5),
        partial(torchvision.models.regnet_x_400mf, num_classes=5),
    ],
)
def test_behind_any_network_with_a_mean_and_a_linear_map_too(build: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    network = lived_in(build())
    hybrid = hybrid_of(network, image_size=16).eval()
    torch.testing.assert_close(hybrid(photos(3, 16)), network(photos(3, 16)), atol=1e-6, rtol=1e-6)
    hybrid.unfreeze_backbone()
    hybrid(photos(3, 16)).square().sum().backward()
    assert not [name for name, p in hybrid.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("build", "level"),
    [
        (partial(TinyNet, 7), logging.WARNING),
        (lambda: TinyNet().features, logging.INFO),
        (lambda: Timm().conv, logging.INFO),
    ],
)
def test_another_head_starts_at_random(build: Any, level: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cifarkit"):
        hybrid = hybrid_of(build())
    assert hybrid(photos()).shape == (4, 5)
    found = [record for record in caplog.records if "starts at random" in record.getMessage()]
    assert [record.levelno for record in found] == [level]
    assert found[0].getMessage().endswith("the backbone has none of its shape")


def test_a_classifier_of_several_layers_lends_none(caplog: pytest.LogCaptureFixture) -> None:
    network = TinyNet()
    network.classifier = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))  # as timm's ConvNeXt has a norm there
    hybrid = hybrid_of(network)
    assert not torch.equal(hybrid.head.linear.weight, network.classifier[1].weight)
    assert "starts at random: the backbone has one of its shape only behind other layers" in caplog.text


def test_a_convolution_behind_the_pooling_is_part_of_the_head() -> None:
    network = Timm()
    network.conv_head = nn.Conv2d(8, 8, 1)  # as timm's MobileNetV3 has one
    hybrid = hybrid_of(network, freeze_backbone=False)
    assert not torch.equal(hybrid.head.linear.weight, network.fc.weight)
    assert [p.requires_grad for part in (network.conv, network.conv_head, network.fc) for p in part.parameters()] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_convolution_before_the_pooling_is_none() -> None:
    network = TimmEfficientNet()
    hybrid = hybrid_of(network)
    assert torch.equal(hybrid.head.linear.weight, network.classifier.weight)
    hybrid.unfreeze_backbone()
    assert all(p.requires_grad for p in (*network.conv_stem.parameters(), *network.conv_head.parameters()))
    assert not any(p.requires_grad for p in network.classifier.parameters())
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_a_head_that_is_taken_away_is_not_missed() -> None:
    hybrid = hybrid_of(TinyNet())
    del hybrid.backbone.classifier
    hybrid.unfreeze_backbone()
    assert all(p.requires_grad for p in hybrid.parameters())


def test_the_copy_of_the_linear_map_learns_alone() -> None:
    network = TinyNet()
    hybrid, before = hybrid_of(network), state_of(network)
    train(hybrid, [(photos(), torch.arange(4))] * 2)
    assert_same_state(network, before)
    assert not torch.equal(hybrid.head.linear.weight, network.classifier[1].weight)


@pytest.mark.parametrize("attention", [*KINDS, partial(GraphAttention, dynamic=True)])
@pytest.mark.parametrize("mlp_ratio", [0.0, 2.0])
def test_the_block_learns_although_it_starts_as_nothing(attention: Any, mlp_ratio: float) -> None:
    head = AttentionHead(8, 2, 5, attention=attention, mlp_ratio=mlp_ratio)
    features, labels = torch.randn(4, 8, 3, 3), torch.arange(4)
    train(head, [(features, labels)])  # behind zeros there is no gradient before the first step
    head.zero_grad()
    F.cross_entropy(head(features), labels).backward()
    gradients = {name: p.grad for name, p in head.named_parameters() if not name.endswith(("query.bias", "key.bias"))}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]


# Shapes and sizes.


def test_the_head_takes_maps_of_any_size_and_refuses_others() -> None:
    head = AttentionHead(8, 2, 5)
    assert head(torch.randn(2, 8, 3, 5)).shape == (2, 5)
    assert head(torch.randn(2, 8, 1, 1)).shape == (2, 5)
    for shape in [(2, 8), (2, 6, 4, 4)]:
        with pytest.raises(ValueError, match=r"features must be \(B, 8, h, w\); got shape .*FeatureLoader"):
            head(torch.randn(shape))


@pytest.mark.parametrize("size", [8, 13, 20])
@pytest.mark.parametrize("attention", KINDS)
def test_any_image_size_and_its_attention_maps(size: int, attention: Any) -> None:
    hybrid = hybrid_of(TinyNet(), attention=attention, heads=2)
    cells = hybrid.features(photos(3, size)).shape[2:].numel()
    before = [part.training for part in hybrid.modules()]
    maps = hybrid.attention_maps(photos(3, size))
    assert hybrid(photos(3, size)).shape == (3, 5)
    assert maps.shape == (3, 2, cells, cells)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, cells))
    assert [part.training for part in hybrid.modules()] == before


def test_it_is_its_head_behind_its_features() -> None:
    hybrid = hybrid_of(TinyNet()).eval()
    train(hybrid.head, [(hybrid.features(photos()), torch.arange(4))] * 2)
    hybrid.eval()
    assert torch.equal(hybrid(photos()), hybrid.head(hybrid.features(photos())))
    maps = hybrid.head.attention_maps(hybrid.features(photos()))
    assert torch.equal(hybrid.attention_maps(photos()), maps)


def test_images_of_one_channel_and_numbers_of_another_kind() -> None:
    backbone = nn.Conv2d(1, 8, 3).double()
    assert hybrid_of(backbone)(photos()[:, :1].double()).dtype == torch.float64


# Freezing.


def test_a_frozen_backbone_stands_still_bit_for_bit() -> None:
    hybrid = hybrid_of(lived_in(TinyNet()))
    before, head = state_of(hybrid.backbone), state_of(hybrid.head)
    train(hybrid, [(photos(), torch.arange(4))] * 3)
    assert_same_state(hybrid.backbone, before)
    assert not any(part.training for part in hybrid.backbone.modules())
    assert hybrid.training
    assert hybrid.head.training
    assert not torch.equal(hybrid.head.block.attention.value.weight, head["block.attention.value.weight"])
    assert not hybrid.features(photos()).requires_grad


def test_freezing_may_be_done_by_requires_grad_at_any_time() -> None:
    hybrid = hybrid_of(TinyNet(), freeze_backbone=False).train()
    assert hybrid.backbone.training
    hybrid.backbone.requires_grad_(False)
    before = state_of(hybrid.backbone)
    hybrid(photos())
    assert_same_state(hybrid.backbone, before)
    hybrid.backbone.requires_grad_(True)
    hybrid.train()
    hybrid(photos()).sum().backward()
    assert not torch.equal(hybrid.backbone.features[1].running_mean, before["features.1.running_mean"])


def test_a_backbone_may_be_frozen_in_part() -> None:
    network = lived_in(TinyNet())
    network.features[1].requires_grad_(False)
    hybrid = hybrid_of(network, freeze_backbone=False).train()
    assert [part.training for part in network.features] == [True, False, True, True, True]
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False, True, True, False, False]
    before = state_of(network.features[1])
    train(hybrid, [(photos(), torch.arange(4))] * 2)
    assert_same_state(network.features[1], before)
    hybrid.unfreeze_backbone()
    assert network.features[1].training
    assert all(p.requires_grad for p in network.features.parameters())


def test_a_frozen_backbone_is_kept_from_training_mode_part_by_part() -> None:
    hybrid = hybrid_of(lived_in(TinyNet()))
    before = state_of(hybrid.backbone)
    hybrid.backbone.features.train()
    hybrid(photos())
    assert_same_state(hybrid.backbone, before)
    assert not any(part.training for part in hybrid.backbone.modules())


def test_a_frozen_backbone_compiles_without_a_break() -> None:
    hybrid = hybrid_of(lived_in(TinyNet())).train()
    compiled = torch.compile(hybrid, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(photos()), hybrid(photos()))


def test_unfreezing_lets_every_parameter_of_the_features_learn() -> None:
    network = TinyNet()
    hybrid = hybrid_of(network).train()
    hybrid.unfreeze_backbone()
    assert hybrid.backbone.training
    hybrid(photos()).square().sum().backward()
    assert all(p.grad is not None for p in hybrid.parameters() if p.requires_grad)
    assert all(p.requires_grad for p in network.features.parameters())
    assert not any(p.requires_grad for p in network.classifier.parameters())  # no logit depends on it
    hybrid.eval()
    hybrid.unfreeze_backbone()
    assert not hybrid.backbone.training


def test_the_gradient_of_the_images_passes_a_frozen_backbone() -> None:
    hybrid, images = hybrid_of(TinyNet()).eval(), photos().requires_grad_()
    hybrid(images).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    assert all(p.grad is None for p in hybrid.backbone.parameters())
    hybrid.backbone.features[1].register_forward_hook(lambda layer, inputs, output: output.requires_grad_())
    assert hybrid(photos()).requires_grad  # as Grad-CAM asks for the gradient of a layer


def test_parameter_groups_leave_out_what_is_frozen() -> None:
    hybrid = hybrid_of(TinyNet())
    (only,) = hybrid.parameter_groups(0.1)
    assert {*map(id, only["params"])} == {*map(id, hybrid.head.parameters())}
    hybrid.unfreeze_backbone()
    head, backbone = hybrid.parameter_groups(0.1, backbone_factor=0.5)
    assert (head["lr"], backbone["lr"]) == (0.1, 0.05)
    assert {*map(id, backbone["params"])} == {*map(id, hybrid.backbone.features.parameters())}
    torch.optim.SGD(hybrid.parameter_groups(0.1))
    with pytest.raises(ValueError, match=r"backbone_factor=-1 must be at least 0"):
        hybrid.parameter_groups(0.1, -1)
    with pytest.raises(TypeError, match="learning_rate='fast' is a str; give a number"):
        hybrid.parameter_groups("fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", KINDS)
def test_training_the_head_on_kept_features_is_training_the_whole(attention: Any) -> None:
    torch.manual_seed(0)
    pixels, labels = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 5, (30,))
    loader = Loader(ImageDataset(pixels, labels, tuple("abcde")), 7, shuffle=True)
    whole = hybrid_of(lived_in(TinyNet()), attention=attention)
    part = copy.deepcopy(whole)
    features = FeatureLoader(loader.copy(), part.features, precision="fp32")
    assert features.cached
    train(whole, loader, 5)
    train(part.head, features, 5)
    assert not torch.equal(part.head.linear.weight, hybrid_of(part.backbone).head.linear.weight)
    for name, value in part.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-6, rtol=0)


def test_training_on_images_suggests_to_keep_the_features_once(caplog: pytest.LogCaptureFixture) -> None:
    hybrid = hybrid_of(TinyNet())
    with torch.no_grad():
        hybrid(photos())
    hybrid.eval()(photos())
    assert not caplog.records
    train(hybrid, [(photos(), torch.arange(4))] * 3)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "train .head on data.FeatureLoader(loader, hybrid.features) instead" in record.getMessage()


def test_a_backbone_that_learns_suggests_nothing(caplog: pytest.LogCaptureFixture) -> None:
    train(hybrid_of(TinyNet(), freeze_backbone=False), [(photos(), torch.arange(4))])
    assert not caplog.records


# Mistakes.


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photos().to(torch.uint8), r"images must be a float tensor, transformed as in training; got torch\.uint8"),
        ([1.0], "images must be a float tensor, .*; got a list"),
    ],
)
def test_what_are_no_prepared_images_is_named(images: Any, message: str) -> None:
    hybrid = hybrid_of(TinyNet()).eval()
    for call in (hybrid, hybrid.features, hybrid.attention_maps):
        with pytest.raises(TypeError, match=message):
            call(images)


class Two(nn.Conv2d):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), images


@pytest.mark.parametrize(
    ("backbone", "options", "error", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5)),
            {},
            ValueError,
            r"Sequential gives shape \(1, 5\) and no feature map .*; give an nn.Sequential of those of its layers",
        ),
        (Two(3, 4, 1), {}, ValueError, r"backbone=Two gives a tuple and no feature map \(B, C, h, w\)"),
        (nn.Conv2d(3, 8, 9), {}, ValueError, r"Conv2d fails on an image of shape \(1, 3, 8, 8\) .*give the image_size"),
        (
            nn.Linear(3, 4),
            {},
            ValueError,
            r"Linear fails on an image of .*; give a network that maps images to \(B, C, h, w\)",
        ),
        (
            torchvision.models.VisionTransformer(16, 8, 1, 1, 8, 8),
            {},
            ValueError,
            r"VisionTransformer fails on .* \(Wrong image height! .*\); give the image_size it takes",
        ),
        (photos, {}, TypeError, r"backbone is a function; give a torch\.nn\.Module"),
        (TinyNet(), {"attention": "graphic"}, ValueError, "attention='graphic' is unknown"),
        (TinyNet(), {"heads": 3}, ValueError, "heads=3 must divide dim=8"),
        (TinyNet(), {"num_classes": 0}, ValueError, "num_classes=0 must be at least 1"),
        (TinyNet(), {"image_size": (8, 8, 8)}, ValueError, r"image_size=\(8, 8, 8\) holds 3 numbers"),
    ],
)
def test_mistakes_are_named(backbone: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hybrid_of(backbone, **options)


def test_the_advice_for_a_network_without_a_map_works() -> None:
    network = SpeedNet(5, widths=(8, 8, 8))
    hybrid = hybrid_of(nn.Sequential(*list(network.children())[:-2]), image_size=32)  # the layers before the pooling
    assert hybrid(photos(2, 32)).shape == (2, 5)


def test_a_map_of_one_cell_is_told(caplog: pytest.LogCaptureFixture) -> None:
    hybrid_of(nn.Conv2d(3, 8, 8))
    assert "Conv2d gives a feature map of one cell, which can attend only to itself" in caplog.text


def test_looking_for_the_channels_changes_nothing() -> None:
    network = TinyNet().train()
    before = state_of(network)
    hybrid_of(network, freeze_backbone=False)
    assert_same_state(network, before)
    assert all(part.training for part in network.features.modules())


def test_a_backbone_whose_own_head_fails_is_pooled_by_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU())
            self.classifier = nn.Linear(6, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(images).flatten(1))  # for one size of image only
            return logits

    with caplog.at_level(logging.WARNING):
        hybrid = HybridClassifier(Cut(), num_classes=10)
    assert hybrid.head.pool == "mean"
    assert "the classifier pools by the mean: Cut gives no logits here" in caplog.text
    with pytest.raises(ValueError, match="backbone=UNet fails on an image of shape"):
        HybridClassifier(UNet(base_channels=8))
