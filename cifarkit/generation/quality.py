"""How near generated images are to real ones, as figures that say how they were measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cifarkit.checks import check_integer
from cifarkit.generation.distances import blocks, check_features, check_pair, neighbour_radii, squared_distances

_ROWS = 4096  # rows of a block whose triangular factor is taken


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of generated images that look real, and of real images that the generator covers."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many real neighbourhoods hold a generated image, over k; share of real images with one in theirs."""

    density: float
    coverage: float


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared Fréchet distance of two normal distributions fitted to features.

    It is not an unbiased estimate: the fewer the images, the larger it is, also between real images. Compare only
    values of one network and one number of images, and with the floor that :func:`score` gives.

    Args:
        real, fake: features (N, D) and (M, D), at least 2 of each; computed in float64.
    Raises:
        TypeError: if one is no float tensor.
        ValueError: if a shape or a value is wrong.
    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule", section 1; Dowson and Landau 1982.
    """
    real, fake = check_pair(real, fake, least=2)
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    one, other = _root_factor(real), _root_factor(fake)
    # The trace of the root of C1 C2 is the sum of the singular values of A B^T, where C1 = A^T A and C2 = B^T B. It
    # needs no root of a matrix that is not symmetric, and rounding cannot make it complex.
    overlap = torch.linalg.svdvals(one @ other.T).sum()
    distance: float = (shift + one.square().sum() + other.square().sum() - 2 * overlap).item()
    return max(distance, 0.0)  # below it by rounding only


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared maximum mean discrepancy with the kernel (x y / D + 1)^3, over all pairs, unbiased.

    Its mean does not depend on the number of images, and for equal distributions is 0, so that it may be negative.

    Args:
        real, fake: features (N, D) and (M, D), at least 2 of each; computed in float64.
    Raises:
        TypeError: if one is no float tensor.
        ValueError: if a shape or a value is wrong.
    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    real, fake = (points / points.shape[1] ** 0.5 for points in check_pair(real, fake, least=2))
    within = sum(_kernel_sum(points, points, own=True) / (len(points) * (len(points) - 1)) for points in (real, fake))
    return within - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Return the shares of generated images among real ones, and of real images among generated ones.

    A point is among others if it is in a ball around one of them that reaches to that one's k-th nearest neighbour.

    Args:
        real, fake: features (N, D) and (M, D), more than k of each; equal numbers make both shares comparable.
        k: neighbours.
    Raises:
        TypeError: if one is no float tensor.
        ValueError: if a shape, a value or k is wrong.
    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric", equations 1 and 2.
    """
    k = check_integer("k", k, 1)
    real, fake = check_pair(real, fake, least=k + 1)
    return PrecisionRecall(_share_inside(fake, real, k), _share_inside(real, fake, k))


def density_coverage(real: Tensor, fake: Tensor, *, k: int = 5) -> DensityCoverage:
    """Return density and coverage, which outliers among the images sway less than precision and recall.

    For equal distributions the density is 1 and the coverage 1 - 2^-k, for as many generated as real images.

    Args:
        real: features (N, D), more than k.
        fake: features (M, D).
        k: neighbours.
    Raises:
        TypeError: if one is no float tensor.
        ValueError: if a shape, a value or k is wrong.
    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics", equations 4 and 5.
    """
    k = check_integer("k", k, 1)
    check_features("real", real, least=k + 1)
    real, fake = check_pair(real, fake)
    radii, inside, covered = neighbour_radii(real, k), 0, 0
    for part in blocks(len(real), len(fake)):
        hits = squared_distances(real[part], fake) < radii[part, None]  # (n, M)
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
    return DensityCoverage(inside / (k * len(fake)), covered / len(real))


def _root_factor(points: Tensor) -> Tensor:
    """Return A (D, D) or (N, D) with A^T A the covariance of points (N, D)."""
    mean, factor = points.mean(0), points[:0]
    for part in torch.split(points, max(_ROWS, points.shape[1])):
        rows = torch.cat([factor, part - mean])
        factor = torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows
    scaled: Tensor = factor / (len(points) - 1) ** 0.5
    return scaled


def _kernel_sum(rows: Tensor, columns: Tensor, *, own: bool = False) -> float:
    """Add the kernel over all pairs; with own, over the pairs of different points of one set."""
    total = 0.0
    for part in blocks(len(rows), len(columns)):
        total += _kernel(rows[part] @ columns.T).sum().item()
    return total - _kernel(rows.square().sum(1)).sum().item() if own else total


def _kernel(products: Tensor) -> Tensor:
    return products.add_(1).pow_(3)


def _share_inside(points: Tensor, others: Tensor, k: int) -> float:
    """Return the share of points that are inside a ball around one of the others."""
    radii, inside = neighbour_radii(others, k), 0
    for part in blocks(len(points), len(others)):
        inside += int((squared_distances(points[part], others) <= radii).any(1).sum())
    return inside / len(points)
