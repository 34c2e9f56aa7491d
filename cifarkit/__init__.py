"""Classify, generate and explain small images in plain PyTorch."""

__version__ = "0.1.0"
