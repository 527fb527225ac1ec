"""Interpolation between latents."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.levels import expand, safe_sqrt


def slerp(a: Array, b: Array, weight: ArrayLike) -> Array:
    """Spherical interpolation between two batches of latents, sample by sample.

        length(w) (cos(w theta) u + sin(w theta) v),    length(w) = (1 - w) |a| + w |b|

    with u = a / |a|, theta the angle between a and b, and v the unit vector of their plane that is
    orthogonal to u, on b's side. For |a| = |b| it is the usual
    (a sin((1 - w) theta) + b sin(w theta)) / sin(theta). Straight lines would shorten Gaussian
    latents, which are nearly orthogonal; this keeps their length, and so the noise level that a
    sampler expects. Between antipodes, which lie in no plane of their own, v is any such vector.
    Source: DDIM, arXiv:2010.02502, Appendix D.5.

    Args:
      a, b: [B, ...] latents, float32; each sample is one vector.
      weight: 0 gives a, 1 gives b; a number or [B].

    Returns:
      [B, ...].

    Raises:
      ValueError: the two have different shapes, or no axis besides the batch's.

    >>> slerp(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), 0.5).round(3).tolist()
    [[1.4140000343322754, 1.4140000343322754]]
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"slerp: the latents are {a.shape} and {b.shape}; needed is one shape [B, ...]."
        )
    flat_a, flat_b = (x.reshape(x.shape[0], -1) for x in (a, b))
    weight = expand(jnp.asarray(weight, flat_a.dtype), flat_a)
    (u, norm_a), (towards, norm_b) = _normalized(flat_a), _normalized(flat_b)
    # the two chords give the angle, accurately also near 0 and pi
    theta = 2.0 * jnp.arctan2(_normalized(towards - u)[1], _normalized(towards + u)[1])
    v = _orthogonal(towards, u)
    length = (1.0 - weight) * norm_a + weight * norm_b
    turned = jnp.cos(weight * theta) * u + jnp.sin(weight * theta) * v
    return (length * turned).reshape(a.shape)


def _orthogonal(towards: Array, u: Array) -> Array:
    """The unit vectors orthogonal to u, in the direction of `towards` if it has one of its own."""

    def across(x: Array) -> Array:
        return x - jnp.sum(x * u, axis=1, keepdims=True) * u

    # the axis from which u is farthest
    axis = jnp.zeros_like(u).at[jnp.arange(len(u)), jnp.argmin(jnp.abs(u), axis=1)].set(1.0)
    direction, size = _normalized(across(towards))
    # rounding alone leaves 1e-7
    return jnp.where(size > 1e-5, direction, _normalized(across(axis))[0])


def _normalized(x: Array) -> tuple[Array, Array]:
    """Unit vectors, 0 for 0, and lengths [B, 1]."""
    norm = safe_sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1.0), norm
