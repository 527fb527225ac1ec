"""The inverse of a schedule: from the ratio sigma / alpha to the level, and to the time.

Schedules whose inverse is a formula have a method `at_ratio`; the others are bisected.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.arguments import at_least_float32
from diffjax.core.levels import NoiseLevel, Schedule, vp_level

LevelAt = Callable[[Array], NoiseLevel]


def levels_at(schedule: Schedule, ratios: np.ndarray | Array) -> NoiseLevel:
    """The levels of a schedule at which sigma / alpha has the given values: `level_at` of each."""
    return level_at(schedule)(jnp.asarray(ratios, jnp.float32))


def level_at(schedule: Schedule) -> LevelAt:
    """The inverse of a schedule: a function from sigma / alpha to the level.

    Solvers use it to visit levels between those of the grid. The clock of a table is interpolated
    in the logarithm of the ratio, and stays within 0 .. T - 1 (-1 at the ratio 0); that of a
    schedule in continuous time is found by bisection, unless the schedule has a method `at_ratio`.
    A ratio beyond the ends of the schedule is kept, and told the time of that end.

    >>> from diffjax.core.schedules import cosine
    >>> level_at(cosine())(jnp.array(1.0)).sigma.round(4)
    Array(0.7071, dtype=float32)
    """
    if hasattr(schedule, "at_ratio"):
        return schedule.at_ratio
    return lambda ratio: _level_by_bisection(schedule, ratio)


def _level_by_bisection(schedule: Schedule, ratio: Array) -> NoiseLevel:
    ratio = at_least_float32(ratio)
    level = schedule(time_at(schedule, ratio))
    # the ratio itself, also where no time has it exactly
    norm = jnp.hypot(level.alpha, level.sigma)
    exact = vp_level(level.t, ratio)
    return exact._replace(alpha=norm * exact.alpha, sigma=norm * exact.sigma)


def time_at(schedule: Schedule, ratio: Array) -> Array:
    """The time in [0, 1] at which sigma / alpha is `ratio`, by bisection; in the ratio's shape.

    Differentiable in the ratio and in the parameters of the schedule. Ratios beyond the ends of
    the schedule give the time of that end.
    """
    ratio = at_least_float32(ratio)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        level = schedule(middle)
        too_clean = level.sigma < ratio * level.alpha
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    # float32 resolves times near 0 more finely than those near 1
    low, high = lax.fori_loop(0, 40, halve, (jnp.zeros_like(ratio), jnp.ones_like(ratio)))
    inside = (ratio > 0) & jnp.isfinite(ratio)
    end = jnp.where(ratio > 0, 1.0, 0.0)
    t = lax.stop_gradient(jnp.where(inside, 0.5 * (low + high), end))
    return t + _root_tangent(schedule, t, jnp.where(inside, ratio, 1.0), inside)


def _root_tangent(schedule: Schedule, t: Array, ratio: Array, inside: Array) -> Array:
    """Zero, with the derivative that t has as the root of sigma - ratio alpha = 0."""
    level, rate = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    slope = lax.stop_gradient(rate.sigma - ratio * rate.alpha)
    step = (ratio * level.alpha - level.sigma) / jnp.where(slope > 0, slope, 1.0)
    # beyond the ends of the schedule t is no root: it stays where it is
    step = jnp.where(inside & (slope > 0) & (jnp.abs(step) < 1e-3), step, 0.0)
    return step - lax.stop_gradient(step)


def time_of(schedule: Schedule, level: NoiseLevel) -> Array:
    """The time that a schedule was called with to make a level.

    It is the clock, unless the schedule tells the network something else; such schedules have a
    method `time_of`.
    """
    return schedule.time_of(level) if hasattr(schedule, "time_of") else level.t
