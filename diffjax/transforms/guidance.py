"""Guidance by a second estimate: lean towards a condition, away from a worse model.

All of these extrapolate from a weaker estimate of x0 to a better one,

    x0 = weaker + guidance_scale (better - weaker),    guidance_scale = 1 is off,

and differ in what the weaker one is:

| guidance              | better              | weaker                                         |
| --------------------- | ------------------- | ---------------------------------------------- |
| classifier-free       | with the condition  | without it, or with a negative prompt          |
| composition           | with each condition | without any                                    |
| autoguidance          | the model           | a smaller or less trained model                |
| perturbed attention   | the network         | the same without its attention maps            |
| self-attention        | the denoiser        | the same of a blurred x: `blur_guidance`       |

Because every prediction is affine in x0, extrapolating x0 is extrapolating eps, v, score and
velocity alike. Scales may be traced, given for each sample ([B]), or depend on the level. Where
estimates differ little, at low noise, guided estimates are those of the sharpened density
p(x) (p(x | c) / p(x))^guidance_scale.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.arguments import concrete_values
from diffjax.core.levels import NoiseLevel, expand, select
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.transforms.estimates import x0_of

# a number, one for each sample, or a function from the level to either
Scale = ArrayLike | Callable[[NoiseLevel], Array]


def classifier_free(
    denoise: Denoiser, unconditional: Denoiser, *, guidance_scale: Scale
) -> Denoiser:
    """Classifier-free guidance: extrapolate from the unconditional to the conditional estimate.

        x0 = unconditional + guidance_scale (conditional - unconditional)

    A scale of 1 is off, 0 is unconditional, above 1 sharpens. (The scale w of the paper counts
    from 0: guidance_scale = 1 + w.) A learned variance is the conditional one. To call the network
    once for both, see `in_one_call`.
    Source: arXiv:2207.12598, Eq. 6.

    Args:
      denoise: the conditional denoiser.
      unconditional: the denoiser with the null condition, or with a negative prompt.
      guidance_scale: a number, [B], or a function from the level to one; may be traced.

    >>> import jax.numpy as jnp
    >>> guided = classifier_free(
    ...     lambda x, level: 3.0 * x, lambda x, level: x, guidance_scale=2.0
    ... )
    >>> guided(jnp.ones(1), None)
    Array([5.], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Array:
        base = x0_of(unconditional(x, level))
        scale = scale_at(guidance_scale, level, x)
        return map_x0(lambda x0: base + scale * (x0 - base), denoise(x, level))

    return guided


def autoguidance(denoise: Denoiser, weaker: Denoiser, *, guidance_scale: Scale) -> Denoiser:
    """Autoguidance: extrapolate from a worse model of the same data, under the same condition.

        x0 = weaker + guidance_scale (denoise - weaker)

    A scale of 1 is off. Where both models agree nothing changes, where the worse one errs the
    error is undone; unlike classifier-free guidance this keeps the variety of the samples.

    The weaker denoiser may be a smaller or less trained network, an early average of its weights,
    one with dropout, or, for perturbed-attention guidance, the same parameters in a network whose
    self-attention maps are replaced by the identity (`UNetConfig(identity_attention="middle")`; the
    scale s of that paper counts from 0: guidance_scale = 1 + s).
    Sources: arXiv:2406.02507, Eq. 5; perturbed attention: arXiv:2403.17377, Eq. 10.

    Args:
      denoise: the denoiser.
      weaker: a worse one.
      guidance_scale: as in `classifier_free`.

    >>> import jax.numpy as jnp
    >>> guided = autoguidance(lambda x, level: x, lambda x, level: 0.5 * x, guidance_scale=2.0)
    >>> guided(jnp.ones(1), None)
    Array([1.5], dtype=float32)
    """
    return classifier_free(denoise, weaker, guidance_scale=guidance_scale)


def composed(
    denoise: Denoiser, others: Sequence[Denoiser], *, guidance_scales: Sequence[Scale]
) -> Denoiser:
    """Several conditions at once: lean from a base towards each of them, or away from some.

        x0 = base + sum_i guidance_scale_i (other_i - base)

    From the unconditional denoiser as the base this is composition: p(x) prod_i (p(x | c_i) /
    p(x))^guidance_scale_i. One condition with the scale 1 is that condition, a negative scale is
    "not c_i". From the conditional denoiser as the base and with scales 1 - s_i it joins several
    guidances that push away from something, such as classifier-free (other: unconditional) and
    perturbed-attention guidance (other: perturbed); all of them are off at s_i = 1.
    A learned variance is the base's.
    Source: Composable Diffusion, arXiv:2206.01714, Eqs. 11 and 13.

    Args:
      denoise: the base.
      others: the denoisers under each condition.
      guidance_scales: as many, each as in `classifier_free`.

    Raises:
      ValueError: not one scale for each of the others.

    >>> import jax.numpy as jnp
    >>> others = [lambda x, level: x + 1.0, lambda x, level: x + 10.0]
    >>> composed(lambda x, level: x, others, guidance_scales=[1.0, -1.0])(jnp.zeros(1), None)
    Array([-9.], dtype=float32)
    """
    if len(others) != len(guidance_scales):
        raise ValueError(f"{len(others)} denoisers and {len(guidance_scales)} guidance_scales.")

    def guided(x: Array, level: NoiseLevel) -> Array:
        estimates = [x0_of(other(x, level)) for other in others]
        scales = [scale_at(scale, level, x) for scale in guidance_scales]

        def lean(base: Array) -> Array:
            return base + sum(s * (x0 - base) for s, x0 in zip(scales, estimates))

        return map_x0(lean, denoise(x, level))

    return guided


def guidance_interval(
    guided: Denoiser, denoise: Denoiser, *, low: ArrayLike = 0.0, high: ArrayLike = jnp.inf
) -> Denoiser:
    """Guide only at some levels: low < sigma / alpha <= high.

    At high noise guidance costs variety, at low noise it changes nothing but the bill: outside of
    the interval only `denoise` is called. An interval of no length is off.
    Source: arXiv:2404.07724, Section 3, whose sigma is our sigma / alpha.

    Args:
      guided: the denoiser inside, guided in any way.
      denoise: the denoiser outside, as a rule the conditional one.
      low, high: ends of the interval; may be traced.

    Raises:
      ValueError: low is above high.

    >>> import jax.numpy as jnp
    >>> choose = guidance_interval(lambda x, level: x + 1, lambda x, level: x, low=0.2, high=3.0)
    >>> choose(jnp.zeros(1), NoiseLevel(*jnp.array([0.5, 0.6, 0.8])))
    Array([1.], dtype=float32)
    """

    least, most = concrete_values(low), concrete_values(high)
    if least is not None and most is not None and np.any(least > most):
        raise ValueError(f"low is {low} and high {high}; low must not be above high.")

    def chosen(x: Array, level: NoiseLevel) -> Array:
        angle = noise_angle(level)
        inside = (jnp.arctan(low) < angle) & (angle <= jnp.arctan(high))
        if inside.ndim == 0:
            return lax.cond(inside, lambda: guided(x, level), lambda: denoise(x, level))
        return select(inside, guided(x, level), denoise(x, level))

    return chosen


def ramp(noisy: ArrayLike, clean: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """A guidance scale that changes with the level, from `noisy` to `clean`.

        scale = u noisy + (1 - u) clean,    u = (2 / pi) arctan(sigma / alpha) in [0, 1]

    u is the time of the cosine schedule, whatever the schedule is. Scales that grow towards the
    data (noisy < clean) cost less variety than constant ones.
    Source: arXiv:2404.13040, Section 4, which compares such courses.

    Args:
      noisy, clean: the scales at pure noise and at clean data; 1 is off; may be traced.

    >>> scale = ramp(1.0, 5.0)
    >>> level = NoiseLevel(*jnp.array([[1.0, 0.5, 0.0], [0.0, 0.6, 1.0], [1.0, 0.6, 0.0]]))
    >>> scale(level).tolist()
    [1.0, 3.0, 5.0]
    """

    def scale(level: NoiseLevel) -> Array:
        share = noise_angle(level) * (2.0 / jnp.pi)
        return share * noisy + (1.0 - share) * clean

    return scale


def scale_at(scale: Scale, level: NoiseLevel, x: Array) -> Array:
    """A guidance scale at a level, ready to be multiplied with x."""
    return expand(jnp.asarray(scale(level) if callable(scale) else scale), x)


def noise_angle(level: NoiseLevel) -> Array:
    """arctan(sigma / alpha), from 0 for clean data to pi / 2 for pure noise, where it is exact."""
    return jnp.arctan2(level.sigma, level.alpha)
