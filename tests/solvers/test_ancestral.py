"""Ancestral sampling: where its variances are exact, and what it samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.levels import NoiseLevel, reverse_variances
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import sample
from diffjax.solvers.ancestral import ancestral, ancestral_update
from diffjax.transforms import clip_denoised

TABLE = schedules.linear_betas()
CENTRES = [[-0.8, 0.3], [0.9, 0.2], [0.1, -0.7]]
COVARIANCE = np.array([[0.02, 0.01], [0.01, 0.03]])
MIXTURE = exact.mixture([0.2, 0.5, 0.3], CENTRES, [COVARIANCE, 0.5 * COVARIANCE, COVARIANCE])


def pairs():
    """Neighbouring and distant levels, as a batch."""
    noisy, clean = np.array([999, 999, 500, 500, 10, 1]), np.array([998, 100, 499, 3, 9, 0])
    return TABLE(noisy), TABLE(clean)


def coefficients(variance, clean, **kwargs):
    """The update as x -> a x + b x0 + std noise, read off from the function itself."""
    current, next_ = pairs()
    zero, one = jnp.zeros((6, 1)), jnp.ones((6, 1))
    run = lambda x, x0, noise: np.asarray(
        ancestral_update(x, x0, noise, current, next_, variance=variance, **kwargs)
    )[:, 0]
    x0 = clean(current)[:, None]
    return current, next_, run(one, x0, zero), run(zero, zero, one)


def test_fixed_large_is_exact_for_standard_normal_data():
    # the perfect denoiser of N(0, I) returns alpha x; x stays N(0, I) at every level
    _, _, factor, std = coefficients("fixed_large", clean=lambda current: current.alpha)
    np.testing.assert_allclose(factor**2 + std**2, 1.0, rtol=1e-5)


def test_fixed_small_is_exact_for_data_that_is_a_point():
    # the perfect denoiser of a point at 0 returns 0; x is N(0, sigma^2) at every level
    zero = lambda current: jnp.zeros_like(current.alpha)
    current, next_, factor, std = coefficients("fixed_small", clean=zero)
    variance = (factor * current.sigma) ** 2 + std**2
    np.testing.assert_allclose(variance, np.square(next_.sigma), rtol=1e-4)


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_range_reaches_from_small_to_large(fraction, variance):
    args = jnp.ones((6, 1)), jnp.zeros((6, 1)), jnp.ones((6, 1)), *pairs()
    learned = ancestral_update(*args, variance="learned_range", fraction=jnp.full((6, 1), fraction))
    np.testing.assert_allclose(learned, ancestral_update(*args, variance=variance), rtol=1e-5)


def test_learned_range_interpolates_the_logarithm():
    current, next_ = pairs()
    small, large = reverse_variances(current, next_)
    zero = jnp.zeros((6, 1))
    std = ancestral_update(
        zero, zero, zero + 1.0, current, next_, variance="learned_range", fraction=zero + 0.5
    )
    np.testing.assert_allclose(std[:, 0] ** 2, np.sqrt(small * large), rtol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_full_chain_samples_a_mixture_within_four_standard_errors(variance):
    size, key = 2048, jax.random.key(0)
    x = jax.random.normal(jax.random.key(1), (size, 2))
    levels = TABLE(grids.full(1000))
    denoise, solver = exact.denoiser(MIXTURE), ancestral(variance)
    x = np.asarray(jax.jit(lambda x: sample(key, x, denoise, solver, levels))(x), np.float64)

    mean, covariance = (np.asarray(moment) for moment in exact.moments(MIXTURE))
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(np.diag(covariance) / size))
    products = np.einsum("nd,ne->nde", x - mean, x - mean)
    error = products.std(0) / np.sqrt(size)
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * error)
    # the modes are many standard deviations apart: the nearest centre is the component
    nearest = np.argmin(np.linalg.norm(x[:, None] - np.array(CENTRES), axis=-1), axis=1)
    weights, share = np.array([0.2, 0.5, 0.3]), np.bincount(nearest, minlength=3) / size
    assert np.all(np.abs(share - weights) < 4 * np.sqrt(weights * (1 - weights) / size))


def test_no_noise_is_added_in_the_step_to_clean_data():
    clean = NoiseLevel(jnp.array(-1), jnp.array(1.0), jnp.array(0.0))
    x0 = jnp.full((2, 3), 0.3)
    for variance in ("fixed_small", "fixed_large"):
        x = ancestral_update(x0, x0, jnp.full((2, 3), 9.0), TABLE(0), clean, variance=variance)
        np.testing.assert_allclose(x, x0, rtol=1e-6)


def test_clipped_denoiser_keeps_the_result_in_range():
    wild = clip_denoised(lambda x, level: 5.0 * x)
    levels = TABLE(grids.trailing(4, 1000))
    x = sample(jax.random.key(0), jnp.ones((16, 2)), wild, ancestral(), levels)
    assert np.max(np.abs(x)) <= 1.0


def test_errors_say_what_does_not_go_together():
    with pytest.raises(ValueError, match="fixed_small, fixed_large, learned_range"):
        ancestral("small")
    args = None, jnp.ones((1, 2))
    learned = lambda x, level: LearnedVariance(x, x)
    with pytest.raises(ValueError, match="make_learned_variance_denoiser"):
        ancestral().step(*args, (), learned, TABLE(1), TABLE(0))
    with pytest.raises(ValueError, match="make_learned_variance_denoiser"):
        ancestral("learned_range").step(*args, (), lambda x, level: x, TABLE(1), TABLE(0))
    with pytest.raises(ValueError, match="fraction"):
        ancestral_update(*[jnp.ones((1, 2))] * 3, TABLE(1), TABLE(0), variance="learned_range")
