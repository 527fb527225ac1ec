"""Randomness that belongs to samples."""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.keys import batch_keys, fold_in_each, normal_each, sample_keys

KEY = jax.random.key(0)


def test_batch_of_eight_has_the_noise_of_twice_four_bitwise():
    whole = normal_each(sample_keys(KEY, jnp.arange(8)), (3, 2))
    halves = [normal_each(sample_keys(KEY, jnp.arange(4) + offset), (3, 2)) for offset in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len(np.unique(whole)) == whole.size


def test_devices_of_a_mapped_axis_number_the_global_batch():
    # vmap with an axis name stands for pmap and shard_map
    numbered = lambda _: batch_keys(KEY, 3, axis_name="devices").index
    index = jax.vmap(numbered, axis_name="devices")(jnp.zeros(2))
    np.testing.assert_array_equal(index, [[0, 1, 2], [3, 4, 5]])
    sizes = []
    count = lambda _: sizes.append(batch_keys(KEY, 3, axis_name="devices").size)
    jax.vmap(count, axis_name="devices")(jnp.zeros(2))
    assert sizes == [6]
    assert batch_keys(KEY, 3).size == 3


def test_folded_keys_differ_between_samples_and_between_steps():
    keys = [fold_in_each(sample_keys(KEY, jnp.arange(4)), step) for step in range(3)]
    data = np.concatenate([jax.random.key_data(each) for each in keys])
    assert len(np.unique(data, axis=0)) == 12


def test_noise_takes_the_dtype_that_is_asked_for():
    keys = sample_keys(KEY, jnp.arange(2))
    assert normal_each(keys, (3,)).dtype == jnp.float32
    assert normal_each(keys, (3,), jnp.bfloat16).dtype == jnp.bfloat16
