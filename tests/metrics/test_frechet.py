"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest
from scipy import linalg

from diffjax.metrics import frechet_distance, moments


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


def test_samples_of_one_gaussian_are_apart_by_their_numbers():
    rng = np.random.default_rng(6)
    spectrum = np.array([1.0, 0.3, 2.0])
    pairs = np.outer(spectrum, spectrum) / np.add.outer(spectrum, spectrum)
    size = spectrum.sum() + 0.5 * (pairs.sum() + np.trace(pairs))
    draw = lambda count: moments(np.sqrt(spectrum) * rng.normal(size=(count, 3)))
    for first, second in ((100, 400), (80, 80)):
        distances = [frechet_distance(*draw(first), *draw(second)) for _ in range(200)]
        expected = size * (1 / first + 1 / second)
        error = np.std(distances) / np.sqrt(200)
        # what the expansion leaves out is smaller by a factor of the number of samples
        assert abs(np.mean(distances) - expected) < 4 * error + 5 * expected / min(first, second)


def test_what_does_not_fit_is_refused():
    one, two = np.eye(1), np.eye(2)
    with pytest.raises(ValueError, match="do not fit together"):
        frechet_distance(np.zeros(2), two, np.zeros(1), one)
    with pytest.raises(ValueError, match="needs 2 or more"):
        moments(np.zeros([1, 3]))
    with pytest.raises(ValueError, match=r"expected \[N, D\]"):
        moments(np.zeros(3))
