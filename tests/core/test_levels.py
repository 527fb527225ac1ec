"""The Gaussian kernels between levels, from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import schedules
from diffjax.core.levels import (
    NoiseLevel,
    add_noise,
    expand,
    interpolate_variance,
    logsnr,
    q_posterior,
    q_step,
    reverse_variances,
    safe_sqrt,
    transition,
)

BETAS = np.linspace(1e-4, 0.02, 1000)
TABLE = schedules.from_betas(BETAS)
ALPHAS_CUMPROD = np.cumprod(1.0 - BETAS)

CLEAN = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(0.0))
MIDDLE = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
PURE_NOISE = NoiseLevel(jnp.array(1.0), jnp.array(0.0), jnp.array(1.0))


def test_chained_q_steps_have_the_moments_of_the_closed_form():
    # every step as x -> scale x + std eps, read off from the function itself
    current, next_ = TABLE(np.arange(-1, 999)), TABLE(np.arange(1000))
    zero, one = jnp.zeros((1000, 1)), jnp.ones((1000, 1))
    scale = np.asarray(q_step(one, zero, current, next_), np.float64)[:, 0]
    std = np.asarray(q_step(zero, one, current, next_), np.float64)[:, 0]
    mean, variance = 1.0, 0.0
    for t in range(1000):
        mean, variance = scale[t] * mean, scale[t] ** 2 * variance + std[t] ** 2
        np.testing.assert_allclose(mean, TABLE.alpha[t + 1], rtol=1e-4)
        np.testing.assert_allclose(variance, TABLE.sigma[t + 1] ** 2, rtol=1e-4)


def run_chain(x0, num_steps):
    def body(t, carry):
        x, key = carry
        key, draw = jax.random.split(key)
        eps = jax.random.normal(draw, x.shape)
        return q_step(x, eps, TABLE(t - 1), TABLE(t)), key

    x, _ = jax.lax.fori_loop(0, num_steps, body, (x0, jax.random.key(0)))
    return x


def test_sampled_chain_agrees_with_add_noise_within_four_standard_errors():
    size, num_steps = 8192, 200
    x = np.asarray(jax.jit(run_chain, static_argnums=1)(jnp.full((size, 1), 0.7), num_steps))
    level = TABLE(num_steps - 1)
    mean = float(add_noise(jnp.full((1, 1), 0.7), jnp.zeros((1, 1)), level)[0, 0])
    assert abs(x.mean() - mean) < 4 * level.sigma / size**0.5
    # the variance of a sample variance is 2 sigma^4 / n
    assert abs(x.var() - level.sigma**2) < 4 * level.sigma**2 * (2 / size) ** 0.5


def test_end_of_the_linear_chain_is_an_isotropic_gaussian_to_its_terminal_snr():
    size = 4096
    data = np.random.default_rng(0).choice([[-1.0, 1.0, 0.5], [1.0, 1.0, 0.5]], size)
    x = np.asarray(jax.jit(run_chain, static_argnums=1)(jnp.asarray(data, jnp.float32), 1000))
    snr = np.exp(float(logsnr(TABLE(999))))
    assert snr < 1e-4
    # |mean| <= alpha |x0| and |covariance - I| <= alpha^2 (|covariance of x0| + 1)
    assert np.all(np.abs(x.mean(0)) < np.sqrt(snr) + 4 / size**0.5)
    covariance = np.cov(x.T)
    assert np.all(np.abs(covariance - np.eye(3)) < 2 * snr + 4 * np.sqrt(2 / size))
    for coordinate in x.T:
        # 1.95 is the 0.1 % point of Kolmogorov's distribution
        assert stats.kstest(coordinate, stats.norm.cdf).statistic < 1.95 / size**0.5 + snr**0.5


@pytest.mark.parametrize("exploding", [False, True])
def test_q_posterior_is_bayes_rule(x64, exploding):
    """Complete the square of log q(x_s | x0) + log q(x_t | x_s) numerically."""
    t, s = np.array([999, 999, 600, 599, 20, 1]), np.array([998, 3, 599, 2, 19, 0])
    # a new table: JAX remembers the dtype that an array had when it was first traced
    table = schedules.from_betas(BETAS)
    current, next_ = table(t), table(s)
    if exploding:
        current, next_ = (
            NoiseLevel(level.t, jnp.ones_like(level.alpha), level.sigma / level.alpha)
            for level in (current, next_)
        )
    alpha_t, sigma_t, alpha_s, sigma_s = map(
        np.asarray, (current.alpha, current.sigma, next_.alpha, next_.sigma)
    )
    x, x0 = 0.7, -0.4
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2

    def log_density(x_s):
        prior = -0.5 * (x_s - alpha_s * x0) ** 2 / sigma_s**2
        return prior - 0.5 * (x - alpha_ts * x_s) ** 2 / variance_ts

    left, centre, right = (log_density(value) for value in (-1.0, 0.0, 1.0))
    precision = 2.0 * centre - left - right
    mean, variance = q_posterior(jnp.full((6, 1), x), jnp.full((6, 1), x0), current, next_)
    np.testing.assert_allclose(variance[:, 0], 1.0 / precision, rtol=1e-8)
    np.testing.assert_allclose(mean[:, 0], 0.5 * (right - left) / precision, rtol=1e-8)


def test_small_and_large_variances_are_those_of_ddpm_in_float32():
    t = np.arange(1, 1000)
    small, large = reverse_variances(TABLE(t), TABLE(t - 1))
    np.testing.assert_allclose(large, BETAS[1:], rtol=1e-4)
    ratio = (1.0 - ALPHAS_CUMPROD[:-1]) / (1.0 - ALPHAS_CUMPROD[1:])
    np.testing.assert_allclose(small, ratio * BETAS[1:], rtol=1e-4)
    small, large = reverse_variances(TABLE(0), TABLE(-1))
    assert small == 0.0
    np.testing.assert_allclose(large, BETAS[0], rtol=1e-5)


def test_posterior_variance_is_the_small_one():
    _, variance = q_posterior(jnp.ones((3, 2)), jnp.ones((3, 2)), TABLE(500), TABLE(200))
    np.testing.assert_array_equal(variance, reverse_variances(TABLE(500), TABLE(200))[0])


def test_equal_levels_mean_no_step():
    x = jnp.array([[0.3, -2.0]])
    for level in (CLEAN, MIDDLE):
        np.testing.assert_array_equal(q_step(x, jnp.ones_like(x), level, level), x)
        mean, variance = q_posterior(x, 0.0 * x, level, level)
        np.testing.assert_allclose(mean, x, rtol=1e-6)
        assert variance == 0.0


@pytest.mark.parametrize(
    ("current", "next_"), [(PURE_NOISE, MIDDLE), (MIDDLE, CLEAN), (PURE_NOISE, CLEAN)]
)
def test_kernels_and_their_gradients_are_finite_at_the_ends(current, next_):
    x, x0 = jnp.array([[0.3, -2.0]]), jnp.array([[0.1, 0.4]])

    def everything(x, x0, current, next_):
        mean, variance = q_posterior(x, x0, current, next_)
        down = jnp.sum(mean**2) + jnp.sum(safe_sqrt(variance))
        return down + jnp.sum(q_step(x0, x, next_, current) ** 2)

    value, gradients = jax.value_and_grad(everything, argnums=(0, 1, 2, 3))(x, x0, current, next_)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_step_to_clean_data_has_the_estimate_as_its_mean():
    x, x0 = jnp.array([[0.3, -2.0]]), jnp.array([[0.1, 0.4]])
    mean, variance = q_posterior(x, x0, MIDDLE, CLEAN)
    np.testing.assert_allclose(mean, x0, rtol=1e-6)
    assert variance == 0.0


def test_transition_from_clean_data_is_the_level_itself():
    scale, variance = transition(MIDDLE, CLEAN)
    np.testing.assert_allclose([scale, variance], [0.6, 0.64], rtol=1e-6)
    scale, variance = transition(PURE_NOISE, MIDDLE)
    np.testing.assert_allclose([scale, variance], [0.0, 1.0], rtol=1e-6)


def test_each_sample_of_a_batch_has_its_own_level():
    levels = jax.tree.map(lambda *leaves: jnp.stack(leaves), CLEAN, MIDDLE, PURE_NOISE)
    x0, eps = jnp.full((3, 2, 2, 1), 2.0), jnp.full((3, 2, 2, 1), -1.0)
    x = add_noise(x0, eps, levels)
    np.testing.assert_allclose(x[:, 1, 0, 0], [2.0, 0.6 * 2.0 - 0.8, -1.0], rtol=1e-6)
    assert expand(jnp.array(1.0), x0).shape == ()


def test_logsnr_is_infinite_at_the_ends():
    np.testing.assert_allclose(logsnr(MIDDLE), 2 * np.log(0.6 / 0.8), rtol=1e-6)
    assert logsnr(CLEAN) == np.inf
    assert logsnr(PURE_NOISE) == -np.inf


def test_interpolated_variance_is_geometric():
    log_variance = interpolate_variance(jnp.log(0.01), jnp.log(0.04), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(jnp.exp(log_variance), [0.01, 0.02, 0.04], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: add_noise(x, x, jnp.array(0.5)), TypeError, "needed is a NoiseLevel"),
        (lambda x: add_noise(x, x, TABLE), TypeError, "level is a Table"),
        (lambda x: add_noise(x, x[:, :1], MIDDLE), ValueError, "eps is .3, 1. and x0 .3, 2."),
        (lambda x: add_noise(x, x, TABLE(np.arange(2))), ValueError, "2 values for the 3 samples"),
        (lambda x: add_noise(x.astype(jnp.uint8), x, MIDDLE), TypeError, "x0 is uint8"),
        (lambda x: q_step(x, x, CLEAN, TABLE), TypeError, "level is a Table"),
    ],
)
def test_errors_say_what_noising_needs(call, error, words):
    with pytest.raises(error, match=words):
        call(jnp.ones((3, 2)))
