"""Architectures for small images, one a file."""

from cifarkit.models.attention import GraphAttention, SelfAttention, graph_attention, query_dependence
from cifarkit.models.dcgan import Discriminator, Generator
from cifarkit.models.hybrid import HybridClassifier
from cifarkit.models.patch import PatchEmbedding
from cifarkit.models.resnet import resample_stem, resnet18, resnet34
from cifarkit.models.speednet import SpeedNet
from cifarkit.models.unet import UNet
from cifarkit.models.vit import VisionTransformer

__all__ = [
    "Discriminator",
    "Generator",
    "GraphAttention",
    "HybridClassifier",
    "PatchEmbedding",
    "SelfAttention",
    "SpeedNet",
    "UNet",
    "VisionTransformer",
    "graph_attention",
    "query_dependence",
    "resample_stem",
    "resnet18",
    "resnet34",
]
