"""Spherical interpolation, by the geometry that it claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.interpolation import slerp

A, B = jax.random.normal(jax.random.key(0), (2, 5, 4, 3, 1))
run = jax.jit(slerp)


def rows(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def angle(a, b):
    a, b = rows(a), rows(b)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.arccos(np.clip(cosine, -1.0, 1.0))


def test_ends_are_the_latents():
    np.testing.assert_allclose(run(A, B, 0.0), A, atol=1e-5)
    np.testing.assert_allclose(run(A, B, 1.0), B, atol=1e-5)


def test_angle_and_length_grow_evenly_and_each_sample_has_its_weight():
    weight = jnp.array([0.0, 0.2, 0.5, 0.7, 1.0])
    x = run(A, B, weight)
    np.testing.assert_allclose(angle(A, x)[1:], (weight * angle(A, B))[1:], atol=1e-5)
    np.testing.assert_allclose(angle(x, B)[:-1], ((1 - weight) * angle(A, B))[:-1], atol=1e-5)
    ends = [np.linalg.norm(rows(end), axis=1) for end in (A, B)]
    expected = (1 - weight) * ends[0] + weight * ends[1]
    np.testing.assert_allclose(np.linalg.norm(rows(x), axis=1), expected, rtol=1e-5)


def test_mean_of_gaussian_latents_keeps_their_variance():
    a, b = jax.random.normal(jax.random.key(1), (2, 50, 400))
    middle = run(a, b, 0.5)
    # the variance of a sample variance is 2 / n
    assert abs(np.var(middle) - 1.0) < 4 * (2 / 20_000) ** 0.5
    assert np.var(0.5 * (a + b)) < 0.6


@pytest.mark.parametrize("scale", [1.0, 3.0, 1.0 + 1e-6])
def test_parallel_latents_are_interpolated_straight(scale):
    np.testing.assert_allclose(run(A, scale * A, 0.25), (0.75 + 0.25 * scale) * A, rtol=1e-4)


def test_between_antipodes_the_length_is_kept_and_both_ends_are_reached():
    for weight in (0.0, 0.3, 0.5, 1.0):
        x = run(A, -A, weight)
        norms = (np.linalg.norm(rows(each), axis=1) for each in (x, A))
        np.testing.assert_allclose(*norms, rtol=1e-4)
        np.testing.assert_allclose(angle(A, x), weight * np.pi, atol=1e-3)
    np.testing.assert_allclose(run(A, -A, 1.0), -A, atol=1e-4)


def test_gradients_are_finite_everywhere():
    total = lambda a, b: jnp.sum(slerp(a, b, 0.3) ** 2 + slerp(a, b, 0.3))
    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    for b in (B, A, -A, 0 * A):
        assert all(np.all(np.isfinite(leaf)) for leaf in gradient(A, b))


def test_latents_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        slerp(A, B[:, :2], 0.5)
