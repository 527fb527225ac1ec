"""DDIM: non-Markovian sampling with as much noise as one likes, and its inversion.

Between the levels t (noisier) and s,

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,
    std^2 = eta^2 sigma_ts^2 sigma_s^2 / sigma_t^2,    eps = (x_t - alpha_t x0) / sigma_t.

eta = 0 is deterministic (a first-order solver of the probability-flow ODE), eta = 1 is ancestral
DDPM with the small variance. Source: DDIM, arXiv:2010.02502, Eqs. 12 and 16.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import normal_each
from diffjax.core.levels import NoiseLevel, expand_level, reverse_variances
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless


def ddim_update(
    x: Array,
    x0: Array,
    noise: Array | None,
    current: NoiseLevel,
    next_: NoiseLevel,
    *,
    eta: ArrayLike = 0.0,
) -> Array:
    """One DDIM step as a plain formula.

    Args:
      x: [B, ...] at `current`, float32.
      x0: [B, ...] estimate of the clean data, float32.
      noise: [B, ...] standard normal; None for a deterministic step, where eta is 0.
      current, next_: levels with leaves scalar or [B].
      eta: share of the ancestral noise, in [0, 1]; may be traced.

    Returns:
      [B, ...] at `next_`, float32.
    """
    current, next_ = expand_level(current, x), expand_level(next_, x)
    eps = estimate_eps(x, x0, current)
    if noise is None:
        return next_.alpha * x0 + next_.sigma * eps
    variance = eta**2 * reverse_variances(current, next_)[0]
    # rounding may leave -1e-8 for eta = 1
    direction = jnp.sqrt(jnp.maximum(next_.sigma**2 - variance, 0.0))
    return next_.alpha * x0 + direction * eps + jnp.sqrt(variance) * noise


def ddim(eta: ArrayLike = 0.0) -> Solver:
    """The DDIM sampler.

    Args:
      eta: 0 (default) is deterministic, 1 is ancestral DDPM; may be traced.

    >>> solver = ddim(eta=0.5)
    """
    deterministic = isinstance(eta, int | float) and eta == 0.0
    if isinstance(eta, int | float) and not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it must be in [0, 1].")

    def step(keys, x, denoise, current, next_):
        noise = None if deterministic else normal_each(keys, x.shape[1:], x.dtype)
        return ddim_update(x, denoise(x, current), noise, current, next_, eta=eta)

    return stateless(step)


def ddim_inversion() -> Solver:
    """DDIM run backwards: from data to the noise from which `ddim()` makes that data again.

    Give `sample` the grid in reverse order, clean level first. Each step takes the noise estimate
    at the level that it goes to, because at the clean end x holds no noise to be estimated:

        eps = (x - alpha_t x0(x, t)) / sigma_t
        x_t = alpha_t (x_s - sigma_s eps) / alpha_s + sigma_t eps

    with s = `current`, t = `next_` (noisier). Source: DDIM, arXiv:2010.02502, Section 4.3.

    >>> solver = ddim_inversion()
    """

    def step(keys, x, denoise, current, next_):
        eps = estimate_eps(x, denoise(x, next_), next_)
        x0 = (x - current.sigma * eps) / current.alpha
        return next_.alpha * x0 + next_.sigma * eps

    return stateless(step)
