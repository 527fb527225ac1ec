"""Every solver over schedules, grids and predictions, against closed forms of Gaussian mixtures.

Between interior levels errors fall with the order that a solver claims in `test_solvers.SOLVERS`:
for the probability flow the distance to the exact map; for solvers that draw noise the error of
the moments of Gaussian data, which needs no random draws. Runs from the noisiest level to clean
data end where the flow ends, or with the moments and modes of the data. How the runs are made
stands in `exact_runs`.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_runs import (
    CASES,
    RUN_UP,
    SCHEDULES,
    at,
    draws_of,
    levels_of_runs,
    levels_to_clean,
    program,
)
from test_solvers import LINE, SOLVERS

from diffjax.core import exact
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel

FLOWING = [name for name, row in SOLVERS.items() if row.order]
MOVING = [name for name, row in SOLVERS.items() if row.weak_order]
SAMPLING = [name for name, row in SOLVERS.items() if row.samples]
COUNTS = (240, 480)  # numbers of steps, multiples of the lengths of all blocks
WEAK_COUNTS = (96, 192)
LENGTH, WEAK_LENGTH = COUNTS[1] + RUN_UP, WEAK_COUNTS[1] + RUN_UP

# coordinates of small and of large variance
GAUSS = exact.mixture([0.5, 0.5], [[0.4, -1.2]] * 2, [np.diag([0.05, 1.0])] * 2)
SHARE, CENTRES, SPREAD = 0.3, np.array([[-1.0, 0.5], [0.8, -0.2]]), 0.2
TWO_MODES = exact.mixture([SHARE, 1 - SHARE], CENTRES, [SPREAD**2 * np.eye(2)] * 2)


def chosen(levels: NoiseLevel, cases: np.ndarray) -> NoiseLevel:
    return jax.tree.map(lambda leaf: leaf[cases], levels)


def weak_run(levels: NoiseLevel, cases: np.ndarray) -> NoiseLevel:
    """The shorter grids of solvers that draw noise."""
    return jax.tree.map(lambda leaf: leaf[cases, : WEAK_LENGTH + 1], levels)


def turned(levels: NoiseLevel, num_steps: int) -> NoiseLevel:
    """The first `num_steps` steps the other way round, for inversion."""
    order = np.r_[num_steps:-1:-1, num_steps + 1 : levels.t.shape[1]]
    return jax.tree.map(lambda leaf: leaf[:, order], levels)


def assert_orders(first, second, claimed: int, cases, counts, *, above: float):
    """Errors [C] with two numbers of steps fall with the claimed order, on the whole and each.

    Where parts of an error have opposite signs it falls faster at first, by `above` at most.
    """
    orders = np.log2(first / second)
    wrong = np.flatnonzero((orders < claimed - 0.2) | (orders > claimed + above))
    found = [(*CASES[cases[i]], orders[i], first[i], second[i]) for i in wrong]
    assert not found, f"claimed order {claimed}; found with {counts} steps: {found}"
    if len(orders) > 2:
        assert abs(np.median(orders) - claimed) < 0.2, orders


def keys_for(shape: tuple[int, ...]):
    """A key for every sample of every case: [C, B]."""
    keys = sample_keys(jax.random.key(2), jnp.arange(shape[0] * shape[1]))
    return keys.reshape(shape[:2])


def line_starts(level: NoiseLevel) -> np.ndarray:
    """Points on a line, as far apart as data and noise are at levels [C]: [C, B, 1]."""
    return np.hypot(level.alpha, level.sigma)[:, None, None] * np.linspace(-1.8, 1.8, 8)[:, None]


@jax.jit
@jax.vmap
def line_flow(x, first, last):
    return exact.probability_flow(LINE, x, first, last)


def line_gap(name: str, levels: NoiseLevel, num_steps: int) -> np.ndarray:
    """Root mean squared distances [C] of where the solver ends to where the flow does."""
    run, cases = program(name)
    levels = chosen(levels, cases)
    if SOLVERS[name].inversion:
        levels = turned(levels, num_steps)
    first, last = at(levels, 0), at(levels, num_steps)
    x = line_starts(first)
    result = run(LINE, x, levels, num_steps, np.zeros((len(x), 1)), keys_for(x.shape))
    return np.sqrt(np.mean(np.square(result - line_flow(x, first, last)), axis=(1, 2)))


@pytest.mark.parametrize("name", FLOWING)
def test_probability_flow_is_followed_with_the_claimed_order(x64, name):
    errors = [line_gap(name, levels_of_runs(n, LENGTH), n + RUN_UP) for n in COUNTS]
    assert_orders(*errors, SOLVERS[name].order, program(name).cases, COUNTS, above=0.45)


@pytest.mark.parametrize("name", [name for name in FLOWING if not SOLVERS[name].inversion])
def test_probability_flow_is_followed_from_the_noisiest_level_to_clean_data(x64, name):
    levels = levels_to_clean(COUNTS[0], LENGTH, SOLVERS[name].from_pure_noise)
    assert np.all(line_gap(name, levels, COUNTS[0]) < 0.03)


@cache
def design(draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts [B, 2] and noises [B, M, draws, 2] with exactly the moments of independent normals.

    Orthogonal columns of numbers, the same for both coordinates: what is affine in them has the
    sample mean and the sample variance that all possible draws together would have.
    """
    size = draws * WEAK_LENGTH + 4
    columns = np.random.default_rng(0).normal(size=(size, draws * WEAK_LENGTH + 2))
    columns[:, 0] = 1.0
    columns = np.linalg.qr(columns)[0][:, 1:] * np.sqrt(size)
    both = np.repeat(columns[..., None], 2, axis=-1)
    return both[:, 0], both[:, 1:].reshape(size, WEAK_LENGTH, draws, 2)


def normal_at(level: NoiseLevel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of GAUSS at levels [C], each [C, 1, 2]."""
    marginal = jax.vmap(partial(exact.marginal, GAUSS))(level)
    return np.asarray(marginal.means[:, :1]), np.sqrt(np.asarray(marginal.variances[:, :1]))


def one_grid_each(cases: np.ndarray) -> np.ndarray:
    """One case for each schedule, with its two grids in turn."""
    schedule, grid = np.divmod(cases, len(CASES) // len(SCHEDULES))
    return cases[grid == schedule % 2]


def moment_errors(name: str, num_steps: int) -> np.ndarray:
    """Distances [C] of mean and variance of Gaussian data to the exact ones, in units of both."""
    cases = one_grid_each(program(name).cases)
    levels = weak_run(levels_of_runs(num_steps, LENGTH), cases)
    start, noise = design(draws_of(SOLVERS[name]))
    mean, scale = normal_at(at(levels, 0))
    x = mean + scale * start
    noises = np.broadcast_to(noise, (len(cases), *noise.shape))
    keys = keys_for(x.shape)
    result = program(name).run(GAUSS, x, levels, num_steps + RUN_UP, noises, keys)
    mean, scale = normal_at(at(levels, -1))
    result = (result - mean) / scale
    return np.hypot(np.mean(result, axis=1), np.var(result, axis=1) - 1.0).max(axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVING)
def test_moments_converge_with_the_claimed_order(x64, name):
    errors = [moment_errors(name, count) for count in WEAK_COUNTS]
    cases = one_grid_each(program(name).cases)
    assert_orders(*errors, SOLVERS[name].weak_order, cases, WEAK_COUNTS, above=0.8)


@pytest.mark.parametrize("name", SAMPLING)
def test_mixture_is_sampled_with_its_moments_and_its_modes(x64, name):
    row, num_steps = SOLVERS[name], WEAK_COUNTS[1]
    cases = one_grid_each(program(name).cases)
    levels = weak_run(levels_to_clean(num_steps, LENGTH, row.from_pure_noise), cases)
    first = jax.tree.map(lambda leaf: leaf[:, None, None], at(levels, 0))
    unused, noise = design(draws_of(row))
    rng, shape = np.random.default_rng(0), (len(cases), *unused.shape)
    clean = exact.draw(jax.random.key(1), TWO_MODES, shape[0] * shape[1]).reshape(shape)
    x = first.alpha * clean + first.sigma * rng.normal(size=shape)
    noises = rng.normal(size=(shape[0], *noise.shape))
    keys = keys_for(shape)
    result = program(name).run(TWO_MODES, x, levels, num_steps, noises, keys)
    assert_sampled(result.reshape(-1, 2))


def assert_sampled(x: np.ndarray):
    """Samples [N, 2] have mean, covariance and shares of TWO_MODES within four standard errors.

    With this many steps the solvers' own errors are smaller than one.
    """
    size, (mean, covariance) = len(x), exact.moments(TWO_MODES)
    products = np.einsum("nd,ne->nde", x - mean, x - mean)
    nearest = np.argmin(np.linalg.norm(x[:, None] - CENTRES, axis=-1), axis=1)
    errors = [
        (x.mean(0) - mean) / np.sqrt(np.diag(covariance)),
        (products.mean(0) - covariance) / products.std(0),
        (np.mean(nearest == 0) - SHARE) / math.sqrt(SHARE * (1 - SHARE)),
    ]
    for error in errors:
        assert np.all(np.abs(error) * math.sqrt(size) < 4), (size, error)
