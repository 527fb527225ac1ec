"""Random keys that belong to samples, not to devices.

Every random draw is made from a key of its own sample,

    key_i = fold_in(key, i),    i = the global index of the sample,

so that a sample is the same whatever the batch size, the number of devices or the mesh on which
it is computed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

# (keys [b], shape, dtype) -> [b, *shape] standard normal: how a solver draws its noise
Normal = Callable[[Array, tuple[int, ...], DTypeLike], Array]


class BatchKeys(NamedTuple):
    """The randomness of one training batch, or of the part of it that this device holds.

    Attributes:
      key: the key that the whole global batch shares.
      index: [b] int32, position of each local sample in the global batch.
      size: the number of samples in the global batch, a Python int.
    """

    key: Array
    index: Array
    size: int


def batch_keys(key: Array, batch_size: int, axis_name: str | None = None) -> BatchKeys:
    """Number the samples of a batch.

    Args:
      key: one PRNG key, the same on every device.
      batch_size: samples on this device (the whole batch under plain `jit`).
      axis_name: the mapped axis inside `pmap` or `shard_map`; device d then holds the samples
        d * batch_size .. (d + 1) * batch_size - 1.

    >>> batch_keys(jax.random.key(0), 4).index
    Array([0, 1, 2, 3], dtype=int32)
    """
    index = jnp.arange(batch_size, dtype=jnp.int32)
    if axis_name is None:
        return BatchKeys(key, index, batch_size)
    offset = lax.axis_index(axis_name).astype(jnp.int32) * batch_size
    return BatchKeys(key, offset + index, batch_size * lax.axis_size(axis_name))


def sample_keys(key: Array, index: Array) -> Array:
    """One key for each global index: `fold_in(key, index)`.

    Args:
      key: one PRNG key.
      index: [b] integers.

    Returns:
      [b] PRNG keys.

    >>> sample_keys(jax.random.key(0), jnp.arange(3)).shape
    (3,)
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def fold_in_each(keys: Array, data: Array | int) -> Array:
    """Fold the same number into every key of a [b] array: the key of step `data` of each sample."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def normal_each(keys: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """One standard normal array of `shape` for every key: [b, *shape].

    >>> normal_each(sample_keys(jax.random.key(0), jnp.arange(2)), (8, 8, 1)).shape
    (2, 8, 8, 1)
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
