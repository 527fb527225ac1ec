"""Samplers written out by hand: what the overhead of `sample` is measured against.

Each makes the steps of one solver, for a denoiser that costs next to nothing, x0 = alpha x, and is
as short as it can be for this one purpose: a `lax.scan` over coefficients that were computed
beforehand, in float64. The grid starts above pure noise and ends with clean data.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.keys import fold_in_each, normal_each, sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.solvers import ddim, dpm_multistep, heun, unipc

# (key, x) -> x at the end of the grid
Loop = Callable[[Array, Array], Array]


class Grid(NamedTuple):
    """The levels of N steps, [N] float64 each, and with h = lambda_s - lambda_t, 1 in the last."""

    alpha: np.ndarray
    sigma: np.ndarray
    next_alpha: np.ndarray
    next_sigma: np.ndarray
    h: np.ndarray


class Bare(NamedTuple):
    """A solver, and how its loop is written by hand."""

    solver: Solver
    make: Callable[[Grid], Loop]


def denoise(x: Array, level: NoiseLevel) -> Array:
    """The network that costs nothing."""
    return level.alpha * x


def grid_of(levels: NoiseLevel) -> Grid:
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in (levels.alpha, levels.sigma))
    lambdas = np.log(alpha[:-1] / sigma[:-1])
    return Grid(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], np.append(np.diff(lambdas), 1.0))


def bare_ddim(grid: Grid) -> Loop:
    keep = grid.next_sigma / grid.sigma
    rows = as_rows(grid.alpha, keep, grid.next_alpha - keep * grid.alpha)

    def step(x, row):
        alpha, keep, gain = row
        return keep * x + gain * (alpha * x), None

    return lambda key, x: lax.scan(step, x, rows)[0]


def bare_heun(grid: Grid) -> Loop:
    half = 0.5 * (grid.next_sigma - grid.next_alpha * grid.sigma / grid.alpha)
    rows = as_rows(grid.alpha, grid.sigma, grid.next_alpha, grid.next_sigma, half)

    def step(x, row):
        alpha, sigma, next_alpha, next_sigma, half = row
        x0 = alpha * x
        eps = (1.0 / sigma) * x - (alpha / sigma) * x0
        euler = next_alpha * x0 + next_sigma * eps

        def corrected():
            next_x0 = next_alpha * euler
            next_eps = (1.0 / next_sigma) * euler - (next_alpha / next_sigma) * next_x0
            return euler + half * (next_eps - eps)

        return lax.cond(next_sigma > 0, corrected, lambda: euler), None

    return lambda key, x: lax.scan(step, x, rows)[0]


def bare_dpmpp_2m(grid: Grid) -> Loop:
    keep = grid.next_sigma / grid.sigma
    gain = grid.next_alpha - keep * grid.alpha
    rows = as_rows(grid.alpha, keep, *line(grid, gain))

    def step(carry, row):
        x, old = carry
        alpha, keep, of_x0, of_old = row
        x0 = alpha * x
        return (keep * x + of_x0 * x0 + of_old * old, x0), None

    return lambda key, x: lax.scan(step, (x, jnp.zeros_like(x)), rows)[0][0]


def bare_dpmpp_2m_sde(grid: Grid) -> Loop:
    decay = np.append(np.exp(-grid.h[:-1]), 0.0)
    keep = grid.next_sigma / grid.sigma * decay
    gain = grid.next_alpha * (1.0 - decay**2)
    spread = grid.next_sigma * np.sqrt(1.0 - decay**2)
    rows = as_rows(grid.alpha, keep, *line(grid, gain), spread)

    def loop(key, x):
        keys = sample_keys(key, jnp.arange(len(x)))

        def step(carry, row):
            x, old = carry
            i, (alpha, keep, of_x0, of_old, spread) = row
            x0 = alpha * x
            noise = normal_each(fold_in_each(keys, i), x.shape[1:], x.dtype)
            return (keep * x + of_x0 * x0 + of_old * old + spread * noise, x0), None

        numbers = jnp.arange(len(grid.alpha))
        return lax.scan(step, (x, jnp.zeros_like(x)), (numbers, rows))[0][0]

    return loop


def bare_unipc(grid: Grid) -> Loop:
    keep = grid.next_sigma / grid.sigma
    gain = grid.next_alpha - keep * grid.alpha
    predictor = line(grid, gain)
    # what the corrector changes, one step later
    change = [np.append(0.0, a[:-1]) for a in corrector_change(grid, gain, predictor)]
    rows = as_rows(grid.alpha, keep, *predictor, *change)

    def step(carry, row):
        x, new, old = carry
        alpha, keep, of_x0, of_new, *change = row
        x0 = alpha * x
        x = x + change[0] * x0 + change[1] * new + change[2] * old
        return (keep * x + of_x0 * x0 + of_new * new, x0, new), None

    zeros = jnp.zeros_like
    return lambda key, x: lax.scan(step, (x, zeros(x), zeros(x)), rows)[0][0]


def line(grid: Grid, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the newest estimate and of the one before, for their line at half the step.

    The first step has one estimate, and the last, to clean data, needs but one.
    """
    slope = np.zeros_like(gain)
    slope[1:-1] = 0.5 * grid.h[1:-1] / grid.h[:-2]
    return gain * (1.0 + slope), -gain * slope


def corrector_change(
    grid: Grid, gain: np.ndarray, predictor: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """UniPC-2's corrector less its predictor: weights of the estimates at s, at t and before t.

    Source: UniPC, arXiv:2302.04867, Algorithm 1 with B(h) = e^h - 1.
    """
    h, b = -grid.h, np.expm1(-grid.h)
    first = b / h - 1.0
    second = first / h - 0.5
    before = np.append(-1.0, -grid.h[:-1] / grid.h[1:])
    rho_before = (first / b - 2.0 * second / b) / (1.0 - before)
    rho_end = first / b - rho_before
    # the first step has no estimate before its own
    rho_before[0], rho_end[0] = 0.0, 0.5
    slope = rho_before / before
    corrector = gain * rho_end, gain * (1.0 - slope - rho_end), gain * slope
    return [corrector[0], corrector[1] - predictor[0], corrector[2] - predictor[1]]


def as_rows(*columns: np.ndarray) -> tuple[Array, ...]:
    return tuple(jnp.asarray(column, jnp.float32) for column in columns)


BARE: dict[str, Bare] = {
    "ddim": Bare(ddim(), bare_ddim),
    "heun": Bare(heun(), bare_heun),
    "dpmpp_2m": Bare(dpm_multistep(2), bare_dpmpp_2m),
    "unipc": Bare(unipc(2), bare_unipc),
    "dpmpp_2m_sde": Bare(dpm_multistep(2, stochastic=True), bare_dpmpp_2m_sde),
}
