"""Losses: weights in every space, times, keys, and what gradients they give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import densities, losses, parameterizations, schedules
from diffjax.core.keys import BatchKeys, batch_keys
from diffjax.core.levels import NoiseLevel, logsnr
from diffjax.core.losses import (
    TIME_SAMPLERS,
    WEIGHTS,
    diffusion_loss,
    hybrid_loss,
    noise_batch,
    prediction_weight,
    training_times,
)
from diffjax.core.parameterizations import PARAMETERIZATIONS, check_level
from diffjax.core.schedules import cosine, linear, linear_betas
from diffjax.core.sde import drift_and_diffusion

KEY = jax.random.key(0)
TABLE = linear_betas(num_steps=100)
DATA = jax.random.normal(jax.random.key(1), (8, 3, 3, 2))
LEVELS = NoiseLevel(
    jnp.arange(5.0),
    jnp.array([0.999, 0.9, 0.6, 0.3, 0.01]),
    jnp.sqrt(1 - jnp.array([0.999, 0.9, 0.6, 0.3, 0.01]) ** 2),
)
SNR = np.square(np.asarray(LEVELS.alpha) / np.asarray(LEVELS.sigma))

every_row = pytest.mark.parametrize("name", PARAMETERIZATIONS)
# that of the likelihood is infinite without noise
every_weight = pytest.mark.parametrize("weight_name", sorted(WEIGHTS.keys() - {"likelihood"}))


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


@pytest.mark.parametrize(
    ("weight", "row", "expected"),
    [
        # each paper writes its weight in the space that its network predicts
        (losses.simple, "eps", np.ones(5)),
        (losses.constant, "x0", np.ones(5)),
        (losses.snr_plus_one, "v", np.ones(5)),
        (losses.truncated_snr, "x0", np.maximum(SNR, 1)),
        (losses.min_snr(5.0), "x0", np.minimum(SNR, 5)),
        (losses.min_snr(5.0), "eps", np.minimum(SNR, 5) / SNR),
        (losses.min_snr(5.0), "v", np.minimum(SNR, 5) / (SNR + 1)),
        (losses.p2(0.5, 2.0), "eps", 1 / (2 + SNR) ** 0.5),
        (losses.sigmoid(-3.0), "eps", 1 / (1 + np.exp(np.log(SNR) + 3))),
        (WEIGHTS["score_matching"](), "score", np.square(np.asarray(LEVELS.sigma))),
        (losses.velocity, "velocity", np.ones(5)),
        (losses.edm(0.5), "edm", np.ones(5)),
    ],
)
def test_weight_is_that_of_its_paper_in_its_own_space(weight, row, expected):
    got = prediction_weight(weight, PARAMETERIZATIONS[row], LEVELS)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "sub_vp", "variance_exploding", "flow", "shifted"])
def test_likelihood_weights_the_score_by_the_squared_diffusion(name):
    schedule = schedules.shifted(schedules.flow(clock=1000.0), 2.0)
    if name != "shifted":
        schedule = schedules.SCHEDULES[name]()
    t = jnp.array([0.1, 0.5, 0.9])
    weight = prediction_weight(losses.likelihood(schedule), parameterizations.score, schedule(t))
    np.testing.assert_allclose(weight, drift_and_diffusion(schedule, t)[1], rtol=1e-3)


def test_likelihood_weight_is_importance_sampling_of_even_log_snr():
    """Mean weight times error over uniform time = log-SNR range times mean error over log-SNR."""
    schedule = schedules.between(linear(), 0.05, 0.9)
    ends = logsnr(schedule(jnp.array([0.0, 1.0])))
    even = schedules.resampled(linear(), densities.uniform(*map(float, ends)))
    error = lambda level: jax.nn.sigmoid(logsnr(level))
    u = (jnp.arange(2000) + 0.5) / 2000
    weight = prediction_weight(losses.likelihood(schedule), parameterizations.eps, schedule(u))
    weighted = jnp.mean(weight * error(schedule(u)))
    np.testing.assert_allclose(weighted, (ends[0] - ends[1]) * jnp.mean(error(even(u))), rtol=1e-4)


def test_min_snr_lowers_the_weight_of_the_clean_end_only():
    # LEVELS run from clean to noisy
    ratio = prediction_weight(losses.min_snr(5.0), parameterizations.eps, LEVELS)
    assert np.all(np.diff(ratio) > -1e-6)
    assert ratio[0] < 0.02
    np.testing.assert_allclose(ratio[SNR < 5], 1.0, rtol=1e-6)


@every_weight
@every_row
def test_weights_are_finite_at_zero_and_infinite_snr(weight_name, name):
    ends = NoiseLevel(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    weights = prediction_weight(WEIGHTS[weight_name](), PARAMETERIZATIONS[name], ends)
    assert np.all(np.isfinite(weights))
    assert np.all(np.asarray(weights) >= 0)


@every_row
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


def test_noised_batch_is_the_closed_form_at_the_drawn_times():
    noised = noise_batch(DATA, TABLE, batch_keys(KEY, 8))
    alpha, sigma = (leaf[:, None, None, None] for leaf in noised.level[1:])
    np.testing.assert_allclose(noised.x, alpha * DATA + sigma * noised.eps, rtol=1e-6)
    np.testing.assert_array_equal(noised.level.alpha, TABLE(noised.level.t).alpha)
    assert len(np.unique(noised.eps)) == noised.eps.size


@pytest.mark.parametrize("times", TIME_SAMPLERS.values(), ids=TIME_SAMPLERS)
def test_halves_of_a_batch_draw_what_the_whole_draws_bitwise(times):
    halves = [
        noise_batch(DATA[part], TABLE, BatchKeys(KEY, jnp.arange(8)[part], 8), times)
        for part in (slice(4), slice(4, 8))
    ]
    whole = noise_batch(DATA, TABLE, BatchKeys(KEY, jnp.arange(8), 8), times)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *halves)
    np.testing.assert_array_equal(joined.eps, whole.eps)
    np.testing.assert_array_equal(joined.level.t, whole.level.t)
    np.testing.assert_array_equal(*map(jax.random.key_data, (joined.keys, whole.keys)))
    np.testing.assert_allclose(joined.x, whole.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("times", TIME_SAMPLERS.values(), ids=TIME_SAMPLERS)
def test_time_of_every_position_in_the_batch_is_uniform(times):
    draws = 2000
    run = jax.jit(jax.vmap(lambda key: times(batch_keys(key, 4))))
    t = np.asarray(run(jax.random.split(KEY, draws)))
    assert t.min() >= 0.0
    assert t.max() < 1.0
    for position in t.T:
        # 1.95 is the 0.1 % point of Kolmogorov's distribution
        assert stats.kstest(position, "uniform").statistic < 1.95 / draws**0.5


def test_stratified_times_fall_into_intervals_of_their_own():
    for seed in range(5):
        t = losses.stratified(batch_keys(jax.random.key(seed), 16))
        np.testing.assert_array_equal(np.sort(np.floor(t * 16)), np.arange(16))


def test_low_discrepancy_times_are_evenly_spaced():
    for seed in range(5):
        t = np.sort(losses.low_discrepancy(batch_keys(jax.random.key(seed), 16)))
        np.testing.assert_allclose(np.diff(t), 1 / 16, atol=1e-6)


def test_times_of_a_table_are_its_steps_with_equal_shares():
    steps = training_times(TABLE, (np.arange(1000) / 1000 + 5e-4).astype(np.float32))
    np.testing.assert_array_equal(np.bincount(steps, minlength=100), 10)
    assert training_times(TABLE, jnp.nextafter(jnp.float32(1), jnp.float32(0))) == 99
    u = jnp.array([0.1, 0.7])
    np.testing.assert_array_equal(training_times(cosine(), u), u)


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


def test_errors_say_what_a_loss_needs():
    with pytest.raises(KeyError, match="'x0'"):
        diffusion_loss(lambda params, x, t, keys: x, TABLE)(None, {"image": DATA}, KEY)
    with pytest.raises(TypeError, match="cosine_betas"):
        hybrid_loss(hybrid_network, cosine())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pure noise"):
        diffusion_loss(lambda params, x, t, keys: x, schedules.zero_terminal_snr(TABLE))
    with pytest.raises(ValueError, match="pure noise"):
        check_level(parameterizations.eps, cosine()(1.0))


def test_offset_noise_adds_one_number_to_each_channel_of_a_sample():
    data = jnp.zeros((2000, 3, 3, 2))
    draw = lambda amount: noise_batch(data, TABLE, batch_keys(KEY, 2000), noise_offset=amount).eps
    plain, offset = jax.jit(lambda: (draw(0.0), draw(0.5)))()
    added = (offset - plain) / 0.5
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1, :1], added.shape), atol=1e-5)
    numbers = np.asarray(added[:, 0, 0]).ravel()
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    assert abs(numbers.var() - 1) < 4 * np.sqrt(2 / numbers.size)
