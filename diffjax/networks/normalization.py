"""Normalisation of tokens: of each position by itself, over its features.

Statistics are float32 always; results have the dtype of the input.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.initialization import filled


def layer_norm(x: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) over the last axis.

    Source: Layer Normalization, arXiv:1607.06450, equation 3.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps)).astype(x.dtype)


def rms_norm(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis.

    Source: Root Mean Square Layer Normalization, arXiv:1910.07467, equation 4.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm`, then scale and bias for each feature unless `affine` is off."""

    def __init__(self, features: int, *, eps: float, affine: bool = True):
        if affine:
            self.scale = filled((features,), 1.0)
            self.bias = filled((features,), 0.0)
        self.affine = affine
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x = layer_norm(x, self.eps)
        if not self.affine:
            return x
        return x * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm`, then a scale for each feature."""

    def __init__(self, features: int, *, eps: float):
        self.scale = filled((features,), 1.0)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.eps) * self.scale[...].astype(x.dtype)
