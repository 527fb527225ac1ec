"""DDIM: non-Markovian sampling with as much noise as one likes, and its inversion.

Between the levels t (noisier) and s,

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,
    std^2 = eta^2 sigma_ts^2 sigma_s^2 / sigma_t^2,    eps = (x_t - alpha_t x0) / sigma_t.

eta = 0 is deterministic (a first-order solver of the probability-flow ODE), eta = 1 is ancestral
DDPM with the small variance. Source: DDIM, arXiv:2010.02502, Eqs. 12 and 16.
"""

from collections.abc import Callable

from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import (
    NoiseLevel,
    expand_level,
    inverse_or_zero,
    reverse_variances,
    safe_sqrt,
)
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
    eps: Array | None = None,
) -> Array:
    """One DDIM step as a plain formula.

    Args:
      x: [B, ...] at `current`, float32.
      x0: [B, ...] estimate of the clean data, float32.
      noise: [B, ...] standard normal; None for a deterministic step, where eta is 0.
      current, next_: levels with leaves scalar or [B].
      eta: share of the ancestral noise, in [0, 1]; may be traced.
      eps: [B, ...] the noise in x; left out, it is what `x0` leaves of x.

    Returns:
      [B, ...] at `next_`, float32.
    """
    current, next_ = expand_level(current, x), expand_level(next_, x)
    direction, std = next_.sigma, 0.0
    if noise is not None:
        # as a product with eta: the gradient of sqrt(eta^2) would be NaN at 0
        std = eta * safe_sqrt(reverse_variances(current, next_)[0])
        direction = safe_sqrt((next_.sigma - std) * (next_.sigma + std))
    if eps is not None:
        moved = next_.alpha * x0 + direction * eps
    else:
        # the same with eps = (x - alpha x0) / sigma, in one multiplication for each array
        keep = direction * inverse_or_zero(current.sigma)
        moved = keep * x + (next_.alpha - keep * current.alpha) * x0
    return moved if noise is None else moved + std * noise


def ddim(
    eta: ArrayLike = 0.0,
    *,
    limit: Callable[[Array], Array] | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """The DDIM sampler.

    Args:
      eta: 0 (default) is deterministic, 1 is ancestral DDPM; may be traced.
      limit: applied to the estimate of x0 after the noise in x has been found from it, so that x0
        is limited and eps is not. Limit the denoiser (`clip_denoised`) to limit both.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: eta is a number outside of [0, 1].

    >>> solver = ddim(eta=0.5)
    """
    deterministic = isinstance(eta, int | float) and eta == 0.0
    if isinstance(eta, int | float) and not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it must be in [0, 1].")

    def step(keys, x, denoise, current, next_):
        noise = None if deterministic else normal(keys, x.shape[1:], x.dtype)
        x0 = denoise(x, current)
        eps = None if limit is None else estimate_eps(x, x0, current)
        x0 = x0 if limit is None else limit(x0)
        return ddim_update(x, x0, noise, current, next_, eta=eta, eps=eps)

    return stateless(step)


def ddim_inversion(held: str = "eps", *, limit: Callable[[Array], Array] | None = None) -> Solver:
    """DDIM run backwards: from data to the noise from which `ddim()` makes that data again.

    Give `sample` the grid in reverse order, clean level first. Each step takes the estimates at the
    level that it goes to, because at the clean end x holds no noise to be estimated, and keeps one
    prediction p of the network for the whole step:

        held = "eps":  x0 = (x - sigma_s p) / alpha_s,       eps = p
        held = "v":    x0 = (alpha_s x - sigma_s p) / norm,  eps = (sigma_s x + alpha_s p) / norm
        x_t = alpha_t x0 + sigma_t eps

    with s = `current`, t = `next_` (noisier), norm = alpha_s^2 + sigma_s^2. Both are of first
    order. Source: DDIM, arXiv:2010.02502, Section 4.3.

    Args:
      held: "eps", or "v" for networks that predict it.
      limit: applied to x0, but not to eps; what it changes is lost to the way back.

    Raises:
      ValueError: held is another word.

    >>> solver = ddim_inversion()
    """
    if held not in ("eps", "v"):
        raise ValueError(f"held is {held!r}; it must be 'eps' or 'v'.")

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, next_)
        eps = estimate_eps(x, x0, next_)
        if held == "v":
            v = next_.alpha * eps - next_.sigma * x0
            norm = current.alpha**2 + current.sigma**2
            eps = (current.sigma * x + current.alpha * v) / norm
            x0 = (current.alpha * x - current.sigma * v) / norm
        else:
            x0 = (x - current.sigma * eps) / current.alpha
        x0 = x0 if limit is None else limit(x0)
        return next_.alpha * x0 + next_.sigma * eps

    return stateless(step)
