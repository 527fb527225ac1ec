"""Inverse problems solved along singular vectors: DDRM and DDNM+.

With A = U diag(s) V^T known, a measurement y = A x0 + sigma_y n says of each coordinate of V^T x0
separately

    (U^T y)_i / s_i = (V^T x0)_i + (sigma_y / s_i) n_i

that is, it knows it up to noise of size sigma_y / s_i, or not at all where s_i = 0. Both solvers
step each coordinate according to whether the next level is noisier than that or not.

Sources: Kawar et al., Denoising diffusion restoration models (DDRM), arXiv:2201.11793; Wang et
al., Zero-shot image restoration using denoising diffusion null-space models (DDNM),
arXiv:2212.00490.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import expand, q_posterior, safe_sqrt
from diffjax.core.sampling import Solver, stateless
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.linear import residual
from diffjax.transforms.spectral import Spectral


def ddrm(
    operator: Spectral,
    y: Array,
    *,
    sigma_y: ArrayLike = 0.0,
    eta: ArrayLike = 0.85,
    eta_b: ArrayLike = 1.0,
    normal: Normal = normal_each,
) -> Solver:
    """Denoising diffusion restoration models, a solver for measurements with a known SVD.

    With u = x / alpha, tau = sigma / alpha, levels t to s, the estimate m of x0, the measured
    b = U^T y / s_i and its noise d = sigma_y / s_i, coordinate by coordinate of V^T u:

        not measured  N(m + sqrt(1 - eta^2) tau_s (u_t - m) / tau_t, eta^2 tau_s^2)
        tau_s < d     N(m + sqrt(1 - eta^2) tau_s (b - m) / d, eta^2 tau_s^2)
        tau_s >= d    N((1 - eta_b) m + eta_b b, tau_s^2 - eta_b^2 d^2)

    With eta_b = 1 the first step already forgets where it came from in the measured coordinates,
    so that sampling may start from plain noise; u is not defined at alpha = 0, so not from there.
    Source: arXiv:2201.11793, Section 3.2.

    Args:
      operator: with its singular values.
      y: the measurement, in the shape of A x0, or with 1 in place of B.
      sigma_y: standard deviation of its noise, from 0, a number or [B]; may be traced.
      eta, eta_b: in [0, 1], the paper's defaults; may be traced.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.transforms.spectral import mask
    >>> solver = ddrm(mask([1, 0]), jnp.array([[2.0, 0.0]]), sigma_y=0.1)
    """
    _check_spectral("ddrm", operator)

    def step(keys, x, denoise, current, next_):
        estimate = denoise(x, current)
        x0 = x0_of(estimate)
        off, spread, known = _measured(operator, y, sigma_y, x0)
        now, then = (expand(level.sigma / level.alpha, x) for level in (current, next_))
        noisy = now > 0
        eps = (x / expand(current.alpha, x) - x0) / jnp.where(noisy, now, 1.0)
        fallback = then * operator.rotate(jnp.where(noisy, eps, 0.0))

        # double where: the quotient of the untaken branches is x / 0
        vague = known & (then < spread)
        towards = jnp.where(vague, then / jnp.where(vague, spread, 1.0) * off, fallback)
        keep = safe_sqrt(1.0 - jnp.square(eta))
        sharp = known & ~vague
        shift = jnp.where(sharp, eta_b * off, keep * towards)
        sharp_std = safe_sqrt(jnp.square(then) - jnp.square(eta_b * spread))
        std = jnp.where(sharp, sharp_std, eta * then)
        noise = operator.rotate(normal(keys, x.shape[1:], x.dtype))
        return expand(next_.alpha, x) * (x0 + operator.rotate_back(shift + std * noise))

    return stateless(step, from_pure_noise=False)


def ddnm_plus(
    operator: Spectral, y: Array, *, sigma_y: ArrayLike, normal: Normal = normal_each
) -> Solver:
    """DDNM+, ancestral sampling with the null-space correction, for noisy measurements.

    The reverse step N(a x0 + b x_t, std^2) gets an estimate x0 of which the measured coordinates
    are moved towards the measurement, by as much as the noise that enters with it stays below
    that of the step, which makes up the rest:

        (V^T x0)_i + share_i (U^T y / s_i - V^T x0)_i,    share_i = min(1, std s_i / (a sigma_y))
        variance_i = std^2 - (a share_i sigma_y / s_i)^2

    For sigma_y = 0 it is `ddnm` with `ancestral()`.
    Source: arXiv:2212.00490, Algorithm 2 and the appendix on its SVD form, without time travel.

    Arguments as for `ddrm`.
    """
    _check_spectral("ddnm_plus", operator)

    def step(keys, x, denoise, current, next_):
        estimate = denoise(x, current)
        x0 = x0_of(estimate)
        off, spread, known = _measured(operator, y, sigma_y, x0)
        zero = jnp.zeros_like(x)
        mean, variance = q_posterior(x, x0, current, next_)
        gain = q_posterior(zero, jnp.ones_like(x), current, next_)[0]
        # the gain is one number for each sample: pixels and coordinates share it
        gain = gain.reshape(x.shape[0], -1)[:, :1].reshape((-1,) + (1,) * (x.ndim - 1))
        std = safe_sqrt(variance)
        entering = gain * spread
        whole = entering <= std
        share = jnp.where(whole, 1.0, std / jnp.where(whole, 1.0, entering))
        share = jnp.where(known, share, 0.0)
        left = safe_sqrt(variance - jnp.square(share * entering))
        noise = operator.rotate(normal(keys, x.shape[1:], x.dtype))
        return mean + operator.rotate_back(gain * share * off + left * noise)

    return stateless(step)


def _measured(operator: Spectral, y: Array, sigma_y: ArrayLike, x0: Array):
    """In each coordinate: measurement minus estimate, its noise, and whether it is measured."""
    s = operator.singular_values
    known = s > 0
    scale = jnp.where(known, s, 1.0)
    off = operator.coefficients(residual(operator, y, x0)) / scale
    return jnp.where(known, off, 0.0), expand(jnp.asarray(sigma_y), x0) / scale, known


def _check_spectral(solver: str, operator: Spectral) -> None:
    if not isinstance(operator, Spectral):
        raise TypeError(
            f"{solver} needs an operator with its singular values, a Spectral, and was given a "
            f"{type(operator).__name__}. Small ones become one by operators.decompose; for large "
            "ones there are pigdm, mmps and diffpir, which take any linear function."
        )
