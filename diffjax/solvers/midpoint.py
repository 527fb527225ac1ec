"""Midpoint methods: the estimate in the middle of a step, in log-SNR, serves the whole of it.

    x_m = step from t to m with the estimate at t,    log(s_m) = (log s_t + log s_target) / 2
    x_s = step from t to s with the estimate at m,    s = sigma / alpha

`dpm2` holds eps over the step: DPM-Solver-2, which k-diffusion calls KDPM2, of second order. Its
ancestral form goes to a level below the next one and comes back by fresh noise. `dpm_sde` holds x0
and adds ancestral noise in both halves. The levels in the middle come from the schedule's inverse.
Sources: DPM-Solver, arXiv:2206.00927, Algorithm 1; EDM, arXiv:2206.00364, for the ratio s;
DPM-Solver++, arXiv:2211.01095, Section 5.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.inverse import level_at
from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, safe_sqrt
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import Schedule
from diffjax.solvers.ddim import ddim_update


def dpm2(
    schedule: Schedule,
    *,
    eta: ArrayLike | None = None,
    s_noise: float | Array = 1.0,
    normal: Normal = normal_each,
) -> Solver:
    """DPM-Solver-2 (KDPM2): of second order, two calls in each step but the one to clean data.

    Args:
      schedule: of the levels; it gives the clock in the middle of a step. It cannot start from
        pure noise.
      eta: None for the deterministic solver; otherwise the share of ancestral noise, in [0, 1].
      s_noise: scale of that noise.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.schedules import linear
    >>> solver = dpm2(linear())
    """
    inverse = level_at(schedule)

    def step(keys, x, denoise, current, next_):
        ratio, target = current.sigma / current.alpha, next_.sigma / next_.alpha
        share = 0.0 if eta is None else eta
        raised = share * target * safe_sqrt((1.0 - target / ratio) * (1.0 + target / ratio))
        lowered = safe_sqrt((target - raised) * (target + raised))
        eps = estimate_eps(x, denoise(x, current), current)

        def middle():
            level = inverse(jnp.sqrt(ratio * jnp.where(lowered > 0, lowered, 1.0)))
            x_middle = _along(x, eps, current, level.alpha, level.sigma / level.alpha)
            return estimate_eps(x_middle, denoise(x_middle, level), level)

        slope = lax.cond(lowered > 0, middle, lambda: eps)
        x = _along(x, slope, current, next_.alpha, lowered)
        if eta is None:
            return x
        return x + next_.alpha * raised * s_noise * normal(keys, x.shape[1:], x.dtype)

    return stateless(step, from_pure_noise=False)


def dpm2_ancestral(
    schedule: Schedule,
    *,
    eta: ArrayLike = 1.0,
    s_noise: float | Array = 1.0,
    normal: Normal = normal_each,
) -> Solver:
    """DPM-Solver-2 (KDPM2) with ancestral noise: `dpm2` whose eta is 1; arguments as there.

    >>> from diffjax.core.schedules import linear
    >>> solver = dpm2_ancestral(linear())
    """
    return dpm2(schedule, eta=eta, s_noise=s_noise, normal=normal)


def dpm_sde(
    schedule: Schedule,
    *,
    eta: ArrayLike = 1.0,
    s_noise: float | Array = 1.0,
    normal: Normal = normal_each,
) -> Solver:
    """DPM-Solver++ for the SDE with the estimate in the middle of the step: two calls in each.

    Args:
      schedule: of the levels; it gives the clock in the middle of a step. It cannot start from
        pure noise.
      eta: share of the ancestral noise, in [0, 1].
      s_noise: scale of the noise.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.schedules import linear
    >>> solver = dpm_sde(linear())
    """
    inverse = level_at(schedule)

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, current)
        first = s_noise * normal(fold_in_each(keys, 0), x.shape[1:], x.dtype)

        def middle():
            ratio = jnp.sqrt(current.sigma / current.alpha * next_.sigma / next_.alpha)
            level = inverse(ratio)
            x_middle = ddim_update(x, x0, first, current, level, eta=eta)
            return denoise(x_middle, level)

        x0 = lax.cond(next_.sigma > 0, middle, lambda: x0)
        second = s_noise * normal(fold_in_each(keys, 1), x.shape[1:], x.dtype)
        return ddim_update(x, x0, second, current, next_, eta=eta)

    return stateless(step, from_pure_noise=False)


def _along(x, eps, current: NoiseLevel, alpha, ratio):
    """x moved to another level with eps held: u + (s - s_t) eps, with u = x / alpha_t."""
    keep = alpha / current.alpha
    return keep * x + (alpha * ratio - keep * current.sigma) * eps
