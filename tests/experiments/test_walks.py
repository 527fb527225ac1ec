"""Sampling that walks stretches of its grid again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from configs import CONFIGS
from model import SampleOptions, count_visits, make_levels, make_schedule, make_solver
from walks import Walk

SCHEDULE = make_schedule(CONFIGS["digits"].diffusion)
ONCE = SampleOptions(num_steps=6)
AGAIN = SampleOptions(num_steps=6, walk=Walk(num_resamples=3, jump_length=2))


def test_the_levels_are_those_of_the_grid_in_the_order_of_the_walk():
    walk = dj.resampling(6, jump_length=2, num_resamples=3)
    for leaf, whole in zip(make_levels(AGAIN, SCHEDULE), make_levels(ONCE, SCHEDULE)):
        np.testing.assert_array_equal(leaf, whole[walk])
    assert count_visits(AGAIN, SCHEDULE) == len(walk) - 1
    assert count_visits(ONCE, SCHEDULE) == 6


def test_the_way_up_is_fresh_noise_and_the_way_down_is_the_solver():
    levels, keys = make_levels(ONCE, SCHEDULE), dj.sample_keys(jax.random.key(0), jnp.arange(3))
    high, low = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (2, 3))
    solver, plain = (make_solver(options, SCHEDULE, False) for options in (AGAIN, ONCE))
    nothing, denoise = jnp.zeros((3, 4)), lambda x, level: 0.0 * x
    step = lambda each, x, *ends: each.step(keys, x, each.init(x), denoise, *ends)[0]
    up = step(solver, nothing, low, high)
    assert np.all(up != 0.0)
    np.testing.assert_array_equal(step(plain, nothing, low, high), nothing)
    np.testing.assert_allclose(step(solver, up, high, low), step(plain, up, high, low), rtol=1e-6)


def test_walks_that_are_none_are_refused():
    with pytest.raises(ValueError, match="num_resamples is 0"):
        Walk(num_resamples=0)
    with pytest.raises(ValueError, match="jump_length is 5, but nothing is walked again"):
        Walk(jump_length=5)
    with pytest.raises(ValueError, match="for a grid of 6 steps"):
        make_levels(SampleOptions(num_steps=6, walk=Walk(num_resamples=2, jump_length=7)), SCHEDULE)
