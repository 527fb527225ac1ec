"""Heun's method: a step of Euler's, corrected by the slope at its end.

Dividing x by a scale c of each level turns the probability-flow ODE into one with a simple slope:

    slope        c               p                         d(x / c) / dp
    "eps"        alpha           sigma / alpha             eps
    "velocity"   alpha + sigma   sigma / (alpha + sigma)   eps - x0

    x_s / c_s = x_t / c_t + (p_s - p_t) (slope_t + slope_s) / 2

where slope_s is found at the point that Euler's method reaches. The first row is EDM's method,
the second the same on the straight flow. Both are of second order under every schedule; the first
cannot start from pure noise (alpha = 0), where its p is infinite: it then takes an Euler step.
Source: EDM, arXiv:2206.00364, Algorithms 1 and 2.
"""

import jax.numpy as jnp
from jax import Array, lax

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.solvers.ddim import ddim_update
from diffjax.solvers.euler import Churn, churn_update

SLOPES = ("eps", "velocity")


def heun_update(
    euler: Array,
    estimates: tuple[Array, Array],
    next_estimates: tuple[Array, Array],
    current: NoiseLevel,
    next_: NoiseLevel,
    *,
    slope: str = "eps",
) -> Array:
    """Correct the result of an Euler step by half the change of the slope.

    Args:
      euler: [B, ...] where Euler's method arrived at `next_`.
      estimates, next_estimates: (x0, eps), each [B, ...], at both ends of the step.
      current, next_: levels with scalar leaves.
      slope: see the module.
    """
    (x0, eps), (next_x0, next_eps) = estimates, next_estimates
    change = next_eps - eps
    if slope == "velocity":
        scale, next_scale = current.alpha + current.sigma, next_.alpha + next_.sigma
        change = change - (next_x0 - x0)
        length = next_.sigma / next_scale - current.sigma / scale
        return euler + 0.5 * next_scale * length * change
    signal = current.alpha > 0
    # double where: the gradient of the untaken branch is NaN at alpha = 0
    ratio = current.sigma / jnp.where(signal, current.alpha, 1.0)
    length = jnp.where(signal, next_.sigma - next_.alpha * ratio, 0.0)
    return euler + 0.5 * length * change


def heun(churn: Churn | None = None, *, slope: str = "eps", normal: Normal = normal_each) -> Solver:
    """Heun's method: of second order, two calls of the network in each step.

    A step to clean data (sigma = 0) is one of Euler's, with one call.

    Args:
      churn: noise added in front of every step, which makes this EDM's stochastic sampler.
      slope: "eps" (EDM, k-diffusion) or "velocity" (straight flows).
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: slope is another word.

    >>> solver = heun()
    """
    if slope not in SLOPES:
        raise ValueError(f"slope is {slope!r}; it must be one of {', '.join(SLOPES)}.")

    def step(keys, x, denoise, current, next_):
        if churn is not None:
            noise = normal(keys, x.shape[1:], x.dtype)
            x, current = churn_update(x, noise, current, churn)
        x0 = denoise(x, current)
        eps = estimate_eps(x, x0, current)
        euler = ddim_update(x, x0, None, current, next_, eps=eps)

        def correct():
            next_x0 = denoise(euler, next_)
            next_estimates = next_x0, estimate_eps(euler, next_x0, next_)
            return heun_update(euler, (x0, eps), next_estimates, current, next_, slope=slope)

        return lax.cond(next_.sigma > 0, correct, lambda: euler)

    return stateless(step)
