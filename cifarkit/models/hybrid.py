"""A convolutional backbone |> attention between the cells of its feature map |> one linear map."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer, check_number, check_size
from cifarkit.inference import device_of, dtype_of, evaluation_mode
from cifarkit.models.feature_map import feature_map, look_into, zero_image
from cifarkit.models.vit import AttentionChoice, Block

_log = logging.getLogger(__name__)


class AttentionHead(nn.Module):
    """Classify feature maps: one attention block on the cells as nodes, their mean or maximum, a linear map.

    The block starts as the identity and no norm follows it, so a head that starts with the linear map of a trained
    network gives that network's logits until training moves it. It has no positions: any number of cells will do.

    Args:
        dim: channels C of the feature map.
        heads, attention, mlp_ratio: of the :class:`Block`.
        num_classes: number of logits K.
        pool: "mean" or "max" over the nodes; no part of the state_dict, so it is given again where weights are loaded.
    Raises:
        ValueError: if an argument is out of range, or features have another shape.
    Shapes:
        (B, C, h, w) -> (B, K) logits.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_classes: int,
        *,
        attention: AttentionChoice = "graph",
        mlp_ratio: float = 0.0,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f"pool={pool!r} is unknown; use 'mean' or 'max'")
        self.pool = pool
        self.block = Block(dim, heads, attention=attention, mlp_ratio=mlp_ratio)
        self.block.start_as_identity()
        self.dim, self.linear = dim, nn.Linear(dim, check_integer("num_classes", num_classes, 1))

    def forward(self, features: Tensor) -> Tensor:
        nodes = self.block(self._nodes(features))  # (B, N, C)
        logits: Tensor = self.linear(nodes.mean(1) if self.pool == "mean" else nodes.amax(1))  # (B, C) -> (B, K)
        return logits

    @torch.no_grad()
    def attention_maps(self, features: Tensor) -> Tensor:
        """Return the attention weights on feature maps, (B, heads, N, N) with N = h * w, in evaluation mode."""
        with evaluation_mode(self):
            return self.block.weights(self._nodes(features))

    def _nodes(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.dim:
            raise ValueError(
                f"features must be (B, {self.dim}, h, w); got shape {tuple(features.shape)}; give what "
                "HybridClassifier.features(images) returns, as FeatureLoader(loader, hybrid.features) does"
            )
        return features.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C), row by row


class HybridClassifier(nn.Module):
    """Put attention behind a backbone: ``head(features(images))``, see :class:`AttentionHead`.

    A backbone with a linear head of as many classes, behind a mean or a maximum over the cells, lends a copy of it: the
    classifier then starts as exactly that trained network, where a random start would first have to find its accuracy
    again. Another head starts at random; both this and a start that differs are logged. With a frozen backbone and a
    fixed transform, train the head alone, on features that are computed once::

        features = data.FeatureLoader(loader, hybrid.features)
        trainer.fit(ClassificationTask(hybrid.head, optimizer), features)

    Args:
        backbone: images -> feature map (B, C, h, w); kept, not copied. Cut before their pooling are SpeedNet,
            torchvision's ResNet, RegNet, DenseNet, Swin, ShuffleNetV2, MNASNet, any with a module ``features``, and
            timm's.
        attention: "graph", "self", or a function of (dim, heads).
        num_classes, heads, mlp_ratio: logits K; attention heads; width of the block's MLP over C, 0 for none.
        freeze_backbone: keep its parameters and BatchNorm statistics; False leaves frozen what is frozen already.
        image_size: side in pixels, or (height, width), of the zero image that is sent through to learn C.
        pool: "mean" or "max" over the cells; None takes the backbone's own if its linear map is copied, else the mean.
            It is no part of the state_dict: weights ask for the pooling they were trained with.
    Raises:
        ValueError: if an argument is out of range, or the backbone gives no feature map.
        TypeError: if backbone is no module, a number none, or images are no tensor of floating point.
    Shapes: (B, 3, H, W) -> (B, K) logits, H and W any that the backbone takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        attention: AttentionChoice = "graph",
        num_classes: int = 10,
        heads: int = 1,
        freeze_backbone: bool = True,
        mlp_ratio: float = 0.0,
        image_size: int | Sequence[int] = 32,
        pool: str | None = None,
    ) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1)
        size = check_size("image_size", image_size)
        channels, self._own_head = look_into(backbone, size)
        self.backbone, self._has_suggested = backbone, False
        options: dict[str, Any] = {"attention": attention, "mlp_ratio": mlp_ratio}
        self.head = AttentionHead(channels, heads, num_classes, pool="mean" if pool is None else pool, **options)
        self.head.to(device_of(backbone), dtype_of(backbone, torch.get_default_dtype()))
        if self._copy_linear() and pool is None:
            self._copy_pooling(size)
        if freeze_backbone:
            backbone.requires_grad_(False).eval()
        else:
            self._switch_off_own_head()
            self.train()

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether no parameter of the backbone asks for a gradient."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's feature maps (B, C, h, w), on the device of the head, wherever the images are.

        PyTorch builds no graph for a frozen one, as nothing in it asks for a gradient. Forbidding it by ``no_grad``
        would save nothing more, and lose the gradients of images and hooked layers that attribution asks for.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise TypeError(f"images must be a float tensor, transformed as in training; got {got}")
        if self.backbone_is_frozen and any(part.training for part in self.backbone.modules()):
            self.backbone.eval()  # frozen by requires_grad, or put into training mode, after the last call of train()
        features: Tensor = feature_map(self.backbone, images.to(device_of(self.backbone, images.device)))
        return features.to(device_of(self.head))  # which may have been trained elsewhere, on features

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not self._has_suggested and not torch.compiler.is_compiling():
            self._suggest_feature_loader()
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """Return the attention weights on images, (B, heads, N, N) with N = h * w, in evaluation mode."""
        with evaluation_mode(self):
            return self.head.attention_maps(self.features(images))

    def train(self, mode: bool = True) -> HybridClassifier:
        """Switch the mode, but leave frozen parts of the backbone in evaluation mode: their statistics stand still."""
        super().train(mode)
        if mode:
            _evaluate_frozen(self.backbone)
        return self

    def unfreeze_backbone(self) -> None:
        """Let all of the backbone learn; optimizers made before do not know of it: see :meth:`parameter_groups`."""
        self.backbone.requires_grad_(True)
        self._switch_off_own_head()
        self.train(self.training)

    def parameter_groups(self, learning_rate: float, backbone_factor: float = 0.1) -> list[dict[str, Any]]:
        """Return what an optimizer is to train, without frozen parameters.

        Args:
            learning_rate: of the head.
            backbone_factor: the backbone's learning rate over that of the head.
        Raises:
            TypeError: if one is no number.
            ValueError: if one is below 0.
        """
        rate = check_number("learning_rate", learning_rate, 0)
        factor = check_number("backbone_factor", backbone_factor, 0)
        parts = ((self.head, rate), (self.backbone, rate * factor))
        groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in parts]
        return [group for group in groups if group["params"]]

    def _suggest_feature_loader(self) -> None:
        """Say once that hours may be seconds; whether the transform is fixed cannot be known here."""
        if self.backbone_is_frozen and torch.is_grad_enabled():
            self._has_suggested = True
            advice = "if the transform is fixed, train .head on data.FeatureLoader(loader, hybrid.features) instead"
            _log.warning("the frozen backbone computes the features of every batch anew; %s", advice)

    def _switch_off_own_head(self) -> None:
        """Freeze what no logit depends on, for whose gradient DistributedDataParallel would wait."""
        for part in self._own_parts():
            part.requires_grad_(False)

    def _own_parts(self) -> list[nn.Module]:
        return [part for name, part in self.backbone.named_children() if name in self._own_head]

    def _copy_linear(self) -> bool:
        """Start with the backbone's own linear map if its head is one, between dropouts perhaps, of the same shape.

        Tell whether it is.
        """
        linear, parts = self.head.linear, [layer for part in self._own_parts() for layer in part.modules()]
        layers = [layer for layer in parts if [*layer.parameters(recurse=False)]]
        own = [item for item in layers if isinstance(item, nn.Linear) and item.weight.shape == linear.weight.shape]
        if len(layers) != 1 or not own:
            level = logging.WARNING if layers else logging.INFO  # a head that was trained is left unused
            found = "one of its shape only behind other layers" if own else "none of its shape"
            _log.log(level, "the linear map behind the attention starts at random: the backbone has %s", found)
            return False
        with torch.no_grad():
            linear.weight.copy_(own[0].weight)
            linear.bias.copy_(torch.zeros_like(linear.bias) if own[0].bias is None else own[0].bias)
        return True

    @torch.no_grad()
    def _copy_pooling(self, image_size: tuple[int, int]) -> None:
        """Pool as the backbone does, which its logits tell: a zero image would give equal cells."""
        image = zero_image(self.backbone, image_size)
        if image.device.type == "meta":  # which holds no logits to compare
            return
        image = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(image)
        with evaluation_mode(self):
            features, errors = self.features(image), dict[str, float]()
            try:
                expected = self.backbone(image)
            except (
                AssertionError,
                IndexError,
                RuntimeError,
                TypeError,
                ValueError,
            ):  # its head may take another size of image
                expected = None
            if not isinstance(expected, Tensor):
                _log.warning("the classifier pools by the mean: %s gives no logits here", type(self.backbone).__name__)
                return
            for pool in ("mean", "max"):
                self.head.pool = pool
                errors[pool] = float((self.head(features) - expected).abs().max())
        self.head.pool = min(errors, key=errors.__getitem__)  # the mean if both are equal, as on a single cell
        if errors[self.head.pool] < 0.01 * float(expected.abs().max()):
            return
        advice = "its own pooling is neither a mean nor a maximum over the cells; the head has to learn the difference"
        _log.warning("the classifier starts with other logits than %s: %s", type(self.backbone).__name__, advice)


def _evaluate_frozen(part: nn.Module) -> None:
    """Put into evaluation mode what has parameters of which none asks for a gradient, as tasks do."""
    asking = [parameter.requires_grad for parameter in part.parameters()]
    if asking and not any(asking):
        part.eval()
        return
    for child in part.children():
        _evaluate_frozen(child)
