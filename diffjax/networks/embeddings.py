"""Waves of a clock or of an image, as inputs of a network."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.core.conditioning import dropped
from diffjax.networks.initialization import parameter, standard_normal


class GaussianFourier(nnx.Module):
    """Sines and cosines of t at random frequencies, which training leaves as they are.

        [sin(2 pi w t), cos(2 pi w t)],    w ~ N(0, scale^2)

    frequencies: [half], the w. Their gradient is 0, so that Adam does not move them; weight decay
    would. Source: Fourier Features Let Networks Learn High Frequency Functions, arXiv:2006.10739,
    equation 5; score SDEs, arXiv:2011.13456, appendix H.

    Args:
      half: number of frequencies; the result is twice as wide.
      scale: 16 in NCSN++.
      flip_sin_to_cos: cosines first.
    """

    def __init__(self, half: int, scale: float, *, flip_sin_to_cos: bool = False, rngs: nnx.Rngs):
        self.frequencies = parameter(rngs, (half,), lambda u: scale * standard_normal(u))
        self.flip_sin_to_cos = flip_sin_to_cos

    def __call__(self, t: Array) -> Array:
        """t: [B] -> [B, 2 half], float32."""
        frequencies = lax.stop_gradient(self.frequencies[...]).astype(jnp.float32)
        # in the order in which torch multiplies: of 1e3 turns float32 keeps no more than 1e-4
        angles = t.astype(jnp.float32)[:, None] * frequencies * (2.0 * math.pi)
        waves = jnp.sin(angles), jnp.cos(angles)
        return jnp.concatenate(waves[::-1] if self.flip_sin_to_cos else waves, axis=-1)


def binary_waves(x: Array, exponents: Sequence[int]) -> Array:
    """Append waves of the values themselves to the channels: sin(2^n pi x), cos(2^n pi x).

    They show a network the last bits of an image, on which its likelihood depends.
    Source: Variational Diffusion Models, arXiv:2107.00630, appendix C, with n = 7, 8.

    Args:
      x: [..., C]; computed in float32, because half precision does not have these bits.
      exponents: the n.

    Returns:
      [..., C (1 + 2 len(exponents))] float32: x, the sines, the cosines.

    >>> binary_waves(jnp.ones((2, 8, 8, 3)), (7, 8)).shape
    (2, 8, 8, 15)
    """
    x = x.astype(jnp.float32)
    angles = [2.0**n * math.pi * x for n in exponents]
    return jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)


def drop_labels(labels: Array, keys: Array, *, null: int | None, prob: float) -> Array:
    """Replace each label by the null label with a probability, from the key of its sample.

    Source: Classifier-Free Diffusion Guidance, arXiv:2207.12598, Algorithm 1.
    """
    return labels if null is None else jnp.where(dropped(keys, prob), null, labels)
