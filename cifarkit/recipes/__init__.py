"""Whole trainings by name: what is trained, on what images, at what rates, for how long."""

from cifarkit.recipes.ddpm import DDPM, DiffusionRecipe
from cifarkit.recipes.speed import SPEEDRUN, TINY, UNSURE, SpeedRecipe, normalized_sample, to_zero

__all__ = [
    "DDPM",
    "SPEEDRUN",
    "TINY",
    "UNSURE",
    "DiffusionRecipe",
    "SpeedRecipe",
    "normalized_sample",
    "to_zero",
]
