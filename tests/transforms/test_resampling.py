"""Walks that go up again: their order, and what a solver does on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import grids, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import sample
from diffjax.solvers import ddim, dpm_multistep
from diffjax.transforms import renoising, resampling, revisited

X = jax.random.normal(jax.random.key(0), (4, 2))
KEYS = sample_keys(jax.random.key(1), jnp.arange(4))
GRID = schedules.cosine()(grids.trailing(6))
denoise = lambda x, level: jnp.tanh(x) * level.alpha


@pytest.mark.parametrize(("steps", "jump", "times"), [(20, 4, 3), (7, 1, 5), (9, 9, 2), (10, 3, 2)])
def test_every_stretch_is_walked_as_often_as_asked(steps, jump, times):
    walk = resampling(steps, jump_length=jump, num_resamples=times)
    moves = np.diff(walk)
    assert walk[0] == 0
    assert walk[-1] == steps
    np.testing.assert_array_equal(np.abs(moves), 1)
    down = np.bincount(walk[:-1][moves > 0], minlength=steps)
    # counted from the clean end; the last, shorter stretch is walked once
    repeated = len(range(0, steps - jump, jump)) * jump
    expected = np.where(np.arange(steps) < repeated, times, 1)
    np.testing.assert_array_equal(down[::-1], expected)


def test_one_resample_is_the_plain_grid():
    np.testing.assert_array_equal(resampling(7, jump_length=3, num_resamples=1), np.arange(8))


def test_levels_are_visited_in_the_order_of_the_walk():
    walk = resampling(6, jump_length=2, num_resamples=3)
    for leaf, whole in zip(revisited(GRID, jump_length=2, num_resamples=3), GRID):
        np.testing.assert_array_equal(leaf, whole[walk])


@pytest.mark.parametrize(("jump", "times"), [(0, 2), (8, 2), (2, 0)])
def test_impossible_walks_are_refused(jump, times):
    with pytest.raises(ValueError, match="for a grid of 7 steps"):
        resampling(7, jump_length=jump, num_resamples=times)


def test_a_multistep_solver_goes_down_as_before_and_forgets_when_it_rises():
    solver, level = dpm_multistep(2), lambda i: NoiseLevel(*(leaf[i] for leaf in GRID))
    run = jax.jit(
        lambda x, levels: [
            sample(KEYS, x, denoise, each, levels) for each in (solver, renoising(solver))
        ]
    )
    plain, walked = run(X, GRID)
    np.testing.assert_allclose(walked, plain, rtol=1e-5)
    # two steps down and all the way up: what follows is a run of its own
    walking = renoising(solver)
    x, state = X, walking.init(X)
    for current, next_ in [(0, 1), (1, 2), (2, 0)]:
        x, state = walking.step(KEYS, x, state, denoise, level(current), level(next_))
    fresh, _ = walking.step(KEYS, x, walking.init(X), denoise, level(0), level(1))
    after, _ = walking.step(KEYS, x, state, denoise, level(0), level(1))
    np.testing.assert_array_equal(after, fresh)


def test_going_up_has_the_moments_of_the_forward_process():
    x0 = jnp.full((5000, 1), 0.7)
    keys = sample_keys(jax.random.key(2), jnp.arange(5000))
    start, end = (NoiseLevel(*(leaf[i] for leaf in GRID)) for i in (6, 3))
    step = jax.jit(lambda x: renoising(ddim()).step(keys, x, (), denoise, start, end)[0])
    x = step(x0)
    error = float(end.sigma) / np.sqrt(len(x0))
    np.testing.assert_allclose(np.mean(x), 0.7 * end.alpha, atol=4.0 * error)
    np.testing.assert_allclose(np.std(x), end.sigma, atol=4.0 * error / np.sqrt(2.0))
