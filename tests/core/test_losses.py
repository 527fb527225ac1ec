"""Losses: the same gradient under every prediction, what networks are told, the hybrid bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import parameterizations, schedules
from diffjax.core.keys import batch_keys
from diffjax.core.loss_weights import WEIGHTS
from diffjax.core.losses import diffusion_loss, hybrid_loss, thinned, total
from diffjax.core.noising import TIME_SAMPLERS, noise_batch
from diffjax.core.parameterizations import PARAMETERIZATIONS, check_level
from diffjax.core.schedules import cosine, linear, linear_betas

KEY = jax.random.key(0)
TABLE = linear_betas(num_steps=100)
DATA = jax.random.normal(jax.random.key(1), (8, 3, 3, 2))


def network_for(row, level_of):
    """A network whose output stands for the same x0, params * sin(x) + t, under every row."""

    def apply(params, x, t, keys):
        level = level_of(t)
        skip, out = row.estimate(jax.tree.map(lambda leaf: leaf[:, None, None, None], level))
        clean = params * jnp.sin(x) + 0.1 * (level.alpha)[:, None, None, None]
        return (clean - skip * x) / out

    return apply


def test_gradient_is_the_same_whichever_prediction_the_network_makes(x64):
    table = linear_betas(num_steps=100)
    weights = {name: WEIGHTS[name]() for name in ("simple", "constant", "min_snr", "sigmoid")}
    # this network looks its level up by the time
    rows = {name: row._replace(clock=lambda level: level.t, in_scale=lambda level: 1.0)
            for name, row in PARAMETERIZATIONS.items()}  # fmt: skip

    def values(params, row):
        network = network_for(row, table)
        losses_ = [diffusion_loss(network, table, row, weight=weights[name]) for name in weights]
        return jnp.stack([loss(params, {"x0": DATA}, KEY)[0] for loss in losses_])

    def with_slopes(row):
        return jax.jvp(lambda params: values(params, row), (0.7,), (1.0,))

    results = jax.jit(lambda: {name: with_slopes(row) for name, row in rows.items()})()
    for name, result in results.items():
        np.testing.assert_allclose(result, results["x0"], rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_and_gradient_are_finite_where_the_schedule_ends(name):
    row, schedule = (
        PARAMETERIZATIONS[name],
        linear() if name in ("eps", "score", "ncsn", "edm") else cosine(),
    )
    times = lambda keys: jnp.where(keys.index % 2 == 0, 0.0, 1.0)
    loss = diffusion_loss(lambda params, x, t, keys: params * x, schedule, row, times=times)
    values, slopes = jax.jvp(lambda p: loss(p, {"x0": DATA}, KEY)[0], (0.7,), (1.0,))
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))


def test_default_loss_is_the_mean_squared_error_on_eps():
    loss = diffusion_loss(lambda params, x, t, keys: params * x, TABLE)
    values, metrics = loss(0.3, {"x0": DATA}, KEY)
    noised = noise_batch(DATA, TABLE, batch_keys(KEY, 8))
    expected = np.mean((0.3 * noised.x - noised.eps) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], expected, rtol=1e-5)


def test_network_receives_conditioning_and_a_key_for_each_sample():
    seen = {}

    def apply(params, x, t, *, keys, labels):
        seen.update(keys=keys, labels=labels)
        return x

    diffusion_loss(apply, TABLE)(None, {"x0": DATA, "labels": jnp.arange(8)}, KEY)
    np.testing.assert_array_equal(seen["labels"], np.arange(8))
    assert len(np.unique(jax.random.key_data(seen["keys"]), axis=0)) == 8


def hybrid_network(params, x, t, keys):
    mean, variance = params
    return jnp.concatenate([mean * x, jnp.tanh(variance) * jnp.ones_like(x)], axis=-1)


def test_bound_in_the_hybrid_loss_trains_the_variance_and_not_the_mean():
    loss = hybrid_loss(hybrid_network, TABLE)
    bound = lambda params: loss(params, {"x0": DATA}, KEY)[1]["vlb"].sum()
    mean_slope, variance_slope = jax.jit(jax.grad(bound))((0.3, 0.1))
    assert mean_slope == 0.0
    assert variance_slope != 0.0


def test_hybrid_loss_is_the_simple_loss_plus_the_weighted_bound():
    batch = {"x0": DATA}
    values, metrics = hybrid_loss(hybrid_network, TABLE, vlb_weight=0.01)((0.3, 0.1), batch, KEY)
    simple, _ = diffusion_loss(lambda p, x, t, keys: p * x, TABLE)(0.3, batch, KEY)
    np.testing.assert_allclose(values, simple + 0.01 * metrics["vlb"], rtol=1e-5)
    assert np.all(np.asarray(metrics["vlb"]) > 0)


def echo(params, x, t, keys):
    return x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: diffusion_loss(echo, TABLE)(None, {"image": DATA}, KEY), KeyError, "'x0'"),
        (lambda: diffusion_loss(echo, TABLE)(None, DATA, KEY), TypeError, "a dict with 'x0'"),
        (
            lambda: diffusion_loss(echo, TABLE)(None, {"x0": DATA.astype(jnp.uint8)}, KEY),
            TypeError,
            "x0 is uint8.* x / 127.5 - 1",
        ),
        (
            lambda: diffusion_loss(lambda params, x, t, keys: x[..., :1], TABLE)(
                None, {"x0": DATA}, KEY
            ),
            ValueError,
            "returned .8, 3, 3, 1. for data of .8, 3, 3, 2.",
        ),
        (lambda: diffusion_loss(echo, "cosine"), TypeError, "schedule is 'cosine'"),
        (lambda: diffusion_loss(echo, cosine), TypeError, "level is a Cosine"),
        (lambda: diffusion_loss(echo, TABLE, "eps"), TypeError, "prediction is 'eps'"),
        (lambda: diffusion_loss(echo, TABLE, parameterizations.edm), TypeError, r"edm\(\)"),
        (lambda: hybrid_loss(hybrid_network, cosine()), TypeError, "cosine_betas"),
        (
            lambda: diffusion_loss(echo, schedules.zero_terminal_snr(TABLE)),
            ValueError,
            "pure noise",
        ),
        (lambda: check_level(parameterizations.eps, cosine()(1.0)), ValueError, "pure noise"),
    ],
)
def test_errors_say_what_a_loss_needs(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_losses_are_added_with_noise_and_times_of_their_own():
    one = diffusion_loss(lambda params, x, t, keys: params * x, TABLE)
    values, metrics = total([one, one])(0.5, {"x0": DATA}, KEY)
    alone = [one(0.5, {"x0": DATA}, jax.random.fold_in(KEY, i))[0] for i in range(2)]
    np.testing.assert_allclose(values, sum(alone), rtol=1e-6)
    np.testing.assert_allclose([metrics["mse_0"], metrics["mse_1"]], alone, rtol=1e-6)
    assert not np.allclose(*alone)


@pytest.mark.parametrize("times", TIME_SAMPLERS.values(), ids=TIME_SAMPLERS)
def test_a_thinned_loss_is_that_of_a_smaller_batch_however_many_devices_hold_it(times):
    loss = diffusion_loss(lambda params, x, t, keys, c: params * x + c, TABLE, times=times)
    told = jnp.arange(8.0).reshape(8, 1, 1, 1)
    keys = batch_keys(KEY, 8)

    def of(loss, part, keys):
        return loss(0.5, {"x0": DATA[part], "c": told[part]}, keys)[0]

    few = of(loss, np.s_[::2], batch_keys(KEY, 4))
    whole = of(thinned(loss, 2), np.s_[:], keys)
    np.testing.assert_allclose(whole, np.repeat(few, 2), rtol=1e-6)
    halves = [of(thinned(loss, 2), part, keys._replace(index=keys.index[part]))
              for part in (np.s_[:4], np.s_[4:])]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-6)
    with pytest.raises(ValueError, match="8 samples cannot be thinned to one in 3"):
        of(thinned(loss, 3), np.s_[:], keys)
    with pytest.raises(ValueError, match="every is 0"):
        thinned(loss, 0)


def test_a_part_of_a_batch_may_be_empty():
    values, _ = diffusion_loss(echo, TABLE)(None, {"x0": DATA[:0]}, batch_keys(KEY, 0))
    assert values.shape == (0,)
