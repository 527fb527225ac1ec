"""Samplers of few-step models, with consistency functions that are exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffjax.core import exact, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.sampling import sample
from diffjax.core.sigma_grids import levels_at
from diffjax.solvers import ddim, renoise, tcd

LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
POINT = exact.gaussian([0.4], [0.0])
CLEAN = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(0.0))
SCHEDULE = schedules.linear()
SIZE = 4096
KEYS = sample_keys(jax.random.key(0), jnp.arange(SIZE))


def exact_consistency(x, level, end=CLEAN):
    """Where the probability flow takes x: what consistency models learn."""
    return exact.probability_flow(LINE, x, level, end)


@partial(jax.jit, static_argnums=(1, 2))
def sampled(distribution, denoise, solver, levels):
    """Ends of runs that start from the exact marginal of the first level."""
    eps = jax.random.normal(jax.random.key(1), (SIZE, 1))
    clean = exact.draw(jax.random.key(2), distribution, SIZE)
    start = add_noise(clean, eps, NoiseLevel(*(leaf[0] for leaf in levels)))
    return sample(KEYS, start, denoise, solver, levels)


def assert_distributed(x, distribution, level):
    """The distribution of x [N, 1] is the marginal of a level.

    Kolmogorov's distance is exceeded as seldom as four standard errors of a normal are.
    """
    x = np.sort(np.asarray(x, np.float64)[:, 0])
    means = float(level.alpha) * distribution.means
    scales = np.hypot(float(level.alpha) * np.sqrt(distribution.variances), float(level.sigma))
    weights = np.exp(distribution.log_weights)
    expected = (weights * norm.cdf((x[:, None] - means.T) / scales.T)).sum(axis=1)
    rank = np.arange(len(x)) / len(x)
    distance = np.max(np.abs(expected - rank - 0.5 / len(x)))
    assert distance * np.sqrt(len(x)) < 2.28


@pytest.mark.parametrize("solver", [renoise(), tcd(SCHEDULE, 1.0)], ids=["consistency", "tcd"])
@pytest.mark.parametrize("times", [[0.9, 0.0], [0.9, 0.6, 0.3, 0.0]], ids=["one step", "three"])
def test_exact_consistency_function_draws_from_the_data_in_any_number_of_steps(solver, times):
    x = sampled(LINE, exact_consistency, solver, SCHEDULE(np.array(times, np.float32)))
    assert_distributed(x, LINE, CLEAN)


def test_noise_that_the_consistency_function_leaves_is_not_added_again():
    exploding = schedules.edm_sigmas()
    floor = 0.5
    levels = schedules.levels_at(exploding, np.array([20.0, 3.0, 1.0, floor]))
    end = NoiseLevel(*(leaf[-1] for leaf in jax.device_get(levels)))
    denoise = partial(exact_consistency, end=end)
    x = sampled(LINE, denoise, renoise(floor=floor), levels)
    assert_distributed(x, LINE, end)


def test_trajectory_steps_leave_as_much_noise_as_the_level_says():
    levels = SCHEDULE(np.array([0.9, 0.7, 0.5, 0.3], np.float32))
    x = sampled(POINT, exact.denoiser(POINT), tcd(SCHEDULE, 0.4), levels)
    assert_distributed(x, POINT, jax.tree.map(lambda leaf: leaf[-1], levels))


@pytest.mark.parametrize(
    "schedule", [schedules.variance_exploding(), schedules.linear_betas()], ids=["VE", "table"]
)
def test_tcd_ends_with_clean_data_where_times_of_the_schedule_do_not(schedule):
    """The trap: clean data has the time of the cleanest level, and so the one below it noise."""
    levels = levels_at(schedule, np.array([2.0, 0.5, 0.0]))
    start = jnp.full((2, 1), 3.0)
    held = lambda x, level: jnp.full_like(x, 0.4)
    x = sample(KEYS[:2], start, held, tcd(schedule), levels)
    np.testing.assert_allclose(x, 0.4, rtol=1e-6)


@pytest.mark.parametrize("solver", [renoise(fresh=0.0), tcd(SCHEDULE, 0.0)], ids=["fresh", "eta"])
def test_without_fresh_noise_they_are_ddim(solver):
    levels = SCHEDULE(np.array([0.9, 0.6, 0.3, 0.1], np.float32))
    denoise, key, x = exact.denoiser(LINE), jax.random.key(0), jnp.linspace(-2, 2, 5)[:, None]
    runs = [jax.jit(lambda x, s=s: sample(key, x, denoise, s, levels))(x) for s in (solver, ddim())]
    np.testing.assert_allclose(*runs, rtol=1e-5, atol=1e-6)
