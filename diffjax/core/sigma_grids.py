"""Grids of levels told by the ratio sigma / alpha, which EDM and k-diffusion call sigma.

    karras_ratios         evenly spaced ratio^(1/rho)
    exponential_ratios    evenly spaced log ratio, that is uniform in log-SNR
    beta_ratios           quantiles of a beta distribution

Each returns N + 1 ratios in sampling order, the last of them 0, clean data. `levels_at` finds the
levels of any schedule that have these ratios, by interpolation of the logarithm in tables:

    levels = levels_at(schedule, karras_ratios(20, 0.03, 14.6))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.levels import NoiseLevel
from diffjax.core.schedules import Schedule, Table

LevelAt = Callable[[Array], NoiseLevel]


def karras_ratios(
    num_steps: int, smallest: float, largest: float, *, rho: float = 7.0, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced roots: ratio_i = (largest^(1/rho) + i/(N-1) (smallest^(1/rho) - ...))^rho.

    Source: EDM, arXiv:2206.00364, Eq. 5.

    Args:
      num_steps: N >= 1.
      smallest, largest: ratios of the last entry before the end and of the first.
      rho: larger makes shorter steps at small ratios.
      end: the last entry; 0 is clean data.

    >>> karras_ratios(2, 1.0, 10.0).round(4).tolist()
    [10.0, 1.0, 0.0]
    """
    ramp = _ramp("karras_ratios", num_steps, smallest, largest)
    low, high = smallest ** (1.0 / rho), largest ** (1.0 / rho)
    return np.append((high + ramp * (low - high)) ** rho, end)


def exponential_ratios(
    num_steps: int, smallest: float, largest: float, *, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced logarithms, that is steps of equal length in log-SNR. Arguments as above.

    >>> exponential_ratios(3, 1.0, 100.0).round(4).tolist()
    [100.0, 10.0, 1.0, 0.0]
    """
    ramp = _ramp("exponential_ratios", num_steps, smallest, largest)
    return np.append(np.exp(np.log(largest) + ramp * np.log(smallest / largest)), end)


def beta_ratios(
    num_steps: int,
    smallest: float,
    largest: float,
    *,
    a: float = 0.6,
    b: float = 0.6,
    end: float = 0.0,
) -> np.ndarray:
    """Quantiles of the beta distribution: with a, b < 1 the steps are short at both ends.

    Source: "Beta Sampling is All You Need", arXiv:2407.12173. Arguments as above.

    >>> beta_ratios(3, 0.0, 2.0).round(4).tolist()
    [2.0, 1.0, 0.0, 0.0]
    """
    from scipy.stats import beta

    ramp = _ramp("beta_ratios", num_steps, smallest, largest)
    return np.append(smallest + (largest - smallest) * beta.ppf(1.0 - ramp, a, b), end)


def shifted(times: np.ndarray | Array, shift: float) -> np.ndarray | Array:
    """Move times towards noise: t -> shift t / (1 + (shift - 1) t).

    For the straight flow this multiplies sigma / alpha by `shift`, as larger images need. Apply it
    once, to the grid or to the training times.
    Source: Stable Diffusion 3, arXiv:2403.03206, Eq. 23.

    >>> float(shifted(np.float64(0.5), 3.0))
    0.75
    """
    return shift * times / (1.0 + (shift - 1.0) * times)


def levels_at(schedule: Schedule, ratios: np.ndarray | Array) -> NoiseLevel:
    """The levels of a schedule at which sigma / alpha has the given values: `level_at` of each."""
    return level_at(schedule)(jnp.asarray(ratios, jnp.float32))


def level_at(schedule: Schedule) -> LevelAt:
    """The inverse of a schedule: a function from sigma / alpha to the level.

    Solvers use it to visit levels between those of the grid. The clock of a table is interpolated
    in the logarithm of the ratio, and stays within 0 .. T - 1 (-1 at the ratio 0); that of a
    schedule in continuous time is found by bisection, unless the schedule has a method `at_ratio`.

    >>> from diffjax.core.schedules import cosine
    >>> level_at(cosine())(jnp.array(1.0)).sigma.round(4)
    Array(0.7071, dtype=float32)
    """
    if hasattr(schedule, "at_ratio"):
        return schedule.at_ratio
    if isinstance(schedule, Table):
        return lambda ratio: _level_of_table(schedule, ratio)
    return lambda ratio: _level_by_bisection(schedule, ratio)


def _table_ratios(table: Table) -> np.ndarray:
    """sigma / alpha of the time steps 0 .. T - 1, float64; infinite at pure noise."""
    with np.errstate(divide="ignore"):
        return table.sigma[1:] / table.alpha[1:]


def _level_of_table(table: Table, ratio: Array) -> NoiseLevel:
    # pure noise, where the ratio is infinite, would spoil the interpolation of the last step
    known = np.minimum(np.log(_table_ratios(table)), 80.0)
    t = jnp.interp(jnp.log(ratio), jnp.asarray(known, jnp.float32), jnp.arange(len(known)))
    return vp_level(jnp.where(ratio > 0, t, -1.0), ratio)


def vp_level(t: Array, ratio: Array) -> NoiseLevel:
    """The variance-preserving level with a given sigma / alpha: alpha^2 + sigma^2 = 1."""
    pure = jnp.isinf(ratio)
    finite = jnp.where(pure, 1.0, ratio)
    alpha = lax.rsqrt(1.0 + finite**2)
    return NoiseLevel(t, jnp.where(pure, 0.0, alpha), jnp.where(pure, 1.0, finite * alpha))


def _level_by_bisection(schedule: Schedule, ratio: Array) -> NoiseLevel:
    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        level = schedule(middle)
        too_clean = level.sigma < ratio * level.alpha
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    start = jnp.zeros_like(ratio), jnp.ones_like(ratio)
    low, high = lax.fori_loop(0, 30, halve, start)
    # which time it is needs no derivative: levels between grid points are constants of a run
    return schedule(jax.lax.stop_gradient(jnp.where(ratio > 0, 0.5 * (low + high), 0.0)))


def _ramp(name: str, num_steps: int, smallest: float, largest: float) -> np.ndarray:
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps is {num_steps}; sampling needs at least one step.")
    if not 0.0 <= smallest <= largest:
        raise ValueError(
            f"{name}: the ratios run from {largest} to {smallest}; "
            "needed is 0 <= smallest <= largest."
        )
    return np.linspace(0.0, 1.0, num_steps)
