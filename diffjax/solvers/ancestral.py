"""Ancestral sampling of DDPM: draw from the reverse Gaussian of each pair of levels.

    x_s ~ N(mean of q(x_s | x_t, x0_estimate), variance)

with one of three variances between the levels t (noisier) and s:

    fixed_small    the posterior's, sigma_ts^2 sigma_s^2 / sigma_t^2      (beta-tilde)
    fixed_large    the forward step's, sigma_ts^2                         (beta)
    learned_range  between the two, interpolated in the logarithm by the network

Any two levels will do, so the same code samples the full chain and every sub-sequence of it.
Sources: DDPM, arXiv:2006.11239, Algorithm 2 and Section 3.2; Improved DDPM, arXiv:2102.09672,
Eq. 15.
"""

import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import (
    NoiseLevel,
    expand_level,
    interpolate_variance,
    q_posterior,
    reverse_variances,
    safe_sqrt,
)
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import Solver, stateless

VARIANCES = ("fixed_small", "fixed_large", "learned_range")

# keeps the logarithm finite where the smallest variance is 0, at the clean end
TINY_VARIANCE = 1e-20


def reverse_variance(
    current: NoiseLevel, next_: NoiseLevel, variance: str, fraction: Array | None = None
) -> Array:
    """The variance of the reverse step, in the shape of the levels (or of `fraction`).

    Args:
      current, next_: the levels t and s, made to broadcast with each other.
      variance: one of `VARIANCES`.
      fraction: for "learned_range", in [0, 1]: 0 is fixed_small, 1 is fixed_large.
    """
    small, large = reverse_variances(current, next_)
    if variance == "learned_range":
        if fraction is None:
            raise ValueError("variance='learned_range' needs the fraction that the network chose.")
        small, large = (jnp.log(jnp.maximum(value, TINY_VARIANCE)) for value in (small, large))
        return jnp.exp(interpolate_variance(small, large, fraction))
    return small if variance == "fixed_small" else large


def ancestral_update(
    x: Array,
    x0: Array,
    noise: Array,
    current: NoiseLevel,
    next_: NoiseLevel,
    *,
    variance: str = "fixed_small",
    fraction: Array | None = None,
) -> Array:
    """One ancestral step as a plain formula: mean + sqrt(variance) noise.

    No noise is added when `next_` is clean (sigma = 0).

    Args:
      x: [B, ...] at `current`, float32.
      x0: [B, ...] estimate of the clean data, float32.
      noise: [B, ...] standard normal.
      current, next_: levels with leaves scalar or [B].
      variance, fraction: see `reverse_variance`.

    Returns:
      [B, ...] at `next_`, float32.
    """
    current, next_ = expand_level(current, x), expand_level(next_, x)
    mean, _ = q_posterior(x, x0, current, next_)
    std = safe_sqrt(reverse_variance(current, next_, variance, fraction))
    return mean + jnp.where(next_.sigma > 0, std, 0.0) * noise


def ancestral(variance: str = "fixed_small", *, normal: Normal = normal_each) -> Solver:
    """The DDPM sampler, on the full chain or any sub-sequence of it.

    To clip the estimate of x0 as DDPM does, wrap the denoiser: `clip_denoised(denoise)`.

    Args:
      variance: "fixed_small" (default), "fixed_large", or "learned_range", which needs a denoiser
        from `make_learned_variance_denoiser`.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: another name of a variance, or in a step, a denoiser that does not go with it.

    >>> solver = ancestral(variance="fixed_large")
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; it must be one of {', '.join(VARIANCES)}.")

    def step(keys, x, denoise, current, next_):
        estimate = denoise(x, current)
        learned = isinstance(estimate, LearnedVariance)
        if learned != (variance == "learned_range"):
            raise ValueError(
                f"The denoiser returns a {type(estimate).__name__}, which does not go with "
                f"variance={variance!r}: learned_range needs make_learned_variance_denoiser, the "
                "others make_denoiser."
            )
        x0, fraction = estimate if learned else (estimate, None)
        noise = normal(keys, x.shape[1:], x.dtype)
        return ancestral_update(x, x0, noise, current, next_, variance=variance, fraction=fraction)

    return stateless(step)
