"""Kernel distances against brute force and closed forms."""

import numpy as np
import pytest

from diffjax.metrics import gaussian, kernel_distance


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


def test_the_gaussian_kernel_tells_gaussians_apart_by_their_closed_form():
    """E k = (s^2 / (s^2 + v))^(D / 2) exp(-|m|^2 / (2 (s^2 + v))) for differences N(m, v I)."""
    rng = np.random.default_rng(7)
    std, shift, dims = 1.5, np.array([1.0, 0.0, -0.5]), 3
    expectation = lambda m, v: (
        (std**2 / (std**2 + v)) ** (dims / 2) * np.exp(-np.sum(m**2) / (2 * (std**2 + v)))
    )
    variances = 1.0, 0.25
    within = sum(expectation(0.0 * shift, 2 * variance) for variance in variances)
    expected = within - 2 * expectation(shift, sum(variances))
    draw = lambda: (rng.normal(size=(40, dims)), shift + 0.5 * rng.normal(size=(40, dims)))
    values = [kernel_distance(*draw(), kernel=gaussian(std)) for _ in range(200)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(200)


def test_features_that_differ_in_length_are_refused():
    with pytest.raises(ValueError, match="Features have shapes"):
        kernel_distance(np.zeros([4, 3]), np.zeros([4, 2]))
