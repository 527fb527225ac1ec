"""Guidance: denoisers that lean towards a condition."""

from jax import Array
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, LearnedVariance, map_x0


def classifier_free(
    denoise: Denoiser, unconditional: Denoiser, *, guidance_scale: ArrayLike
) -> Denoiser:
    """Classifier-free guidance: extrapolate from the unconditional to the conditional estimate.

        x0 = unconditional + guidance_scale (conditional - unconditional)

    A scale of 1 is off, 0 is unconditional, above 1 sharpens. Because all predictions are affine
    in x0, this is the same on eps, v, score and velocity. (The scale w of the paper counts from
    0: guidance_scale = 1 + w.) A learned variance is the conditional one.
    Source: arXiv:2207.12598, Eq. 6.

    Args:
      denoise: the conditional denoiser.
      unconditional: the denoiser with the null condition, or with a negative prompt.
      guidance_scale: may be traced.

    >>> import jax.numpy as jnp
    >>> guided = classifier_free(
    ...     lambda x, level: 3.0 * x, lambda x, level: x, guidance_scale=2.0
    ... )
    >>> guided(jnp.ones(1), None)
    Array([5.], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Array:
        base = unconditional(x, level)
        base = base.x0 if isinstance(base, LearnedVariance) else base
        lean = lambda x0: base + guidance_scale * (x0 - base)
        return map_x0(lean, denoise(x, level))

    return guided
