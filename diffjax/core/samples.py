"""Sums and means over each sample of a batch, whatever the shape of its data: [B, ...] to [B]."""

import jax.numpy as jnp
from jax import Array


def mean_each(values: Array) -> Array:
    """The mean of each sample: [B, ...] to [B].

    >>> mean_each(jnp.array([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def inner_each(a: Array, b: Array) -> Array:
    """The inner product of each sample of two arrays that broadcast to [B, ...]: [B].

    >>> inner_each(jnp.array([[1.0, 3.0], [0.0, 2.0]]), jnp.array([1.0, 2.0])).tolist()
    [7.0, 4.0]
    """
    product = a * b
    return jnp.sum(product, axis=tuple(range(1, product.ndim)))
