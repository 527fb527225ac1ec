"""Guidance by a loss, where the loss is quadratic and everything has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import LearnedVariance
from diffjax.transforms import (
    backward_guidance,
    classifier_guidance,
    forward_guidance,
    match_statistics,
    patch_statistics,
)

ALPHA, SIGMA, MEAN, VARIANCE = 0.6, 0.8, np.array([0.4, -0.2]), 0.3
LEVEL = NoiseLevel(*jnp.array([0.5, ALPHA, SIGMA]))
X = jax.random.normal(jax.random.key(0), (4, 2))
WANTED = jnp.array([1.0, -1.0])


@jax.jit
def denoise(x, level):
    """Of N(MEAN, VARIANCE I)."""
    alpha, sigma = (jnp.reshape(leaf, (-1, 1)) for leaf in (level.alpha, level.sigma))
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


@jax.jit
def forward(x, level, strength):
    return forward_guidance(denoise, quadratic, strength=strength)(x, level)


def quadratic(x0):
    return 0.5 * jnp.sum((x0 - WANTED) ** 2, axis=-1)


def test_forward_guidance_of_a_gaussian_by_a_quadratic_loss():
    x0 = denoise(X, LEVEL)
    slope = ALPHA * VARIANCE / (ALPHA**2 * VARIANCE + SIGMA**2)  # of the denoiser
    for strength in (0.0, 2.0):
        expected = x0 - strength * SIGMA**2 / ALPHA * slope * (x0 - WANTED)
        result = forward(X, LEVEL, strength)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_forward_guidance_is_classifier_guidance_by_the_estimate():
    log_prob = lambda x, level: -quadratic(denoise(x, level))
    expected = classifier_guidance(denoise, log_prob, guidance_scale=1.7)(X, LEVEL)
    result = forward(X, LEVEL, 1.7)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_forward_guidance_is_finite_at_both_ends():
    ends = NoiseLevel(
        *jnp.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    )
    result = forward(X, ends, 1.0)
    np.testing.assert_allclose(result[2:], X[2:], rtol=1e-6)
    np.testing.assert_allclose(result[:2], jnp.broadcast_to(MEAN, (2, 2)), rtol=1e-6)


@jax.jit
def backward(x, level, num_steps, step_size):
    guided = backward_guidance(denoise, quadratic, num_steps=num_steps, step_size=step_size)
    return guided(x, level)


@pytest.mark.parametrize(("steps", "size"), [(1, 0.3), (5, 0.3), (3, 1.0), (4, 0.0)])
def test_backward_guidance_shrinks_the_distance_by_the_same_factor_in_each_step(steps, size):
    result = backward(X, LEVEL, steps, size)
    expected = WANTED + (1.0 - size) ** steps * (denoise(X, LEVEL) - WANTED)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("guidance", [forward_guidance, backward_guidance])
def test_learned_variance_passes_and_losses_of_a_wrong_shape_do_not(guidance):
    learned = lambda x, level: LearnedVariance(denoise(x, level), 0.3 * x)
    result = guidance(learned, quadratic)(X, LEVEL)
    np.testing.assert_allclose(result.x0, guidance(denoise, quadratic)(X, LEVEL), rtol=1e-6)
    np.testing.assert_array_equal(result.fraction, 0.3 * X)
    with pytest.raises(ValueError, match=r"loss returned the shape \(\) for 4 samples"):
        guidance(denoise, jnp.sum)(X, LEVEL)


def test_patch_statistics_are_the_mean_and_covariance_of_all_patches():
    image = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (2, 2), axis=(1, 2))
    for picture, result in zip(windows, patch_statistics(jnp.asarray(image), size=2)):
        patches = picture.transpose(0, 1, 4, 3, 2).reshape(-1, 8)  # columns, rows, channels
        covariance = np.cov(patches, rowvar=False, bias=True)
        expected = np.concatenate([patches.mean(0), covariance.ravel()])
        np.testing.assert_allclose(np.sort(result), np.sort(expected), atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((2, 4), 1), ((2, 5, 2, 1), 3), ((2, 5, 5, 1), 0)])
def test_patches_that_do_not_fit_are_refused(shape, size):
    with pytest.raises(ValueError, match="needed are images"):
        patch_statistics(jnp.ones(shape), size=size)


def test_statistics_match_where_they_are_equal():
    image = jax.random.normal(jax.random.key(1), (2, 5, 6, 1))
    loss = match_statistics(patch_statistics, patch_statistics(image)[0])
    values = loss(image)
    assert values.shape == (2,)
    assert values[0] == 0.0 < values[1]
