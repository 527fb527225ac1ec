"""Sums and means over each sample of a batch, whatever its shape, and vectors of length 1."""

import jax.numpy as jnp
from jax import Array, lax


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


def unit_length(vectors: Array) -> Array:
    """The vectors along the last axis, each divided by its length, as float32; zero stays zero.

    >>> unit_length(jnp.array([[8.0, 0.0], [0.0, 0.0]])).round(3).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    wide = vectors.astype(jnp.float32)
    # inside the root: the gradient of a length is NaN at zero
    return wide * lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + 1e-12)
