"""Experts: every time has a network of its own, and no other is asked."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax.core.keys import batch_keys
from diffjax.core.losses import TIME_SAMPLERS, stratified, within
from diffjax.networks import Functional, experts

SCHEDULE = dj.cosine()
DATA = dj.exact.mixture([0.5, 0.5], [[-0.6, 0.2], [0.7, -0.1]], [0.02, 0.05])


def apply_one(params, x, t, *, shift=0.0, keys=None):
    return params["scale"] * x + params["bias"] * t[:, None] + shift


ONE = Functional(lambda key: dict(zip(("scale", "bias"), jax.random.normal(key, (2,)))), apply_one)
INIT, APPLY = experts(ONE, [0.3, 0.8])
PARAMS = INIT(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (5, 2))
T = jnp.array([0.1, 0.9, 0.3, 0.79, 0.8])


def test_each_sample_goes_by_the_network_of_its_time():
    found = jax.jit(APPLY)(PARAMS, X, T, shift=0.5)
    for i, part in enumerate("02112"):
        wanted = apply_one(PARAMS[part], X[i : i + 1], T[i : i + 1], shift=0.5)
        np.testing.assert_allclose(found[i : i + 1], wanted, rtol=1e-6)
    each = jax.vmap(lambda x, t: APPLY(PARAMS, x[None], t[None], shift=0.5)[0])(X, T)
    np.testing.assert_allclose(each, found, rtol=1e-6)


def test_networks_of_other_parts_are_not_computed():
    asked = []

    def note(params, x, t):
        jax.debug.callback(lambda which: asked.append(int(which)), params)
        return x

    _, apply = experts(Functional(lambda key: 0, note), [0.3, 0.8])
    params = {"0": jnp.array(0), "1": jnp.array(1), "2": jnp.array(2)}
    jax.block_until_ready(jax.jit(apply)(params, X, jnp.full(5, 0.5)))
    jax.effects_barrier()
    assert asked == [1]


def test_the_parameters_of_experts_differ():
    chex.assert_trees_all_equal_shapes(*PARAMS.values())
    assert len({float(part["scale"]) for part in PARAMS.values()}) == 3


def test_a_part_is_trained_alone_and_as_if_there_were_no_other():
    batch = {"x0": dj.exact.draw(jax.random.key(2), DATA, 64)}
    times = within(stratified, 0.8, 1.0)

    def gradient(apply, params):
        loss = dj.diffusion_loss(apply, SCHEDULE, dj.v, times=times)
        return jax.grad(lambda params: loss(params, batch, jax.random.key(3))[0].mean())(params)

    told = gradient(partial(APPLY, part=2), PARAMS)
    routed = gradient(APPLY, PARAMS)
    chex.assert_trees_all_close(told, routed, rtol=1e-6)
    chex.assert_trees_all_close(told["2"], gradient(apply_one, PARAMS["2"]), rtol=1e-6)
    assert all(float(optax.global_norm(told[part])) == 0.0 for part in "01")
    assert float(optax.global_norm(told["2"])) > 0.0


def test_experts_that_agree_draw_what_one_of_them_draws():
    denoise = dj.exact.denoiser(DATA)
    exact = Functional(lambda key: {}, lambda params, x, t: denoise(x, SCHEDULE(t)))
    levels = SCHEDULE(dj.trailing(12))
    start = dj.initial_noise(jax.random.key(4), (6, 2), levels)

    def draw(network):
        estimate = dj.make_denoiser(network.apply, network.init(jax.random.key(0)), dj.x0)
        return jax.jit(lambda: dj.sample(jax.random.key(5), start, estimate, dj.ddim(), levels))()

    np.testing.assert_allclose(draw(experts(exact, [0.3, 0.8])), draw(exact), rtol=1e-5)


@pytest.mark.parametrize("boundaries", [[], [0.5, 0.5], [0.8, 0.3]])
def test_boundaries_ascend(boundaries):
    with pytest.raises(ValueError, match="must ascend"):
        experts(ONE, boundaries)


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_of_a_part_are_even_within_it(name):
    u = np.asarray(within(TIME_SAMPLERS[name], 0.2, 0.6)(batch_keys(jax.random.key(0), 4000)))
    assert 0.2 <= u.min() < u.max() < 0.6
    np.testing.assert_allclose(np.histogram(u, bins=4, range=(0.2, 0.6))[0], 1000, rtol=0.1)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 0.5), (0.5, 1.1)])
def test_a_part_lies_within_the_whole(low, high):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        within(stratified, low, high)
