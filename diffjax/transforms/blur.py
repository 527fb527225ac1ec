"""Guidance away from a blurred x: self-attention guidance and its special case without attention.

What a denoiser adds to a blurred picture is detail; extrapolating from the estimate of the blurred
x to that of x adds more of it, without a condition and without a second model. Self-attention
guidance blurs only where the network attends most.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.arguments import concrete_values
from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.guidance import Scale, scale_at

# (x, level) -> [B, *coarse spatial], how much attention each position receives; 1 on average
Attention = Callable[[Array, NoiseLevel], Array]


def blur_guidance(
    denoise: Denoiser,
    *,
    guidance_scale: Scale,
    attention: Attention | None = None,
    threshold: ArrayLike = 1.0,
    std: ArrayLike = 1.0,
    radius: int = 4,
) -> Denoiser:
    """Self-attention guidance; without `attention`, blur guidance.

        x0      = denoise(x)
        x_weak  = x - alpha mask (x0 - blur(x0))               the same noise, a blurred picture
        x0_weak = denoise(x_weak) + mask (x0 - blur(x0))       what its noise says of x
        result  = x0_weak + guidance_scale (x0 - x0_weak)

    The mask is 1 where `attention` is above the threshold. A scale of 1 is off. (The scale s of
    the paper counts from 0: guidance_scale = 1 + s.) To combine it with another guidance, give the
    guided denoiser.
    Source: arXiv:2210.00939, Eqs. 13-16 and Algorithm 1.

    Args:
      denoise: of images [B, *spatial, C].
      guidance_scale: a number, [B], or a function from the level to one; may be traced.
      attention: (x, level) -> [B, *coarse], the attention that each position receives, 1 on
        average: an attention map summed over its queries. Its grid is enlarged to that of x.
      threshold: of the attention, may be traced.
      std: of the Gaussian blur in pixels, may be traced.
      radius: pixels at which the blur is cut.

    Raises:
      ValueError: std is not positive; when it is called, x has no spatial axis.

    >>> guided = blur_guidance(lambda x, level: 0.5 * x, guidance_scale=2.0)
    >>> guided(jnp.ones((1, 4, 4, 1)), NoiseLevel(*jnp.ones(3))).shape
    (1, 4, 4, 1)
    """
    values = concrete_values(std)
    if values is not None and not np.all(values > 0):
        raise ValueError(f"std is {std}; a blur needs a positive one.")

    def guided(x: Array, level: NoiseLevel) -> Array:
        if x.ndim < 3:
            raise ValueError(f"x has the shape {x.shape}; a blur needs [B, *spatial, C].")
        estimate = denoise(x, level)
        x0 = x0_of(estimate)
        detail = x0 - gaussian_blur(x0, std, radius=radius)
        if attention is not None:
            seen = enlarge(attention(x, level)[..., None], x.shape[1:-1])
            detail = jnp.where(seen > threshold, detail, 0.0)
        weaker = x0_of(denoise(x - expand(level.alpha, x) * detail, level)) + detail
        scale = scale_at(guidance_scale, level, x)
        return map_x0(lambda x0: weaker + scale * (x0 - weaker), estimate)

    return guided


def gaussian_blur(x: Array, std: ArrayLike, *, radius: int) -> Array:
    """Blur every spatial axis with a Gaussian, mirrored at the borders.

    Args:
      x: [B, *spatial, C].
      std: in pixels, positive; may be traced.
      radius: pixels at which the Gaussian is cut.

    >>> gaussian_blur(jnp.ones((1, 8, 8, 1)), 1.0, radius=3).round(4).max()
    Array(1., dtype=float32)
    """
    offsets = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (offsets / std) ** 2)
    weights = weights / jnp.sum(weights)
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        padding = [(radius, radius) if each == axis else (0, 0) for each in range(x.ndim)]
        padded = jnp.pad(x, padding, mode="symmetric")
        shifted = (jnp.take(padded, jnp.arange(i, i + size), axis) for i in range(2 * radius + 1))
        x = sum((w * part for w, part in zip(weights, shifted)), jnp.zeros_like(x))
    return x


def enlarge(values: Array, size: tuple[int, ...]) -> Array:
    """Enlarge the spatial axes of [B, *spatial, C] to `size` by the nearest element."""
    if values.ndim != len(size) + 2:
        raise ValueError(
            f"The attention has the shape {values.shape[:-1]}; needed is [B, *coarse] with "
            f"{len(size)} spatial axes."
        )
    for axis, wanted in enumerate(size, start=1):
        values = jnp.take(values, jnp.arange(wanted) * values.shape[axis] // wanted, axis)
    return values
