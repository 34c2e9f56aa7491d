"""Explanations: which pixels made the model say so, how they are looked at, and how far to trust them."""

from cifarkit.attribution.faithfulness import FaithfulnessCurve, completeness_error, deletion_curve, insertion_curve
from cifarkit.attribution.localization import Localization, localization
from cifarkit.attribution.maps import heatmap, overlay, signed_heatmap, visible_images
from cifarkit.attribution.methods import METHODS, attribute
from cifarkit.attribution.randomization import RandomizationCheck, randomization_check
from cifarkit.attribution.ranks import rank_correlation
from cifarkit.attribution.robustness import infidelity, sensitivity
from cifarkit.attribution.rollout import attention_rollout, rollout

__all__ = [
    "METHODS",
    "FaithfulnessCurve",
    "Localization",
    "RandomizationCheck",
    "attention_rollout",
    "attribute",
    "completeness_error",
    "deletion_curve",
    "heatmap",
    "infidelity",
    "insertion_curve",
    "localization",
    "overlay",
    "randomization_check",
    "rank_correlation",
    "rollout",
    "sensitivity",
    "signed_heatmap",
    "visible_images",
]
