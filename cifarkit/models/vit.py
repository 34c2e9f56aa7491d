"""A vision transformer for small images, with graph attention or the classical one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer, check_number
from cifarkit.inference import evaluation_mode
from cifarkit.models.attention import GraphAttention, SelfAttention
from cifarkit.models.patch import PatchEmbedding

Attention = GraphAttention | SelfAttention
AttentionChoice = Literal["graph", "self"] | Callable[[int, int], Attention]


class Block(nn.Module):
    """Let nodes attend to each other and then think alone: pre-norm attention and MLP, each added to its input.

    Args:
        dim: length D of a node's vector.
        heads: number of attention heads.
        attention: "graph", "self", or a function of (dim, heads), as in ``partial(GraphAttention, dynamic=True)``.
        mlp_ratio: width of the MLP's hidden layer over dim; 0 leaves the MLP out.
        dropout: share of the numbers dropped behind attention and in the MLP, in [0, 1).
    Raises:
        TypeError: if a number is none, or attention makes something else.
        ValueError: if one is out of range, or attention is unknown.
    Shapes:
        (B, N, D) -> (B, N, D).
    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        attention: AttentionChoice = "graph",
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim, heads = check_integer("dim", dim, 1), check_integer("heads", heads, 1)
        hidden = round(check_number("mlp_ratio", mlp_ratio, 0) * dim)
        rate = check_number("dropout", dropout, 0, 1, below=True)
        self.norm = nn.LayerNorm(dim)
        self.attention = _build_attention(attention, dim, heads)
        self.dropout = nn.Dropout(rate)
        self.mlp = None if hidden == 0 else _mlp(dim, hidden, rate)

    def forward(self, nodes: Tensor) -> Tensor:
        nodes = nodes + self.dropout(self.attention(self.norm(nodes)))
        return nodes if self.mlp is None else nodes + self.mlp(nodes)

    def weights(self, nodes: Tensor) -> Tensor:
        """Return the attention weights (B, heads, N, N) on nodes (B, N, D); each row sums to 1."""
        return self.attention.weights(self.norm(nodes))

    def start_as_identity(self) -> None:
        """Set the last linear map of both branches to 0, so that nodes pass unchanged until training moves it."""
        ends = [self.attention.project] if self.mlp is None else [self.attention.project, self.mlp[-2]]
        for layer in ends:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


class VisionTransformer(nn.Module):
    """Classify images by letting their patches attend to each other.

    The class is read from the mean over all patches, which Beyer et al. 2022 (arXiv 2205.01580) found better than from
    an extra class token.

    Args:
        image_size, patch_size, channels: of :class:`PatchEmbedding`; image_size may be (height, width).
        dim, heads, attention, mlp_ratio, dropout: of each :class:`Block`; dropout also follows the embedding.
        depth: number of blocks.
        num_classes: number of logits K.
    Raises:
        TypeError: if a number is none.
        ValueError: if one is out of range, attention is unknown, or an image has another shape.
    Shapes:
        (B, C, H, W) -> (B, K) logits.
    Source: Dosovitskiy et al. 2020, section 3.1.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        num_classes: int = 10,
        attention: AttentionChoice = "graph",
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        depth, num_classes = check_integer("depth", depth, 1), check_integer("num_classes", num_classes, 1)
        self.embedding = PatchEmbedding(image_size, patch_size, dim, channels)
        self.positions = nn.Parameter(torch.empty(math.prod(self.embedding.grid), dim))  # (N, D)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0, 1, below=True))
        self.blocks = nn.ModuleList(
            Block(dim, heads, attention=attention, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        nodes = self._embed(images)
        for block in self.blocks:
            nodes = block(nodes)
        logits: Tensor = self.head(self.norm(nodes).mean(1))  # (B, N, D) -> (B, D) -> (B, K)
        return logits

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """Return every layer's attention weights on images, (depth, B, heads, N, N), in evaluation mode."""
        maps = []
        with evaluation_mode(self):
            nodes = self._embed(images)
            for block in self.blocks:
                assert isinstance(block, Block)
                maps.append(block.weights(nodes))
                nodes = block(nodes)
        return torch.stack(maps)

    def _embed(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.embedding(images) + self.positions)
        return embedded

    def _initialise(self) -> None:
        """Start as published: small truncated normals, so that every block begins near the identity."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        patches = self.embedding.project
        nn.init.trunc_normal_(patches.weight, std=patches.weight[0].numel() ** -0.5)  # keeps the scale of the pixels
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _mlp(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, dim),
        nn.Dropout(dropout),
    )


def _build_attention(choice: AttentionChoice, dim: int, heads: int) -> Attention:
    if isinstance(choice, nn.Module):
        kind = type(choice).__name__
        raise TypeError(f"attention is a {kind}, but every block needs one of its own; give 'graph', 'self' or a class")
    if callable(choice):
        attention = choice(dim, heads)
        ours = callable(getattr(attention, "weights", None)) and isinstance(
            getattr(attention, "project", None), nn.Module
        )
        if not (isinstance(attention, nn.Module) and ours):
            kind = type(attention).__name__
            raise TypeError(f"attention made a {kind}; give a function that makes a GraphAttention or SelfAttention")
        return attention
    if choice == "graph":
        return GraphAttention(dim, heads)
    if choice == "self":
        return SelfAttention(dim, heads)
    raise ValueError(f"attention={choice!r} is unknown; use 'graph', 'self' or a function of (dim, heads)")
