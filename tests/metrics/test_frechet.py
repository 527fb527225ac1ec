"""Fréchet and kernel distances against their closed forms."""

import numpy as np
import pytest
from scipy import linalg

from diffjax.metrics import frechet_distance, kernel_distance, moments


def random_covariance(rng, size: int, rank: int) -> np.ndarray:
    root = rng.normal(size=(size, rank))
    return root @ root.T / rank


def test_moments_are_mean_and_unbiased_covariance():
    points = np.random.default_rng(0).normal(size=(50, 3))
    mean, covariance = moments(points.astype(np.float32))
    centred = points - points.mean(axis=0)
    np.testing.assert_allclose(mean, points.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(covariance, centred.T @ centred / 49, rtol=1e-5)
    assert mean.dtype == covariance.dtype == np.float64


def test_distance_of_diagonal_gaussians_is_that_of_their_deviations():
    mean1, mean2 = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    deviations1, deviations2 = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 0.25])
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((deviations1 - deviations2) ** 2)
    distance = frechet_distance(mean1, np.diag(deviations1**2), mean2, np.diag(deviations2**2))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_distance_agrees_with_the_square_root_of_the_product():
    rng = np.random.default_rng(1)
    first, second = random_covariance(rng, 6, 20), random_covariance(rng, 6, 20)
    root = linalg.sqrtm(first @ second)
    expected = np.trace(first + second - 2 * root.real)
    zero = np.zeros(6)
    assert frechet_distance(zero, first, zero, second) == pytest.approx(expected, rel=1e-9)


def test_distance_to_itself_is_zero_also_for_singular_covariances():
    covariance = random_covariance(np.random.default_rng(2), 40, 7)
    mean = np.arange(40.0)
    assert frechet_distance(mean, covariance, mean, covariance) < 1e-6 * np.trace(covariance)


def test_distance_is_symmetric_and_keeps_under_rotation():
    rng = np.random.default_rng(3)
    first, second = random_covariance(rng, 5, 9), random_covariance(rng, 5, 4)
    mean1, mean2 = rng.normal(size=(2, 5))
    rotation = linalg.qr(rng.normal(size=(5, 5)))[0]
    distance = frechet_distance(mean1, first, mean2, second)
    assert frechet_distance(mean2, second, mean1, first) == pytest.approx(distance, rel=1e-9)
    rotated = frechet_distance(
        rotation @ mean1,
        rotation @ first @ rotation.T,
        rotation @ mean2,
        rotation @ second @ rotation.T,
    )
    assert rotated == pytest.approx(distance, rel=1e-9)


def test_kernel_distance_is_the_mean_over_pairs():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    expected = within_x + within_y - 2 * between
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_has_mean_zero_for_equal_distributions():
    rng = np.random.default_rng(5)
    values = [kernel_distance(*rng.normal(size=(2, 30, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(400)
    assert kernel_distance(rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 1) > 0.5


def test_what_does_not_fit_is_refused():
    one, two = np.eye(1), np.eye(2)
    with pytest.raises(ValueError, match="do not fit together"):
        frechet_distance(np.zeros(2), two, np.zeros(1), one)
    with pytest.raises(ValueError, match="needs 2 or more"):
        moments(np.zeros([1, 3]))
    with pytest.raises(ValueError, match=r"expected \[N, D\]"):
        moments(np.zeros(3))
    with pytest.raises(ValueError, match="Features have shapes"):
        kernel_distance(np.zeros([4, 3]), np.zeros([4, 2]))
