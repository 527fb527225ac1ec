"""The variational bound, against quadrature and against data of known entropy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import exact, schedules
from diffjax.core.levels import NoiseLevel, add_noise, q_posterior
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.variational import (
    bound_term,
    discretized_log_prob,
    log_variances,
    prior_kl,
    variational_bound,
)

TABLE = schedules.linear_betas()
BINS = 256
VALUES = np.linspace(-1.0, 1.0, BINS)
SPREAD = 0.25


@pytest.mark.parametrize("mean", [-5.0, -1.0, -0.3, 0.0, 0.998, 3.0])
@pytest.mark.parametrize("std", [1e-3, 0.02, 0.5, 20.0])
def test_probabilities_of_all_bins_sum_to_one(mean, std):
    log_prob = discretized_log_prob(jnp.asarray(VALUES, jnp.float32), mean, 2 * np.log(std))
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.02), (-0.9, 0.05), (0.4, 0.3)])
def test_probability_of_a_bin_is_exact_far_into_both_tails(mean, std):
    edges = np.concatenate([[-np.inf], 0.5 * (VALUES[1:] + VALUES[:-1]), [np.inf]])
    z = (edges - mean) / std
    # SciPy's cdf is exact on the left; the right tail is the left one mirrored
    right = z[:-1] > 0
    a, b = np.where(right, -z[1:], z[:-1]), np.where(right, -z[:-1], z[1:])
    log_a, log_b = stats.norm.logcdf(a), stats.norm.logcdf(b)
    expected = log_b + np.log1p(-np.exp(log_a - log_b))
    got = discretized_log_prob(jnp.asarray(VALUES, jnp.float32), mean, 2 * np.log(std))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-4)


def divergence(mean, variance, other_mean, other_variance):
    """KL divergence of two Gaussians in bits, by quadrature."""
    x = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 20001)
    p = stats.norm(mean, variance**0.5)
    log_ratio = p.logpdf(x) - stats.norm(other_mean, other_variance**0.5).logpdf(x)
    return np.trapezoid(p.pdf(x) * log_ratio, x) / np.log(2)


def test_prior_term_is_the_divergence_from_the_noise_that_sampling_starts_with():
    level = NoiseLevel(jnp.array(1.0), jnp.array(0.3), jnp.array(0.9))
    got = prior_kl(jnp.array([[0.7], [-1.0]]), level)
    # whose variance is alpha^2 + sigma^2
    expected = [divergence(0.3 * value, 0.81, 0.0, 0.9) for value in (0.7, -1.0)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_inner_term_is_the_divergence_of_the_two_reverse_gaussians():
    t, x0, estimate, log_variance = 300, 0.4, -0.1, np.log(0.012)
    x = add_noise(jnp.full((1, 1), x0), jnp.full((1, 1), 0.8), TABLE(t))
    mean, variance = q_posterior(x, jnp.full((1, 1), x0), TABLE(t), TABLE(t - 1))
    model_mean, _ = q_posterior(x, jnp.full((1, 1), estimate), TABLE(t), TABLE(t - 1))
    got = bound_term(jnp.full((1, 1), x0), x, jnp.full((1, 1), estimate), TABLE, t, log_variance)
    expected = divergence(
        float(mean[0, 0]), float(variance), float(model_mean[0, 0]), np.exp(log_variance)
    )
    np.testing.assert_allclose(got[0], expected, rtol=1e-3)


def test_inner_term_vanishes_for_the_true_posterior():
    x0, t = jax.random.normal(jax.random.key(0), (6, 2)), jnp.array([1, 2, 10, 300, 998, 999])
    x = add_noise(x0, jnp.ones_like(x0), TABLE(t))
    small, _ = log_variances(TABLE, t)
    term = jax.jit(lambda x0, x: bound_term(x0, x, x0, TABLE, t, small[:, None]))(x0, x)
    np.testing.assert_allclose(term, 0.0, atol=1e-6)


def quantised_gaussian(size):
    """Values of N(0, SPREAD^2) rounded to the bins, and their entropy in bits."""
    edges = np.concatenate([[-np.inf], 0.5 * (VALUES[1:] + VALUES[:-1]), [np.inf]])
    probabilities = np.diff(stats.norm.cdf(edges / SPREAD))
    entropy = -np.sum(probabilities * np.log2(probabilities))
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.choice(VALUES, (size, 1), p=probabilities), jnp.float32), entropy


PERFECT = exact.denoiser(exact.gaussian([0.0], SPREAD**2))


@cache
def bound_of(num_steps, denoise=PERFECT):
    """The bound for Gaussian data, how far its mean is above their entropy, the standard error."""
    x0, entropy = quantised_gaussian(4096)
    schedule = schedules.linear_betas(0.1 / num_steps, 20.0 / num_steps, num_steps=num_steps)
    run = lambda x0: variational_bound(
        jax.random.key(1), x0, denoise, schedule, variance="fixed_small"
    )
    bound = jax.jit(run)(x0)
    error = float(jnp.std(bound.total)) / 4096**0.5
    return bound, float(jnp.mean(bound.total)) - entropy, error


def test_bound_lies_above_the_entropy_and_tightens_with_more_steps():
    gaps, errors = zip(*(bound_of(num_steps)[1:] for num_steps in (30, 100)))
    assert all(gap > -4 * error for gap, error in zip(gaps, errors))
    assert gaps[0] > gaps[1]


def test_bound_with_the_true_reverse_variance_is_the_entropy():
    """The reverse of a Gaussian chain is Gaussian: with its variance nothing is lost."""
    schedule = schedules.linear_betas(0.1 / 30, 20.0 / 30, num_steps=30)

    def denoise(x, level):
        next_ = schedule(level.t - 1)
        # var(x_s | x_t) = posterior variance + (coefficient of x0)^2 var(x0 | x_t)
        coefficient, small = q_posterior(jnp.zeros(1), jnp.ones(1), level, next_)
        spread = 1.0 / (1.0 / SPREAD**2 + (level.alpha / level.sigma) ** 2)
        variance = small + coefficient**2 * spread
        log_small, log_large = log_variances(schedule, level.t)
        fraction = (jnp.log(variance) - log_small) / (log_large - log_small)
        return LearnedVariance(PERFECT(x, level), jnp.broadcast_to(fraction, x.shape))

    _, gap, error = bound_of(30, denoise)
    # what remains is the prior's divergence and the shape of the decoder
    assert -4 * error < gap < 4 * error + 0.005


def test_terms_are_not_negative_and_add_up():
    bound, _, _ = bound_of(100)
    assert bound.terms.shape == (100, 4096)
    assert np.all(np.asarray(bound.terms) > -1e-6)
    assert np.all(np.asarray(bound.prior) >= 0)
    np.testing.assert_allclose(bound.total, bound.prior + bound.terms.sum(0), rtol=1e-5)


def test_learned_variance_reaches_from_the_small_to_the_large_bound():
    x0, _ = quantised_gaussian(16)
    schedule = schedules.linear_betas(0.01, 0.3, num_steps=20)

    @jax.jit
    def learned(fraction):
        chooses = lambda x, level: LearnedVariance(PERFECT(x, level), jnp.full_like(x, fraction))
        return variational_bound(jax.random.key(1), x0, chooses, schedule).total

    for fraction, variance in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        run = lambda x0, name=variance: variational_bound(
            jax.random.key(1), x0, PERFECT, schedule, variance=name
        )
        np.testing.assert_allclose(learned(fraction), jax.jit(run)(x0).total, rtol=1e-4)


def test_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="'fixed_small' or 'fixed_large'"):
        variational_bound(jax.random.key(0), jnp.ones((1, 1)), None, TABLE, variance="learned")
