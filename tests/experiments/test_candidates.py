"""Of several candidates the one is kept that is likeliest for its class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from configs import CONFIGS
from diffjax.networks import Functional
from diffjax.training import make_mesh
from model import SampleOptions, count_visits, make_schedule
from samplers import COMPARISON, FURTHER, make_cost, make_sampler

CONFIG = CONFIGS["digits"]
OPTIONS = SampleOptions(solver="ddim", num_steps=3)
LABELS = jnp.array([3, 7, 1, 0])
KEY, POSITIONS = jax.random.key(0), jnp.arange(4)


def apply(params, x, t, *, labels):
    """Estimates that a class moves."""
    return jnp.sin(params * x) - 0.1 * labels[:, None, None, None].astype(x.dtype)


NETWORK = Functional(lambda key: 0.3, apply)


def generate(candidates, key=KEY, positions=POSITIONS):
    options = dataclasses.replace(OPTIONS, candidates=candidates)
    draw = make_sampler(CONFIG, NETWORK, options, make_mesh())
    return np.asarray(draw(0.3, key, positions, LABELS[positions]))


def test_the_one_that_costs_least_is_kept():
    keys = [KEY, *(jax.random.fold_in(KEY, FURTHER + i) for i in range(3))]
    draws = np.stack([generate(1, key) for key in keys])
    cost = make_cost(CONFIG, NETWORK, OPTIONS, None)
    noise = dj.sample_keys(jax.random.fold_in(KEY, COMPARISON), POSITIONS)
    least = np.argmin([cost(0.3, noise, draw, LABELS) for draw in draws], axis=0)
    assert len(set(least.tolist())) > 1
    np.testing.assert_allclose(generate(4), draws[least, POSITIONS], atol=1e-5)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    np.testing.assert_allclose(generate(3)[2:], generate(3, positions=POSITIONS[2:]), atol=1e-5)


def test_candidates_are_counted_and_refused_where_they_cannot_be():
    schedule = make_schedule(CONFIG.diffusion)
    four = dataclasses.replace(OPTIONS, candidates=4)
    assert count_visits(four, schedule) == 4 * count_visits(OPTIONS, schedule)
    with pytest.raises(ValueError, match="candidates is 0; at least 1"):
        SampleOptions(candidates=0)
    with pytest.raises(ValueError, match="A trajectory is of one image; candidates is 4"):
        make_sampler(CONFIG, NETWORK, four, make_mesh(), keep_trajectory=True)
