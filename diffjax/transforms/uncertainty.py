"""What several posterior samples say together: their mean and how much they differ."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class UncertaintyMap(NamedTuple):
    """Moments of posterior samples, in every pixel.

    Attributes:
      mean: [B, ...], the estimate with the smallest squared error.
      std: [B, ...], large where the measurement and the prior leave a pixel open.
    """

    mean: Array
    std: Array


def uncertainty_map(
    generate: Callable[[Array], Array], key: Array, num_samples: int
) -> UncertaintyMap:
    """Mean and standard deviation of several runs of a sampler, one in memory at a time.

    Args:
      generate: key -> [B, ...] samples, such as `lambda key: sample(key, ...)` with the starting
        noise drawn from the same key.
      key: one key; run i gets fold_in(key, i).
      num_samples: at least 2; the variance is divided by num_samples - 1.

    Raises:
      ValueError: fewer than two samples.

    >>> result = uncertainty_map(lambda key: jax.random.normal(key, (2, 3)), jax.random.key(0), 9)
    >>> result.mean.shape, result.std.shape
    ((2, 3), (2, 3))
    """
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; a standard deviation needs at least 2.")

    def add(state, i):
        mean, squares = state
        value = generate(jax.random.fold_in(key, i))
        # Welford's recursion: sums of squares would cancel
        new_mean = mean + (value - mean) / (i + 1.0)
        return (new_mean, squares + (value - mean) * (value - new_mean)), None

    shape = jax.eval_shape(generate, key)
    zero = jnp.zeros(shape.shape, shape.dtype)
    (mean, squares), _ = lax.scan(add, (zero, zero), jnp.arange(num_samples))
    return UncertaintyMap(mean, jnp.sqrt(squares / (num_samples - 1.0)))
