"""What a batch draws: uniform times, noise by the closed form, the same on any part of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core.keys import BatchKeys, batch_keys
from diffjax.core.noising import (
    TIME_SAMPLERS,
    low_discrepancy,
    noise_batch,
    stratified,
    training_times,
)
from diffjax.core.schedules import cosine, linear_betas

KEY = jax.random.key(0)
TABLE = linear_betas(num_steps=100)
DATA = jax.random.normal(jax.random.key(1), (8, 3, 3, 2))

every_sampler = pytest.mark.parametrize("times", TIME_SAMPLERS.values(), ids=TIME_SAMPLERS)


def test_noised_batch_is_the_closed_form_at_the_drawn_times():
    noised = noise_batch(DATA, TABLE, batch_keys(KEY, 8))
    alpha, sigma = (leaf[:, None, None, None] for leaf in noised.level[1:])
    np.testing.assert_allclose(noised.x, alpha * DATA + sigma * noised.eps, rtol=1e-6)
    np.testing.assert_array_equal(noised.level.alpha, TABLE(noised.level.t).alpha)
    assert len(np.unique(noised.eps)) == noised.eps.size


@every_sampler
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


@every_sampler
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
        t = stratified(batch_keys(jax.random.key(seed), 16))
        np.testing.assert_array_equal(np.sort(np.floor(t * 16)), np.arange(16))


def test_low_discrepancy_times_are_evenly_spaced():
    for seed in range(5):
        t = np.sort(low_discrepancy(batch_keys(jax.random.key(seed), 16)))
        np.testing.assert_allclose(np.diff(t), 1 / 16, atol=1e-6)


def test_times_of_a_table_are_its_steps_with_equal_shares():
    steps = training_times(TABLE, (np.arange(1000) / 1000 + 5e-4).astype(np.float32))
    np.testing.assert_array_equal(np.bincount(steps, minlength=100), 10)
    assert training_times(TABLE, jnp.nextafter(jnp.float32(1), jnp.float32(0))) == 99
    u = jnp.array([0.1, 0.7])
    np.testing.assert_array_equal(training_times(cosine(), u), u)


def test_offset_noise_adds_one_number_to_each_channel_of_a_sample():
    data = jnp.zeros((2000, 3, 3, 2))
    draw = lambda amount: noise_batch(data, TABLE, batch_keys(KEY, 2000), noise_offset=amount).eps
    plain, offset = jax.jit(lambda: (draw(0.0), draw(0.5)))()
    added = (offset - plain) / 0.5
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1, :1], added.shape), atol=1e-5)
    numbers = np.asarray(added[:, 0, 0]).ravel()
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    assert abs(numbers.var() - 1) < 4 * np.sqrt(2 / numbers.size)
