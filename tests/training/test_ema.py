"""Laws of the averages of the parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.training.ema import ema_names, init_ema, update_ema


def history(steps=30):
    return np.random.default_rng(0).normal(size=(steps, 5)).astype(np.float32)


def run(decays, values, warmup):
    ema = init_ema({"w": jnp.array(values[0])}, decays)
    for n, value in enumerate(values[1:]):
        ema = update_ema(ema, {"w": jnp.array(value)}, jnp.array(n), warmup=warmup)
    return ema


def test_decay_zero_is_the_parameters_exactly():
    values = history()
    for warmup in (False, True):
        np.testing.assert_array_equal(run(0.0, values, warmup)["0"]["w"], values[-1])


def test_the_average_is_the_weighted_sum_of_all_parameters():
    values, decay = history(), 0.9
    weights = (1 - decay) * decay ** np.arange(len(values))[::-1]
    weights[0] = decay ** (len(values) - 1)
    expected = weights @ values.astype(np.float64)
    np.testing.assert_allclose(run(decay, values, False)["0.9"]["w"], expected, atol=1e-6)


def test_warm_up_forgets_the_initial_parameters():
    values = history()
    values[0] = 1e6
    # prod_n (1 + n) / (10 + n) over 29 steps = 9! 29! / 38!, below 1e-8 of the start is left
    assert np.abs(run(0.9999, values, True)["0.9999"]["w"]).max() < 2.0
    assert np.abs(run(0.9999, values, False)["0.9999"]["w"]).min() > 1e5


def test_several_decays_equal_each_alone():
    values = history()
    together = run((0.5, 0.99), values, True)
    for decay, name in ((0.5, "0.5"), (0.99, "0.99")):
        chex.assert_trees_all_equal(together[name], run(decay, values, True)[name])


def test_constant_parameters_are_a_fixed_point_to_the_last_bit():
    values = np.repeat(history(1), 50, axis=0)
    np.testing.assert_array_equal(run(0.9999, values, True)["0.9999"]["w"], values[0])


def test_averages_share_no_buffer_with_the_parameters():
    params = {"w": jnp.ones(4)}
    ema = init_ema(params, (0.5, 0.9))
    jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(params)
    np.testing.assert_array_equal(ema["0.5"]["w"], np.ones(4))


def test_names_return_to_their_decays_and_wrong_decays_are_refused():
    decays = [0.0, 0.5, 0.999, 0.9999, 0.99999987]
    assert [float(name) for name in ema_names(decays)] == decays
    assert ema_names(()) == {}
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match="lies in"):
            ema_names(wrong)
    with pytest.raises(ValueError, match="twice"):
        ema_names([0.9, 0.9])
