"""Guidance without its side effects: over-exposure, over-saturation, poor first estimates.

    rescaled        the guided estimate has the spread of the conditional one
    apg             only the part of the guidance across the conditional estimate
    cfg_zero_star   guidance away from the best multiple of the unconditional estimate
    zero_init       no step at the noisiest level of a flow

Projections, norms and spreads are those of each sample on its own. In all of them a guidance scale
of 1 is off.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel, expand, safe_sqrt
from diffjax.core.parameterizations import (
    Denoiser,
    Parameterization,
    estimate_eps,
    estimate_x0,
    map_x0,
    target,
    velocity,
)
from diffjax.core.parameterizations import x0 as x0_prediction
from diffjax.core.samples import inner_each
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.guidance import Scale, noise_angle, scale_at


def rescaled(
    guided: Denoiser,
    denoise: Denoiser,
    *,
    amount: ArrayLike = 0.7,
    parameterization: Parameterization = x0_prediction,
) -> Denoiser:
    """Give guided estimates the spread of the conditional ones, against over-exposure.

        F = amount (std(conditional) / std(guided)) guided + (1 - amount) guided

    with the standard deviations of each sample over everything in it. An amount of 0 is off, as is
    any amount where the guidance is off.
    Source: arXiv:2305.08891, Section 3.4, Eqs. 14-16.

    Args:
      guided: the guided denoiser.
      denoise: the conditional denoiser. To call it once, see `guide`.
      amount: in [0, 1]; phi in the paper; may be traced.
      parameterization: the prediction F whose spread is meant; the paper's networks predict v.

    >>> import jax.numpy as jnp
    >>> twice = rescaled(lambda x, level: 2.0 * x, lambda x, level: x, amount=1.0)
    >>> twice(jnp.array([[1.0, -1.0]]), NoiseLevel(*jnp.ones(3)))
    Array([[ 1., -1.]], dtype=float32)
    """

    def rescale(x: Array, level: NoiseLevel) -> Array:
        reference = _prediction(parameterization, x, x0_of(denoise(x, level)), level)

        def match(x0: Array) -> Array:
            output = _prediction(parameterization, x, x0, level)
            wanted, have = _spread(reference), _spread(output)
            # double where: a constant estimate has no spread to be scaled
            ratio = jnp.where(have > 0, wanted / jnp.where(have > 0, have, 1.0), 1.0)
            factor = 1.0 + (expand(ratio, x) - 1.0) * amount
            return estimate_x0(parameterization, x, factor * output, level)

        return map_x0(match, guided(x, level))

    return rescale


def cfg_zero_star(
    denoise: Denoiser,
    unconditional: Denoiser,
    *,
    guidance_scale: Scale,
    parameterization: Parameterization = velocity,
) -> Denoiser:
    """CFG-Zero*: classifier-free guidance from the best multiple of the unconditional estimate.

        F = s F_u + guidance_scale (F_c - s F_u),    s = <F_c, F_u> / |F_u|^2

    with the inner product of each sample. A scale of 1 is off. The paper also holds x still in the
    first step: see `zero_init`.
    Source: arXiv:2503.18886, Eqs. 7 and 8.

    Args:
      denoise, unconditional, guidance_scale: as in `classifier_free`.
      parameterization: the prediction F; the paper's networks predict the velocity.

    >>> import jax.numpy as jnp
    >>> guided = cfg_zero_star(
    ...     lambda x, level: 3.0 * x, lambda x, level: x, guidance_scale=9.0,
    ...     parameterization=x0_prediction,
    ... )
    >>> guided(jnp.ones((1, 2)), NoiseLevel(*jnp.ones(3)))
    Array([[3., 3.]], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Array:
        base = _prediction(parameterization, x, x0_of(unconditional(x, level)), level)
        scale = scale_at(guidance_scale, level, x)

        def lean(x0: Array) -> Array:
            output = _prediction(parameterization, x, x0, level)
            multiple = projection(output, base)
            return estimate_x0(parameterization, x, multiple + scale * (output - multiple), level)

        return map_x0(lean, denoise(x, level))

    return guided


def zero_init(denoise: Denoiser, *, above: ArrayLike = jnp.inf) -> Denoiser:
    """Hold x still at the noisiest levels, where the estimates of flow models are poor.

        x0 = x / (alpha + sigma)    where sigma / alpha >= above,

    the estimate whose velocity is zero. Source: CFG-Zero*, arXiv:2503.18886, Section 4.3.

    Args:
      denoise: the denoiser, guided or not.
      above: the ratio; infinity (default) means pure noise, where a flow starts, alone.

    >>> held = zero_init(lambda x, level: 0.0 * x)
    >>> held(jnp.ones(1), NoiseLevel(*jnp.array([1.0, 0.0, 1.0])))
    Array([1.], dtype=float32)
    """

    def held(x: Array, level: NoiseLevel) -> Array:
        noisy = expand(noise_angle(level) >= jnp.arctan(above), x)
        still = estimate_x0(velocity, x, jnp.zeros_like(x), level)
        return map_x0(lambda x0: jnp.where(noisy, still, x0), denoise(x, level))

    return held


def apg(
    denoise: Denoiser,
    unconditional: Denoiser,
    *,
    guidance_scale: Scale,
    parallel: ArrayLike = 0.0,
    threshold: ArrayLike = jnp.inf,
) -> Denoiser:
    """Adaptive projected guidance: keep the part of the guidance that does not over-saturate.

        d  = conditional - unconditional, shortened to at most `threshold`
        x0 = conditional + (guidance_scale - 1) (d_orthogonal + parallel d_parallel)

    with d split by the direction of the conditional estimate, for each sample. A scale of 1 is
    off; parallel = 1 with no threshold is `classifier_free`. The paper's momentum needs a memory
    from step to step, which a denoiser does not have: see `apg_momentum`.
    Source: arXiv:2410.02416, Algorithm 1.

    Args:
      denoise, unconditional, guidance_scale: as in `classifier_free`.
      parallel: share of the parallel part, eta in the paper; may be traced.
      threshold: largest norm of d, r in the paper; may be traced.

    >>> import jax.numpy as jnp
    >>> guided = apg(lambda x, level: 3.0 * x, lambda x, level: x, guidance_scale=9.0)
    >>> guided(jnp.ones((1, 2)), None)
    Array([[3., 3.]], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Array:
        base = x0_of(unconditional(x, level))
        push = scale_at(guidance_scale, level, x) - 1.0

        def lean(x0: Array) -> Array:
            return x0 + push * projected(x0 - base, x0, parallel=parallel, threshold=threshold)

        return map_x0(lean, denoise(x, level))

    return guided


def projected(difference: Array, x0: Array, *, parallel: ArrayLike, threshold: ArrayLike) -> Array:
    """The difference of two estimates as APG uses it: see `apg`. All [B, ...]."""
    length = expand(safe_sqrt(inner_each(difference, difference)), x0)
    long = length > threshold
    # double where: no length, no quotient
    difference = jnp.where(long, threshold / jnp.where(long, length, 1.0), 1.0) * difference
    along = projection(difference, x0)
    return difference - along + parallel * along


def projection(a: Array, b: Array) -> Array:
    """The part of a along b, <a, b> b / |b|^2, for each sample; 0 where b = 0. All [B, ...]."""
    square = inner_each(b, b)
    share = jnp.where(square > 0, inner_each(a, b) / jnp.where(square > 0, square, 1.0), 0.0)
    return expand(share, b) * b


def _prediction(row: Parameterization, x: Array, x0: Array, level: NoiseLevel) -> Array:
    """The network output that stands for an estimate of x0."""
    return target(row, x0, estimate_eps(x, x0, level), level)


def _spread(values: Array) -> Array:
    """Standard deviation of each sample: [B]."""
    return safe_sqrt(jnp.var(values.reshape(values.shape[0], -1), axis=1))
