"""Figures of quality against closed forms and against loops that spell the formulas out."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.generation import density_coverage, distances, frechet_distance, kernel_distance, precision_recall
from cifarkit.generation.distances import neighbour_radii, squared_distances


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Tensor:
    """Points whose sample mean and covariance are exactly these."""
    points = normal(count, len(mean), seed=seed)
    points = points - points.mean(0)
    root = torch.linalg.cholesky(points.T @ points / (count - 1))
    return points @ torch.linalg.inv(root).T @ torch.linalg.cholesky(covariance).T + mean


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def positive(size: int, seed: int) -> Tensor:
    factor = normal(size, size, seed=seed)
    return factor @ factor.T + 0.1 * torch.eye(size)


# Fréchet distance.


def test_frechet_of_commuting_covariances_is_the_distance_of_their_roots() -> None:
    first, second = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 16.0]).double()
    basis = torch.linalg.qr(normal(3, 3, seed=5)).Q
    shift = torch.tensor([1.0, 2.0, 2.0]).double()
    real = with_moments(50, torch.zeros(3).double(), basis * first @ basis.T)
    fake = with_moments(70, shift, basis * second @ basis.T, seed=1)
    assert frechet_distance(real, fake) == pytest.approx(9 + 1 + 1 + 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_frechet_is_the_published_formula(size: int, seed: int) -> None:
    one, other, means = positive(size, seed), positive(size, seed + 1), normal(2, size, seed=seed)
    half = root(one)
    trace = (one + other - 2 * root(half @ other @ half)).diagonal().sum()
    expected = (means[0] - means[1]).square().sum() + trace
    got = frechet_distance(with_moments(30, means[0], one), with_moments(40, means[1], other, seed=seed + 3))
    assert got == pytest.approx(expected.item(), rel=1e-8, abs=1e-8)


def test_frechet_of_a_set_with_itself_is_zero_also_with_few_images() -> None:
    for count in (2, 5, 300):
        points = normal(count, 20)
        assert frechet_distance(points, points) == pytest.approx(0, abs=1e-10)


def test_frechet_of_few_images_is_that_of_their_singular_covariances() -> None:
    one, other = normal(4, 9), normal(6, 9, seed=1)
    half = root(one.T.cov())
    trace = (one.T.cov() + other.T.cov() - 2 * root(half @ other.T.cov() @ half)).diagonal().sum()
    expected = (one.mean(0) - other.mean(0)).square().sum() + trace
    assert frechet_distance(one, other) == pytest.approx(expected.item(), abs=1e-6)


def test_frechet_takes_any_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = normal(90, 7), 2 * normal(80, 7, seed=1)
    whole = frechet_distance(one, other)
    monkeypatch.setattr("cifarkit.generation.quality._ROWS", 10)
    assert frechet_distance(one, other) == pytest.approx(whole, rel=1e-12)


def test_frechet_does_not_move_with_a_common_shift_in_float32() -> None:
    one, other = normal(200, 5).float(), normal(200, 5, seed=1).float()
    assert frechet_distance(one + 1000, other + 1000) == pytest.approx(frechet_distance(one, other), rel=1e-2)


# Kernel distance.


def by_loops(real: Tensor, fake: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> float:
        return ((x * y).sum().item() / len(x) + 1) ** 3

    def within(points: Tensor) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in real for y in fake]
    return within(real) + within(fake) - 2 * sum(across) / len(across)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 5), st.integers(1, 7))
def test_kernel_distance_is_the_double_loop(real: int, fake: int, size: int, block: int) -> None:
    one, other = normal(real, size), normal(fake, size, seed=1) + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_BLOCK_VALUES", block)
        assert kernel_distance(one, other) == pytest.approx(by_loops(one, other), rel=1e-9, abs=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    same = torch.tensor([kernel_distance(normal(20, 3, seed=2 * i), normal(20, 3, seed=2 * i + 1)) for i in range(300)])
    assert abs(same.mean()) < 4 * same.std() / math.sqrt(len(same))
    assert (same < 0).any()
    assert kernel_distance(normal(200, 3), normal(200, 3, seed=1) + 1) > 1


# Precision, recall, density, coverage.


def shares_by_loops(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    def radii(points: Tensor) -> list[float]:
        return [sorted((x - y).norm().item() for y in points)[k] for x in points]

    def inside(points: Tensor, others: Tensor) -> float:
        reach = radii(others)
        return sum(any((x - y).norm() <= r for y, r in zip(others, reach, strict=True)) for x in points) / len(points)

    hits = [[((x - y).norm() < r).item() for y in fake] for x, r in zip(real, radii(real), strict=True)]
    density = sum(map(sum, hits)) / (k * len(fake))
    return inside(fake, real), inside(real, fake), density, sum(map(any, hits)) / len(real)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(5, 12), st.integers(5, 12), st.integers(1, 40), st.integers(0, 99))
def test_shares_are_those_of_the_loops(k: int, real: int, fake: int, block: int, seed: int) -> None:
    one, other = normal(real, 2, seed=seed), normal(fake, 2, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_BLOCK_VALUES", block)
        got = (*precision_recall(one, other, k=k), *density_coverage(one, other, k=k))
    assert got == pytest.approx(shares_by_loops(one, other, k))


def test_a_generator_of_one_mode_is_precise_and_recalls_half() -> None:
    real = torch.cat([normal(100, 2), normal(100, 2, seed=1) + 50])
    shares = precision_recall(real, normal(200, 2, seed=2))
    assert shares.precision > 0.9
    assert 0.4 < shares.recall <= 0.5
    assert 0.4 < density_coverage(real, normal(200, 2, seed=2)).coverage <= 0.5


def test_equal_distributions_have_density_1_and_the_published_coverage() -> None:
    one, other = normal(1500, 2), normal(1500, 2, seed=1)
    density, coverage = density_coverage(one, other, k=3)
    assert density == pytest.approx(1, abs=0.08)
    assert coverage == pytest.approx(1 - 2**-3, abs=0.05)


def test_a_point_is_not_its_own_neighbour() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [3.0]]).double()
    assert neighbour_radii(points, 1).tolist() == [1, 1, 0, 0]
    assert neighbour_radii(points, 2).tolist() == [9, 4, 4, 4]


def test_squared_distances_are_never_negative() -> None:
    points = normal(50, 3) + 1e6
    assert (squared_distances(points, points) >= 0).all()
    assert squared_distances(torch.eye(2), torch.zeros(1, 2)).tolist() == [[1], [1]]


@pytest.mark.parametrize("figure", [frechet_distance, kernel_distance, precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("real", "fake", "error", "message"),
    [
        ([[1.0]], normal(9, 2), TypeError, r"real must be a float tensor \(N, D\), got list"),
        (normal(9, 2), torch.ones(9, 2).long(), TypeError, "fake must be a float tensor .* got torch.int64"),
        (normal(9, 2, 2, 2), normal(9, 2), ValueError, r"real has shape \(9, 2, 2, 2\); it must be \(N, D\)"),
        (normal(1, 2), normal(9, 2), ValueError, r"real has shape \(1, 2\); it must be \(N, D\), N at least"),
        (normal(9, 2), normal(9, 2) * math.nan, ValueError, "fake hold NaN or infinite values"),
        (normal(9, 2), normal(9, 3), ValueError, "real has D=2 and fake D=3; take both from one network"),
    ],
)
def test_wrong_features_are_refused(figure: Any, real: Any, fake: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        figure(real, fake)


@pytest.mark.parametrize("figure", [precision_recall, density_coverage])
def test_too_many_neighbours_are_refused(figure: Any) -> None:
    with pytest.raises(ValueError, match=r"real has shape .* N at least 10"):
        figure(normal(9, 2), normal(9, 2), k=9)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        figure(normal(9, 2), normal(9, 2), k=0)


def test_a_single_generated_image_has_a_density_and_a_coverage() -> None:
    real = normal(20, 2)
    density, coverage = density_coverage(real, real[:1], k=3)
    assert density > 0
    assert coverage == pytest.approx(density * 3 / 20)  # both count the neighbourhoods that hold it


def test_arrays_are_features_too() -> None:
    real, fake = normal(20, 3), normal(20, 3, seed=1)
    assert frechet_distance(real.numpy(), fake.numpy()) == frechet_distance(real, fake)
    assert kernel_distance(real.numpy(), fake) == kernel_distance(real, fake)
