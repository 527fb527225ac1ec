"""The variational bound of a discrete chain, term by term, in bits per dimension.

    -log p(x0) <= L_T + sum_{t=1}^{T-1} L_t + L_0
    L_T = KL(q(x_{T-1} | x0) || N(0, I))
    L_t = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))
    L_0 = -log p(x0 | x_t at t = 0), a Gaussian integrated over the bins of quantised data

with time steps counted from 0 and p(x_{t-1} | x_t) the Gaussian of ancestral sampling.
Source: DDPM, arXiv:2006.11239, Eqs. 5 and 13; Improved DDPM, arXiv:2102.09672, Section 3.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import log_ndtr

from diffjax.core.keys import fold_in_each, normal_each
from diffjax.core.levels import (
    NoiseLevel,
    add_noise,
    expand,
    interpolate_variance,
    q_posterior,
    reverse_variances,
)
from diffjax.core.parameterizations import Denoiser, LearnedVariance
from diffjax.core.samples import mean_each
from diffjax.core.sampling import per_sample
from diffjax.core.schedules import Table


class VariationalBound(NamedTuple):
    """The terms of the bound, each in bits per dimension.

    Attributes:
      prior: [B] L_T, what is lost by starting from N(0, I).
      terms: [T, B] L_0, L_1, ..., L_{T-1}.
      total: [B] their sum.
    """

    prior: Array
    terms: Array
    total: Array


def prior_kl(x0: Array, level: NoiseLevel) -> Array:
    """KL(q(x_t | x0) || N(0, p I)) at a level, in bits per dimension: [B].

        KL = mean ((alpha^2 x0^2 + sigma^2) / p - 1 - log(sigma^2 / p)) / 2

    p = alpha^2 + sigma^2 is the variance that sampling starts with (`initial_noise`); it is 1
    where the schedule preserves it.

    >>> prior_kl(jnp.ones((2, 3)), NoiseLevel(jnp.array(1.0), jnp.array(0.0), jnp.array(1.0)))
    Array([0., 0.], dtype=float32)
    """
    alpha, sigma = expand(level.alpha, x0), expand(level.sigma, x0)
    scale = jnp.hypot(alpha, sigma)
    alpha, sigma = alpha / scale, sigma / scale
    return bits_per_dim(0.5 * ((alpha * x0) ** 2 + sigma**2 - 1.0 - 2.0 * jnp.log(sigma)))


def log_variances(schedule: Table, t: Array) -> tuple[Array, Array]:
    """Logarithms of the smallest and largest reverse variance of time steps t, in t's shape.

    The smallest is zero at t = 0; that of t = 1 stands in for it, so that the last step has a
    density. Source: Improved DDPM, arXiv:2102.09672 (its reference implementation).
    """
    inner = jnp.maximum(t, 1)
    small, _ = reverse_variances(schedule(inner), schedule(inner - 1))
    _, large = reverse_variances(schedule(t), schedule(t - 1))
    return jnp.log(small), jnp.log(large)


def bound_term(
    x0: Array, x: Array, estimate: Array, schedule: Table, t: Array, log_variance: Array,
    *, num_bins: int = 256,
) -> Array:  # fmt: skip
    """L_t of each sample, in bits per dimension: a KL divergence, or the decoder's cost at t = 0.

    Args:
      x0: [B, ...] clean data in [-1, 1].
      x: [B, ...] the same data noised to step t.
      estimate: [B, ...] the model's estimate of x0 from x.
      schedule: the table.
      t: time steps, scalar or [B].
      log_variance: of the model's reverse step, broadcasting against x.
      num_bins: values that the quantised data can take, spread evenly over [-1, 1].

    Returns:
      [B] bits per dimension.
    """
    current, next_ = schedule(t), schedule(t - 1)
    true_mean, true_variance = q_posterior(x, x0, current, next_)
    mean, _ = q_posterior(x, estimate, current, next_)
    # where t = 0 the true variance is zero; the divergence is not used there
    first = expand(t == 0, x)
    log_ratio = jnp.log(jnp.where(first, 1.0, true_variance)) - log_variance
    square = (true_mean - mean) ** 2 * jnp.exp(-log_variance)
    divergence = 0.5 * (jnp.exp(log_ratio) - 1.0 - log_ratio + square)
    decoder = -discretized_log_prob(x0, mean, log_variance, num_bins=num_bins)
    return bits_per_dim(jnp.where(first, decoder, divergence))


def discretized_log_prob(
    x0: Array, mean: Array, log_variance: Array, *, num_bins: int = 256
) -> Array:
    """Log-probability, in nats, that a Gaussian falls into the bin of each quantised value.

    The outermost bins reach to infinity. Source: DDPM, arXiv:2006.11239, Eq. 13.

    Args:
      x0: values on the grid -1, -1 + 2 / (num_bins - 1), ..., 1.
      mean, log_variance: of the Gaussian, broadcasting against x0.
      num_bins: number of values on the grid.
    """
    half = 1.0 / (num_bins - 1)
    scale = jnp.exp(-0.5 * log_variance)
    upper, lower = (x0 + half - mean) * scale, (x0 - half - mean) * scale
    # far out on the right 1 - cdf is accurate where cdf is not: measure from the nearer tail
    right = lower > 0
    a, b = jnp.where(right, -upper, lower), jnp.where(right, -lower, upper)
    # log(cdf(b) - cdf(a)) without a floor, which would make the bound too small
    log_a, log_b = log_ndtr(a), log_ndtr(b)
    inside = log_b + jnp.log(jnp.maximum(-jnp.expm1(log_a - log_b), jnp.finfo(a.dtype).tiny))
    edge = jnp.where(x0 < 0, log_ndtr(upper), log_ndtr(-lower))
    return jnp.where(jnp.abs(x0) > 1.0 - half, edge, inside)


def variational_bound(
    key: Array,
    x0: Array,
    denoise: Denoiser,
    schedule: Table,
    *,
    variance: str = "fixed_large",
    num_bins: int = 256,
) -> VariationalBound:
    """Every term of the bound, with one noise draw for each, by T calls of the denoiser.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] quantised clean data in [-1, 1], float32.
      denoise: (x, level) -> estimate of x0, or a `LearnedVariance`, whose fraction is then used.
      schedule: the table of the chain.
      variance: "fixed_small" or "fixed_large", for denoisers without a learned variance.
      num_bins: values that the data can take.

    Returns:
      A `VariationalBound`, in bits per dimension.

    Raises:
      ValueError: another name of a variance.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"variance is {variance!r}; it must be 'fixed_small' or 'fixed_large'.")
    keys = per_sample(key, x0.shape[0])

    def term(_, t):
        level = schedule(t)
        noise = normal_each(fold_in_each(keys, t), x0.shape[1:])
        x = add_noise(x0, noise, level)
        estimate = denoise(x, level)
        log_small, log_large = log_variances(schedule, t)
        if isinstance(estimate, LearnedVariance):
            log_variance = interpolate_variance(log_small, log_large, estimate.fraction)
            estimate = estimate.x0
        else:
            log_variance = log_small if variance == "fixed_small" else log_large
        return None, bound_term(x0, x, estimate, schedule, t, log_variance, num_bins=num_bins)

    _, terms = lax.scan(term, None, jnp.arange(schedule.num_train_steps))
    prior = prior_kl(x0, schedule(jnp.asarray(schedule.num_train_steps - 1)))
    return VariationalBound(prior, terms, prior + jnp.sum(terms, axis=0))


def bits_per_dim(nats: Array) -> Array:
    """Nats of each dimension, [B, ...], as the mean number of bits of each sample: [B]."""
    return mean_each(nats) / jnp.log(2.0)
