"""Every solver over schedules, grids and predictions, against closed forms of Gaussian mixtures.

Between interior levels errors fall with the order that a solver claims in `solver_table.SOLVERS`:
for the probability flow the distance to the exact map; for solvers that draw noise the error of
the moments of Gaussian data, which needs no random draws. Runs from the noisiest level to clean
data end where the flow ends, or with the moments and modes of the data. How the runs are made
stands in `exact_runs`.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_runs import (
    CASES,
    COUNTS,
    FINE_COUNTS,
    GRIDS,
    HOLDERS,
    MOMENT_COUNTS,
    RUN_UP,
    SCHEDULES,
    TURNS,
    Setting,
    at,
    cases_of,
    draws_of,
    levels_of_runs,
    levels_to_clean,
    moments_program,
    numbers_of,
    program,
)
from solver_table import ADAPTIVE, LINE, SOLVERS, build

from diffjax.core import exact
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import sample

FLOWING = [name for name, row in SOLVERS.items() if row.order]
MOVING = [name for name, row in SOLVERS.items() if row.weak_order]
SAMPLING = [name for name, row in SOLVERS.items() if row.samples]
LENGTH, MOMENT_LENGTH = COUNTS[1] + RUN_UP, MOMENT_COUNTS[1] + RUN_UP
SAMPLE_STEPS = 192

# coordinates of small and of large variance
GAUSS = exact.mixture([0.5, 0.5], [[0.4, -1.2]] * 2, [np.diag([0.05, 1.0])] * 2)
SHARE, CENTRES, SPREAD = 0.3, np.array([[-1.0, 0.5], [0.8, -0.2]]), 0.2
TWO_MODES = exact.mixture([SHARE, 1 - SHARE], CENTRES, [SPREAD**2 * np.eye(2)] * 2)


def setting_of(name: str, cases: np.ndarray, levels: NoiseLevel, **numbers) -> Setting:
    """The cases of a solver, as data for its program."""
    levels = jax.tree.map(lambda leaf: leaf[cases], levels)
    return Setting(levels, *numbers_of(name, cases, **numbers))


def turned(levels: NoiseLevel, num_steps: int) -> NoiseLevel:
    """The first `num_steps` steps the other way round, for inversion."""
    order = np.r_[num_steps:-1:-1, num_steps + 1 : levels.t.shape[1]]
    return jax.tree.map(lambda leaf: leaf[:, order], levels)


def assert_orders(claimed: int, first: np.ndarray, second: np.ndarray, cases: list[tuple]):
    """Errors [C] with N and with 2 N steps fall with the claimed order, in every case."""
    orders = np.log2(first / second)
    wrong = np.flatnonzero(np.abs(orders - claimed) > 0.2)
    found = [(*cases[i], orders[i], first[i], second[i]) for i in wrong]
    assert not found, f"claimed is order {claimed}, found {found}"


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


def line_ends(
    name: str, levels: NoiseLevel, num_steps: int, every: bool = False, **numbers
) -> tuple:
    """Where the solver goes from points on a line, and where the flow does: [C, B, 1] each."""
    levels = turned(levels, num_steps) if SOLVERS[name].inversion else levels
    setting = setting_of(name, cases_of(name, every), levels, every=every, **numbers)
    first, last = at(setting.levels, 0), at(setting.levels, num_steps)
    x = line_starts(first)
    no_noise, keys = np.zeros((len(x), 1)), keys_for(x.shape)
    result = program(name, every)(LINE, x, setting, num_steps, no_noise, keys)
    return result, line_flow(x, first, last)


def line_gap(*args, **numbers) -> np.ndarray:
    """Root mean squared distances [C] between the two."""
    result, expected = line_ends(*args, **numbers)
    return np.sqrt(np.mean(np.square(result - expected), axis=(1, 2)))


@pytest.mark.parametrize("name", FLOWING)
def test_probability_flow_is_followed_with_the_claimed_order(x64, name):
    # solvers take turns: every schedule meets every grid
    turn = (FLOWING.index(name) + 1) % 2
    errors = [line_gap(name, levels_of_runs(n, LENGTH, turn), n + RUN_UP) for n in COUNTS]
    assert_orders(SOLVERS[name].order, *errors, [TURNS[turn][i] for i in cases_of(name)])


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("name", FLOWING)
def test_order_is_claimed_of_every_grid_of_every_schedule(x64, name, turn):
    length = FINE_COUNTS[1] + RUN_UP
    grids = [(levels_of_runs(count, length, turn), count + RUN_UP) for count in FINE_COUNTS]
    errors = [line_gap(name, *grid, every=True) for grid in grids]
    cases = [TURNS[turn][i] for i in cases_of(name, every=True)]
    assert_orders(SOLVERS[name].order, *errors, cases)


@pytest.mark.parametrize("name", [name for name in FLOWING if not SOLVERS[name].inversion])
def test_probability_flow_is_followed_from_the_noisiest_level_to_clean_data(x64, name):
    pure = SOLVERS[name].from_pure_noise
    levels = levels_to_clean(COUNTS[0], LENGTH, pure)
    assert np.all(line_gap(name, levels, COUNTS[0], pure_noise=pure) < 0.03)


@pytest.mark.parametrize("name", FLOWING)
def test_what_the_network_predicts_changes_nothing(x64, name):
    count = 12
    levels = levels_of_runs(count, LENGTH)
    ends = [line_ends(name, levels, count + RUN_UP, shift=shift)[0] for shift in range(7)]
    for other in ends[1:]:
        np.testing.assert_allclose(other, ends[0], rtol=1e-8, atol=1e-9)


def one_grid_each(cases: np.ndarray) -> np.ndarray:
    """One case for each schedule, with its two grids in turn."""
    schedule, grid = np.divmod(cases, len(CASES) // len(SCHEDULES))
    return cases[grid == schedule % 2]


def normal_at(level: NoiseLevel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of GAUSS at levels [C], each [C, 2]."""
    marginal = jax.vmap(partial(exact.marginal, GAUSS))(level)
    return np.asarray(marginal.means[:, 0]), np.sqrt(np.asarray(marginal.variances[:, 0]))


def moment_errors(name: str, num_steps: int, turn: int) -> np.ndarray:
    """Distances [C] of mean and variance of Gaussian data to the exact ones, in units of both."""
    levels = levels_of_runs(num_steps, MOMENT_LENGTH, turn)
    setting = setting_of(name, cases_of(name, every=True), levels, every=True)
    ends = (normal_at(at(setting.levels, i)) for i in (0, -1))
    (mean, scale), (last_mean, last_scale) = ends
    program = moments_program(name, every=True)
    mean, variance = program(GAUSS, mean, scale, setting, num_steps + RUN_UP)
    off = [(mean - last_mean) / last_scale, variance / last_scale**2 - 1.0]
    return np.linalg.norm(np.concatenate(off, axis=1), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("name", MOVING)
def test_moments_converge_with_the_order_claimed_of_every_grid_of_every_schedule(x64, name, turn):
    errors = [moment_errors(name, count, turn) for count in MOMENT_COUNTS]
    cases = [TURNS[turn][i] for i in cases_of(name, every=True)]
    assert_orders(SOLVERS[name].weak_order, *errors, cases)


def mixture_runs(
    name: str,
    levels: NoiseLevel,
    num_steps: int,
    *,
    every: bool = False,
    size: int | None = None,
    **numbers,
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends [C, B, 2] of runs along the first of SAMPLE_STEPS steps, one case a schedule.

    `size` is B; together they are 6400 if it is left out.
    """
    row, cases = SOLVERS[name], one_grid_each(cases_of(name, every))
    setting = setting_of(name, cases, levels, every=every, **numbers)
    first = jax.tree.map(lambda leaf: leaf[:, None, None], at(setting.levels, 0))
    rng, shape = np.random.default_rng(0), (len(cases), size or 6400 // len(cases), 2)
    clean = exact.draw(jax.random.key(1), TWO_MODES, shape[0] * shape[1]).reshape(shape)
    x = first.alpha * clean + first.sigma * rng.normal(size=shape)
    noises = rng.normal(size=(*shape[:2], SAMPLE_STEPS, draws_of(row), 2))
    ends = program(name, every)(TWO_MODES, x, setting, num_steps, noises, keys_for(shape))
    return np.asarray(x), np.asarray(ends)


@pytest.mark.parametrize("name", SAMPLING)
def test_mixture_is_sampled_with_its_moments_and_its_modes(x64, name):
    pure = SOLVERS[name].from_pure_noise
    levels = levels_to_clean(SAMPLE_STEPS, SAMPLE_STEPS, pure)
    _, samples = mixture_runs(name, levels, SAMPLE_STEPS, pure_noise=pure)
    assert_sampled(samples.reshape(-1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_every_grid_of_every_schedule_samples_a_mixture_with_its_moments_and_modes(x64, name):
    pure, cases = SOLVERS[name].from_pure_noise, one_grid_each(cases_of(name, every=True))
    order, numbers = SOLVERS[name].weak_order or 1, {"every": True, "size": 400, "pure_noise": pure}
    for kind in GRIDS:
        grids = [
            (levels_to_clean(count, SAMPLE_STEPS, pure, kind), count)
            for count in (SAMPLE_STEPS, SAMPLE_STEPS // 2)
        ]
        runs = [mixture_runs(name, *grid, **numbers)[1] for grid in grids]
        # evenly spaced times of the Laplace schedule do not come near clean data
        before_clean = at(grids[1][0], grids[1][1] - 1)
        near = (before_clean.sigma < 0.5 * SPREAD * before_clean.alpha)[cases]
        runs = [ends[near] for ends in runs]
        for case, *each in zip(cases[near], *runs):
            assert_sampled_in_the_limit(*each, order, kind, CASES[case])
        together = (ends.reshape(-1, 2) for ends in runs)
        assert_sampled_in_the_limit(*together, order, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOLDERS if name not in ADAPTIVE])
def test_few_steps_of_every_schedule_that_is_held_are_finite_and_one_is_the_estimate(x64, name):
    row, cases = SOLVERS[name], one_grid_each(cases_of(name, every=True))
    for kind, count in itertools.product(GRIDS, (1, 2, 5)):
        levels = levels_to_clean(count, SAMPLE_STEPS, row.from_pure_noise, kind)
        numbers = {"every": True, "size": 8, "pure_noise": row.from_pure_noise}
        x, ends = mixture_runs(name, levels, count, **numbers)
        assert np.all(np.isfinite(ends)), (kind, count)
        if count == 1 and not row.stirs:
            first = jax.tree.map(lambda leaf: leaf[cases], at(levels, 0))
            estimates = jax.vmap(exact.denoiser(TWO_MODES))(x, first)
            np.testing.assert_allclose(ends, estimates, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("name", SAMPLING)
def test_what_the_network_predicts_changes_no_sample(x64, name):
    count = 4
    grid = levels_of_runs(count, SAMPLE_STEPS), count + RUN_UP
    ends = [mixture_runs(name, *grid, shift=shift)[1] for shift in range(3)]
    for other in ends[1:]:
        np.testing.assert_allclose(other, ends[0], rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
def test_mixture_is_sampled_by_solvers_that_choose_their_steps(name):
    schedule, times = SCHEDULES["linear"], jnp.array([0.98, 0.0])
    levels = schedule(times)
    levels = levels._replace(alpha=levels.alpha.at[-1].set(1.0), sigma=levels.sigma.at[-1].set(0.0))
    clean_key, noise_key = jax.random.split(jax.random.key(1))
    clean = exact.draw(clean_key, TWO_MODES, 6400)
    noise = jax.random.normal(noise_key, clean.shape)
    x = levels.alpha[0] * clean + levels.sigma[0] * noise

    @jax.jit
    def run(x, levels):
        solver = build(SOLVERS[name], schedule, rtol=1e-3, atol=1e-3)
        return sample(jax.random.key(0), x, exact.denoiser(TWO_MODES), solver, levels)

    assert_sampled(np.asarray(run(x, levels)))


def off_the_mixture(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far mean, covariance and shares of samples [N, 2] are off TWO_MODES, and their variances.

    Both are [7], of means over the samples.
    """
    mean, covariance = exact.moments(TWO_MODES)
    products = np.einsum("nd,ne->nde", x - mean, x - mean) - covariance
    nearest = np.argmin(np.linalg.norm(x[:, None] - CENTRES, axis=-1), axis=1)
    off = np.column_stack([x - mean, products.reshape(-1, 4), (nearest == 0) - SHARE])
    return off.mean(0), off.var(0) / len(x)


def assert_sampled(x: np.ndarray):
    """Samples have mean, covariance and shares of TWO_MODES within four standard errors.

    With this many steps the solvers' own errors are smaller than one.
    """
    off, variance = off_the_mixture(x)
    assert np.all(np.abs(off) < 4 * np.sqrt(variance)), (len(x), off / np.sqrt(variance))


def assert_sampled_in_the_limit(x: np.ndarray, coarser: np.ndarray, order: int, *case: str):
    """So would samples of infinitely many steps, foretold by x and by `coarser` of half the steps.

    On some grids the error of a solver of first order is several standard errors; Richardson's
    extrapolation takes it away.
    """
    (off, variance), (coarse_off, coarse_variance) = map(off_the_mixture, (x, coarser))
    ahead = 1 / (2**order - 1)
    limit = (1 + ahead) * off - ahead * coarse_off
    error = np.sqrt((1 + ahead) ** 2 * variance + ahead**2 * coarse_variance)
    assert np.all(np.abs(limit) < 4 * error), (case, limit / error)
