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
from diffjax.core.schedules import Schedule
from diffjax.solvers import Churn, ancestral, ddim, dpm_multistep, heun, lms, plms, unipc

# (key, x) -> x at the end of the grid
Loop = Callable[[Array, Array], Array]

# EDM's for ImageNet, arXiv:2206.00364, Table 5
CHURN = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
# Adams and Bashforth's weights for equal steps, newest first, of each order
ADAMS = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


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


def bare_ddpm(grid: Grid) -> Loop:
    forward = grid.alpha / grid.next_alpha
    variance = grid.sigma**2 - (forward * grid.next_sigma) ** 2
    keep = forward * (grid.next_sigma / grid.sigma) ** 2
    gain = grid.next_alpha * variance / grid.sigma**2
    spread = np.sqrt(variance) * grid.next_sigma / grid.sigma
    rows = as_rows(grid.alpha, keep, gain, spread)

    def loop(key, x):
        keys = sample_keys(key, jnp.arange(len(x)))

        def step(x, row):
            i, (alpha, keep, gain, spread) = row
            noise = normal_each(fold_in_each(keys, i), x.shape[1:], x.dtype)
            return keep * x + gain * (alpha * x) + spread * noise, None

        return lax.scan(step, x, (jnp.arange(len(grid.alpha)), rows))[0]

    return loop


def bare_heun(grid: Grid) -> Loop:
    rows = heun_rows(grid)
    return lambda key, x: lax.scan(lambda x, row: (heun_step(x, row), None), x, rows)[0]


def heun_rows(grid: Grid) -> tuple[Array, ...]:
    half = 0.5 * (grid.next_sigma - grid.next_alpha * grid.sigma / grid.alpha)
    return as_rows(grid.alpha, grid.sigma, grid.next_alpha, grid.next_sigma, half)


def heun_step(x: Array, row: tuple[Array, ...]) -> Array:
    alpha, sigma, next_alpha, next_sigma, half = row
    x0 = alpha * x
    eps = (1.0 / sigma) * x - (alpha / sigma) * x0
    euler = next_alpha * x0 + next_sigma * eps

    def corrected():
        next_x0 = next_alpha * euler
        next_eps = (1.0 / next_sigma) * euler - (next_alpha / next_sigma) * next_x0
        return euler + half * (next_eps - eps)

    return lax.cond(next_sigma > 0, corrected, lambda: euler)


def bare_edm(grid: Grid) -> Loop:
    """Heun's steps from levels that churn has raised, for a variance-preserving schedule."""
    ratio = grid.sigma / grid.alpha
    inside = (CHURN["s_tmin"] <= ratio) & (ratio <= CHURN["s_tmax"])
    gamma = np.where(inside, min(CHURN["s_churn"] / len(ratio), 2**0.5 - 1), 0.0)
    alpha = 1.0 / np.hypot(1.0, ratio * (1.0 + gamma))
    raised = grid._replace(alpha=alpha, sigma=alpha * ratio * (1.0 + gamma))
    added = CHURN["s_noise"] * alpha * ratio * np.sqrt(gamma * (2.0 + gamma))
    rows = as_rows(alpha / grid.alpha, added), heun_rows(raised)

    def loop(key, x):
        keys = sample_keys(key, jnp.arange(len(x)))

        def step(x, row):
            i, ((keep, added), heun) = row
            noise = normal_each(fold_in_each(keys, i), x.shape[1:], x.dtype)
            return heun_step(keep * x + added * noise, heun), None

        return lax.scan(step, x, (jnp.arange(len(ratio)), rows))[0]

    return loop


def bare_lms(grid: Grid) -> Loop:
    ratio = np.append(grid.sigma / grid.alpha, grid.next_sigma[-1] / grid.next_alpha[-1])
    weights = np.zeros((4, len(grid.alpha)))
    for i in range(len(grid.alpha)):
        places = ratio[i::-1][:4] - ratio[i]
        for k, place in enumerate(places):
            others = np.delete(places, k)
            area = np.polyval(np.polyint(np.atleast_1d(np.poly(others))), ratio[i + 1] - ratio[i])
            weights[k, i] = grid.next_alpha[i] * area / np.prod(place - others)
    rows = as_rows(grid.alpha, grid.sigma, grid.next_alpha / grid.alpha, *weights)
    return lambda key, x: lax.scan(adams_step, (x, [jnp.zeros_like(x)] * 3), rows)[0][0]


def bare_plms(grid: Grid) -> Loop:
    keep = grid.next_alpha / grid.alpha
    gain = grid.next_sigma - keep * grid.sigma
    orders = [ADAMS[min(i, 3)] for i in range(len(gain))]
    weights = gain * np.array([row + [0] * (4 - len(row)) for row in orders]).T
    ends = as_rows(grid.next_alpha, grid.next_sigma, gain)
    rows = jnp.arange(len(gain)) == 0, ends, as_rows(grid.alpha, grid.sigma, keep, *weights)

    def step(carry, row):
        starting, (next_alpha, next_sigma, gain), adams = row
        (moved, slopes), _ = adams_step(carry, adams)

        def corrected():
            slope = (1.0 / next_sigma) * moved - (next_alpha / next_sigma) * (next_alpha * moved)
            return moved + 0.5 * gain * (slope - slopes[0])

        return (lax.cond(starting, corrected, lambda: moved), slopes), None

    return lambda key, x: lax.scan(step, (x, [jnp.zeros_like(x)] * 3), rows)[0][0]


def adams_step(carry, row):
    """A step along the slopes eps of this step and of the three before."""
    x, before = carry
    alpha, sigma, keep, *weights = row
    slopes = [(1.0 / sigma) * x - (alpha / sigma) * (alpha * x), *before]
    moved = keep * x + sum(weight * slope for weight, slope in zip(weights, slopes))
    return (moved, slopes[:3]), None


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


def bares(schedule: Schedule, num_steps: int) -> dict[str, Bare]:
    """Solvers for a schedule, which preserves variance, and a number of steps."""
    return {
        "ddim": Bare(ddim(), bare_ddim),
        "heun": Bare(heun(), bare_heun),
        "dpmpp_2m": Bare(dpm_multistep(2), bare_dpmpp_2m),
        "unipc": Bare(unipc(2), bare_unipc),
        "lms": Bare(lms(), bare_lms),
        "plms": Bare(plms(), bare_plms),
        "ddpm": Bare(ancestral(), bare_ddpm),
        "edm": Bare(heun(Churn(schedule, num_steps, **CHURN)), bare_edm),
        "dpmpp_2m_sde": Bare(dpm_multistep(2, stochastic=True), bare_dpmpp_2m_sde),
    }
