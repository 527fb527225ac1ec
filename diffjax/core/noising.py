"""What a training step draws: a time, noise and a key for every sample, from keys of its own.

    x = alpha x0 + sigma eps    at the level of time t,    t = training_times(schedule, u)

The numbers u in [0, 1) are uniform for each sample; the time samplers differ in how those of a
batch go together. Every draw follows from the key of the batch and the place of a sample in it, so
that parts of a batch draw what the whole does.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import BatchKeys, batch_keys, fold_in_each, normal_each, sample_keys
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.schedules import Schedule, num_train_steps

TimeSampler = Callable[[BatchKeys], Array]


def uniform(keys: BatchKeys) -> Array:
    """Independent uniform times, [b] in [0, 1)."""
    return jax.vmap(jax.random.uniform)(_folded(keys, 0))


def stratified(keys: BatchKeys) -> Array:
    """One uniform time in each of as many equal intervals as the global batch has samples.

    The intervals are dealt out by a random rotation, so that each sample's own time is uniform
    whatever its position in the batch.
    """
    rotation = jax.random.randint(_batch_key(keys), (), 0, keys.size)
    return ((keys.index + rotation) % keys.size + uniform(keys)) / keys.size


def low_discrepancy(keys: BatchKeys) -> Array:
    """An even grid of times under one common random shift: arXiv:2107.00630, Appendix I.1."""
    return (jax.random.uniform(_batch_key(keys)) + keys.index / keys.size) % 1.0


def within(times: TimeSampler, low: float, high: float) -> TimeSampler:
    """Times of a part of the way alone, [b] in [low, high).

    Args:
      times: how they are drawn within it.
      low, high: of the whole [0, 1).

    Raises:
      ValueError: the part is empty or reaches beyond the whole.

    >>> from diffjax.core.keys import batch_keys
    >>> within(low_discrepancy, 0.75, 1.0)(batch_keys(jax.random.key(0), 4)).min() >= 0.75
    Array(True, dtype=bool)
    """
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"within: the part from {low} to {high}; needed is 0 <= low < high <= 1.")
    return lambda keys: low + (high - low) * times(keys)


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform,
    "stratified": stratified,
    "low_discrepancy": low_discrepancy,
}


class Draws(NamedTuple):
    """The randomness of a batch: u [b] in [0, 1), eps as the data, keys [b] for the network."""

    u: Array
    eps: Array
    keys: Array


def draw_batch(x0: Array, keys: BatchKeys, times: TimeSampler = uniform) -> Draws:
    """Draw what a loss needs for every sample of x0, [b, ...]: see `noise_batch`."""
    noise = normal_each(_folded(keys, 1), x0.shape[1:])
    return Draws(times(keys), noise, _folded(keys, 2))


class Noised(NamedTuple):
    """What a loss trains on: x = alpha x0 + sigma eps at each sample's own level."""

    x: Array
    eps: Array
    level: NoiseLevel
    keys: Array


def noise_batch(
    x0: Array,
    schedule: Schedule,
    keys: BatchKeys,
    times: TimeSampler = uniform,
    *,
    noise_offset: float = 0.0,
) -> Noised:
    """Draw a time and noise for every sample and noise it.

        eps = eps_pixels + noise_offset eps_channel,    eps_channel one number for a whole channel

    With an offset of about 0.1 a network learns to change the mean of a picture, which schedules
    that end above zero SNR always give away; 0 is plain noise.
    Source of the offset: N. Guttenberg, Diffusion with Offset Noise, CrossLabs, 2023.

    Args:
      x0: [b, ...] clean data, float32.
      schedule: a table draws integer steps 0 .. T - 1, a continuous one times in [0, 1).
      keys: see `diffjax.core.keys`.
      times: the distribution of times.
      noise_offset: 0 or more.

    Returns:
      `Noised`, whose `keys`, [b], are left for the network's own randomness.
    """
    u, noise, network_keys = draw_batch(x0, keys, times)
    if noise_offset:
        channels = (*(1,) * (x0.ndim - 2), x0.shape[-1])
        noise = noise + noise_offset * normal_each(_folded(keys, 3), channels)
    level = schedule(training_times(schedule, u))
    return Noised(add_noise(x0, noise, level), noise, level, network_keys)


def training_times(schedule: Schedule, u: Array) -> Array:
    """Map [0, 1) to the times of a schedule: floor(u T) for a table, u itself otherwise."""
    steps = num_train_steps(schedule)
    if steps is None:
        return u
    # u T may round up to T in float32
    return jnp.minimum(jnp.floor(u * steps).astype(jnp.int32), steps - 1)


def as_batch_keys(keys: BatchKeys | Array, x: Array) -> BatchKeys:
    """A plain key numbers the samples of x from 0; a `BatchKeys` is returned as it is."""
    return keys if isinstance(keys, BatchKeys) else batch_keys(keys, x.shape[0])


def _folded(keys: BatchKeys, purpose: int) -> Array:
    return fold_in_each(sample_keys(keys.key, keys.index), purpose)


def _batch_key(keys: BatchKeys) -> Array:
    """A key that the whole batch shares and no sample has: theirs are folds of 0 .. size - 1."""
    return jax.random.fold_in(keys.key, keys.size)
