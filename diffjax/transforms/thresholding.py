"""Thresholding: denoisers whose estimate of x0 stays in the range of the data."""

import math

import jax.numpy as jnp
from jax import Array

from diffjax.core.levels import expand
from diffjax.core.parameterizations import Denoiser, map_x0


def clip_denoised(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Static thresholding: clip the estimate of x0 to [low, high].

    Source: DDPM's sampler (arXiv:2006.11239); called static in Imagen, arXiv:2205.11487.

    Args:
      denoise: (x, level) -> estimate of x0; a `LearnedVariance` keeps its fraction.
      low, high: range of the data.

    Raises:
      ValueError: low is not below high.

    >>> clip_denoised(lambda x, level: 3.0 * x)(jnp.ones((1, 2)), None)
    Array([[1., 1.]], dtype=float32)
    """
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; low must be below high.")
    clip = lambda x0: jnp.clip(x0, low, high)
    return lambda x, level: map_x0(clip, denoise(x, level))


def dynamic_threshold(
    denoise: Denoiser, quantile: float = 0.995, *, max_value: float = math.inf
) -> Denoiser:
    """Dynamic thresholding: clip each sample at a quantile s of |x0| and divide by s.

        s = clip(quantile of |x0| over the sample, 1, max_value)

    Source: Imagen, arXiv:2205.11487, Section 2.3.

    Args:
      denoise: the denoiser, its data in [-1, 1].
      quantile: in (0, 1].
      max_value: upper limit of s, at least 1; Imagen has none, 1 is static clipping.

    Raises:
      ValueError: the quantile is outside of (0, 1], or max_value below 1.
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile is {quantile}; it must be in (0, 1].")
    if not max_value >= 1.0:
        raise ValueError(f"max_value is {max_value}; it must be at least 1, the end of the range.")

    def threshold(x0: Array) -> Array:
        magnitude = jnp.abs(x0).reshape(x0.shape[0], -1)
        limit = jnp.clip(jnp.quantile(magnitude, quantile, axis=1), 1.0, max_value)
        limit = expand(limit, x0)
        return jnp.clip(x0, -limit, limit) / limit

    return lambda x, level: map_x0(threshold, denoise(x, level))
