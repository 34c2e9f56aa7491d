"""Images out: datasets of generated images, their quality, and whether they are copies."""

from cifarkit.generation.audit import Copies, CopyCheck, check_copies, nearest_copies
from cifarkit.generation.export import generate_dataset, weights_hash
from cifarkit.generation.extractors import features, inception
from cifarkit.generation.folder import read_generated
from cifarkit.generation.keeps import KeepAll, KeepConfident, KeepNew
from cifarkit.generation.noise import SampleGenerators, image_generator
from cifarkit.generation.quality import density_coverage, frechet_distance, kernel_distance, precision_recall
from cifarkit.generation.report import Score, score

__all__ = [
    "Copies",
    "CopyCheck",
    "KeepAll",
    "KeepConfident",
    "KeepNew",
    "SampleGenerators",
    "Score",
    "check_copies",
    "density_coverage",
    "features",
    "frechet_distance",
    "generate_dataset",
    "image_generator",
    "inception",
    "kernel_distance",
    "nearest_copies",
    "precision_recall",
    "read_generated",
    "score",
    "weights_hash",
]
