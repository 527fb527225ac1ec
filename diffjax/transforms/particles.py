"""Twisted sequential Monte Carlo: posterior samples that become exact with many particles.

Particles walk down the noise levels by ancestral steps whose estimate of x0 leans towards the
measurement. The lean is only approximate, so each particle carries a weight that makes up for it,
and when the weights become uneven, light particles give way to copies of heavy ones. With

    log p(y | x_t) ~ log_twist(x_t) = -1/2 r^T (tau^2 A A^T + sigma_y^2 I)^-1 r,
    r = y - A x0(x_t),    tau^2 = sigma^2 sigma_data^2 / (alpha^2 sigma_data^2 + sigma^2)

(PiGDM's approximation) the step from level t to s and the weight are

    x_s ~ N(mean(x_t, x0 + (sigma^2 / alpha) grad log_twist), variance + share^2 tau^2)
    weight *= p(x_s | x_t) twist(x_s) / (proposal(x_s | x_t) twist(x_t))

with mean and variance of q(x_s | x_t, x0), and share the factor of x0 in that mean: what is not
known of x0 moves x_s too, and for data N(0, sigma_data^2 I) steps of any length are exact. With
sigma_data = 1 that is DDPM's larger variance, with 0 its smaller one.

At the clean end twist(x0) is the likelihood N(y; A x0, sigma_y^2 I) itself. As the number of
particles grows, their distribution becomes the posterior under the ancestral sampler's own
distribution of x0.

Source: Wu et al., Practical and asymptotically exact conditional sampling in diffusion models
(TDS), arXiv:2306.17775, Algorithm 1; the twist for general A from PiGDM (`pigdm`).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, expand, expand_level, q_posterior, safe_sqrt
from diffjax.core.samples import inner_each
from diffjax.core.sampling import Solver
from diffjax.transforms.linear import Operator, adjoint, conjugate_gradients, residual
from diffjax.transforms.posterior_mean import check_positive, isotropic_variance, linearise

# what a particle's key is folded with to draw survivors, so that it differs from its noise
ON_THE_WAY, AT_THE_END = 0x5EED, 0x5EEE


def twisted(
    operator: Operator,
    y: Array,
    *,
    sigma_y: ArrayLike,
    num_particles: int,
    threshold: ArrayLike = 0.5,
    sigma_data: ArrayLike = 1.0,
    max_iterations: int = 50,
    normal: Normal = normal_each,
) -> Solver:
    """Sequential Monte Carlo with twisted ancestral steps, as a solver.

    The batch holds independent groups of `num_particles` particles, one after the other; y and the
    denoiser's conditioning must be equal within a group. The particles of a group are draws from
    nearly one posterior, but not independent of each other: keep the first of each group where
    that matters. End the grid at the clean level (sigma = 0), where the last resampling makes the
    weights equal. The state is the logarithms of the weights, [B]. Several observations are groups
    of one batch, or an axis of `jax.vmap` around `sample`, with the same result.

    Args:
      operator: A, a linear function [B, ...] -> [B, ...].
      y: the measurement, in the shape of A x0, or with 1 in place of B.
      sigma_y: standard deviation of its noise, positive, a number or [B]; may be traced.
      num_particles: K in a group; must divide B.
      threshold: resample when the effective number of particles, 1 / sum of squared weights, is
        below this share of K.
      sigma_data: standard deviation of the data, for tau.
      max_iterations: of conjugate gradients.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: sigma_y is not positive, or K below 1; when sampling starts, K does not divide B.

    >>> solver = twisted(lambda x: x[:, :1], jnp.ones((1, 1)), sigma_y=0.1, num_particles=8)
    """
    check_positive("twisted", sigma_y)
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; at least one is needed.")

    def init(x: Array) -> Array:
        if x.shape[0] % num_particles:
            raise ValueError(
                f"The batch of {x.shape[0]} does not divide into groups of {num_particles} "
                "particles; sample groups times num_particles at once."
            )
        return jnp.zeros(x.shape[0], x.dtype)

    def twist(x0: Array, level: NoiseLevel) -> tuple[Array, Array]:
        """log p(y | x) [B], and A^T (tau^2 A A^T + sigma_y^2)^-1 (y - A x0)."""
        difference, transpose = residual(operator, y, x0), adjoint(operator, x0)
        spread = isotropic_variance(expand_level(level, x0), sigma_data)
        variance = expand(jnp.asarray(sigma_y), difference) ** 2
        predicted = lambda v: operator(spread * transpose(v)) + variance * v
        solved = conjugate_gradients(predicted, difference, max_iterations=max_iterations)
        return -0.5 * inner_each(difference, solved), transpose(solved)

    def step(keys, x, log_weights, denoise, current, next_):
        x0, covariance, _ = linearise(denoise, x, current)
        log_twist, pull = twist(x0, current)
        shift = covariance(pull)
        chosen, log_weights = resample(
            fold_in_each(keys, ON_THE_WAY), log_weights + log_twist, num_particles, threshold
        )
        x, x0, shift, log_twist = (values[chosen] for values in (x, x0, shift, log_twist))

        mean, variance = q_posterior(x, x0, current, next_)
        lean = q_posterior(x, x0 + shift, current, next_)[0] - mean
        share = q_posterior(jnp.zeros_like(x), jnp.ones_like(x), current, next_)[0]
        variance = variance + share**2 * isotropic_variance(expand_level(current, x), sigma_data)
        # the last step is the denoiser's alone: without noise, proposals cannot be reweighed
        noisy = jnp.asarray(next_.sigma) > 0
        lean, std = jnp.where(noisy, lean, 0.0), jnp.where(noisy, safe_sqrt(variance), 0.0)
        noise = normal(keys, x.shape[1:], x.dtype)
        moved = mean + lean + std * noise
        # log p(x_s | x_t) - log proposal(x_s | x_t)
        away = lean / jnp.where(std > 0, std, 1.0)
        log_weights = log_weights - log_twist - inner_each(away, 0.5 * away + noise)

        difference = residual(operator, y, moved)
        difference = difference / expand(jnp.asarray(sigma_y), difference)
        likelihood = -0.5 * inner_each(difference, difference)
        final, _ = resample(
            fold_in_each(keys, AT_THE_END), log_weights + likelihood, num_particles, 1.0
        )
        return jnp.where(noisy, moved, moved[final]), jnp.where(noisy, log_weights, 0.0)

    return Solver(init, step)


def resample(
    keys: Array, log_weights: Array, size: int, threshold: ArrayLike
) -> tuple[Array, Array]:
    """Systematic resampling within groups, where the weights have become uneven.

    A particle of weight w is taken K w times, rounded up or down, and by each place on its own with
    the probability w: places lie evenly on a circle that is turned by chance.

    Args:
      keys: [B]; the first of each group is used.
      log_weights: [B], groups of `size` one after the other; they need not be normalised.
      size: K.
      threshold: a group is left alone unless its effective number of particles is below this
        share of K.

    Returns:
      Who takes each place, [B] int32, and the logarithms of the weights after it, [B].
    """
    groups = log_weights.reshape(-1, size)
    weights = jax.nn.softmax(groups, axis=1)
    uneven = 1.0 / jnp.sum(weights**2, axis=1) < threshold * size
    turns = jax.vmap(jax.random.uniform)(keys.reshape(-1, size)[:, 0])
    # without going round, the first place would always choose among the first particles
    places = (jnp.arange(size) / size + turns[:, None]) % 1.0
    heirs = jax.vmap(jnp.searchsorted)(jnp.cumsum(weights, axis=1), places)
    # rounding may leave the sum of the weights below the last place
    heirs = jnp.where(uneven[:, None], jnp.minimum(heirs, size - 1), jnp.arange(size))
    first = size * jnp.arange(groups.shape[0])[:, None]
    even = jnp.where(uneven[:, None], 0.0, jnp.log(weights))
    return (first + heirs).ravel(), even.ravel()
