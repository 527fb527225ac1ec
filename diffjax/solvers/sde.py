"""Solvers of the reverse SDE: Euler-Maruyama, stochastic Heun, reverse diffusion.

The reverse of dx = f x dt + g dw is, with score = (alpha x0 - x) / sigma^2,

    dx = (f x - g^2 score) dt + g dw,    time running from noise to data.

The first two solve it in the time of the schedule, for any schedule (VP, sub-VP, VE, flow, tables).
Reverse diffusion needs no derivatives: it turns the forward kernel between two levels around,

    forward    x_t = alpha_ts x_s + sigma_ts z
    reverse    x_s = (2 - alpha_ts) x_t + sigma_ts^2 score + sigma_ts z

None of them can take the last step, to clean data, with profit: there they return the estimate of
x0, as sampling with these solvers always ends. Sources: Score SDE, arXiv:2011.13456, Eq. 6,
Appendices D, E and G; Karras et al., arXiv:2206.00364, Section 4, for Heun's method.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from diffjax.core.inverse import time_of
from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel, safe_sqrt, transition
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import Schedule
from diffjax.core.sde import drift_and_diffusion


def estimate_score(x: Array, x0: Array, level: NoiseLevel) -> Array:
    """The score that belongs to an estimate of the clean data: (alpha x0 - x) / sigma^2.

    It is 0 at sigma = 0. The level has scalar leaves.
    """
    return -estimate_eps(x, x0, level) / jnp.where(level.sigma > 0, level.sigma, 1.0)


def reverse_diffusion(*, normal: Normal = normal_each) -> Solver:
    """The reverse-diffusion predictor: of first order, one call of the network in each step.

    For a variance-preserving chain it is (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z, for a
    variance-exploding one x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z.
    Source: Score SDE, arXiv:2011.13456, Eq. 46 and Appendix E.

    Args:
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = reverse_diffusion()
    """

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, current)
        keep, variance = transition(current, next_)
        noise = safe_sqrt(variance) * normal(keys, x.shape[1:], x.dtype)
        moved = (2.0 - keep) * x + variance * estimate_score(x, x0, current) + noise
        return jnp.where(next_.sigma > 0, moved, next_.alpha * x0)

    return stateless(step)


def euler_maruyama(schedule: Schedule, *, normal: Normal = normal_each) -> Solver:
    """Euler's method for the reverse SDE: of weak order 1, one call of the network in each step.

        x_s = x_t + (f x_t - g^2 score) (s - t) + g sqrt(t - s) z

    Args:
      schedule: of the levels; it gives f and g. The run cannot start from pure noise (alpha = 0),
        where f is infinite.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.schedules import linear
    >>> solver = euler_maruyama(linear())
    """
    drift = _reverse_drift(schedule)

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, current)
        slope, g = drift(x, x0, current)
        length = time_of(schedule, next_) - time_of(schedule, current)
        noise = safe_sqrt(-length) * normal(keys, x.shape[1:], x.dtype)
        return jnp.where(next_.sigma > 0, x + length * slope + g * noise, next_.alpha * x0)

    return stateless(step, from_pure_noise=False)


def stochastic_heun(schedule: Schedule, *, normal: Normal = normal_each) -> Solver:
    """Heun's method for the reverse SDE: of weak order 2, two calls of the network in each step.

    The step of Euler-Maruyama is taken again with the mean of drift and g at both of its ends, and
    with the same noise. Arguments as for `euler_maruyama`.

    >>> from diffjax.core.schedules import linear
    >>> solver = stochastic_heun(linear())
    """
    drift = _reverse_drift(schedule)

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, current)
        slope, g = drift(x, x0, current)
        length = time_of(schedule, next_) - time_of(schedule, current)
        noise = safe_sqrt(-length) * normal(keys, x.shape[1:], x.dtype)

        def correct():
            reached = x + length * slope + g * noise
            next_slope, next_g = drift(reached, denoise(reached, next_), next_)
            return x + 0.5 * length * (slope + next_slope) + 0.5 * (g + next_g) * noise

        return lax.cond(next_.sigma > 0, correct, lambda: next_.alpha * x0)

    return stateless(step, from_pure_noise=False)


def _reverse_drift(schedule: Schedule) -> Callable[..., tuple[Array, Array]]:
    """(x, x0, level) -> f x - g^2 score, and g."""

    def drift(x: Array, x0: Array, level: NoiseLevel) -> tuple[Array, Array]:
        f, variance = drift_and_diffusion(schedule, time_of(schedule, level))
        return f * x - variance * estimate_score(x, x0, level), safe_sqrt(variance)

    return drift
