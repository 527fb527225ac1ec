"""Noise levels and the Gaussian forward process between them.

A level says how much signal and how much noise an array holds,

    x_t = alpha_t x0 + sigma_t eps,    eps ~ N(0, I),    logsnr_t = 2 log(alpha_t / sigma_t).

Between two levels s < t (s cleaner) the process is the Gaussian Markov kernel

    q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2 I),
    alpha_ts = alpha_t / alpha_s,    sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2,

and, given the clean x0, its reverse is

    q(x_s | x_t, x0) = N(mean, variance I),
    mean     = (alpha_ts sigma_s^2 x_t + alpha_s sigma_ts^2 x0) / sigma_t^2,
    variance = sigma_ts^2 sigma_s^2 / sigma_t^2.

For a variance-preserving table with neighbouring steps, alpha_ts^2 = 1 - beta_t and
sigma_ts^2 = beta_t: the formulas are those of DDPM (arXiv:2006.11239, Eqs. 2, 4, 6, 7).
Source for the general form: Variational Diffusion Models, arXiv:2107.00630, Appendix A.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike


class NoiseLevel(NamedTuple):
    """One noise level, or an array of them; the three leaves share one shape.

    Attributes:
      t: the clock that the network was trained on (0 = data; 1, or T - 1 in tables, = noise).
      alpha: scale of the clean signal, >= 0, float32.
      sigma: scale of the noise, >= 0, float32.
    """

    t: Array
    alpha: Array
    sigma: Array


# time -> level, elementwise: see `diffjax.core.schedules`
Schedule = Callable[[ArrayLike], NoiseLevel]


def vp_level(t: Array, ratio: Array) -> NoiseLevel:
    """The variance-preserving level with a given sigma / alpha: alpha^2 + sigma^2 = 1.

    The ratio 0 is clean data, infinity pure noise.

    >>> level = vp_level(jnp.array(0.5), jnp.array(0.75))
    >>> round(float(level.alpha), 4), round(float(level.sigma), 4)
    (0.8, 0.6)
    """
    # double where: infinity times the zero gradient of the untaken branch is NaN
    pure = jnp.isinf(ratio)
    finite = jnp.where(pure, 1.0, ratio)
    alpha = lax.rsqrt(1.0 + finite**2)
    return NoiseLevel(t, jnp.where(pure, 0.0, alpha), jnp.where(pure, 1.0, finite * alpha))


def ve_level(t: Array, ratio: Array) -> NoiseLevel:
    """The level of unscaled data with a given sigma / alpha: alpha = 1."""
    return NoiseLevel(t, jnp.ones_like(ratio), ratio)


def expand(values: Array, x: Array) -> Array:
    """Append axes to a scalar or [B] array, so that it broadcasts against x of shape [B, ...].

    Raises:
      ValueError: there are neither B values nor one.

    >>> expand(jnp.ones(4), jnp.ones((4, 8, 8, 1))).shape
    (4, 1, 1, 1)
    """
    values = jnp.asarray(values)
    # sizes of 1 broadcast
    if values.ndim == 1 and x.ndim and len({1, values.shape[0], x.shape[0]}) > 2:
        raise ValueError(
            f"There are {values.shape[0]} values for the {x.shape[0]} samples of an array of shape "
            f"{x.shape}; needed is one for each sample, or one for all of them."
        )
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values


def select(mask: Array, a: Any, b: Any) -> Any:
    """Of two trees of one structure, a where the mask, [B] or a scalar, is true, b elsewhere.

    >>> select(jnp.array([True, False]), jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return jax.tree.map(lambda a, b: jnp.where(expand(mask, a), a, b), a, b)


def expand_level(level: NoiseLevel, x: Array) -> NoiseLevel:
    """Append axes to every leaf of a level, so that it broadcasts against x of shape [B, ...].

    Raises:
      TypeError: it is no level.
      ValueError: see `expand`.
    """
    return NoiseLevel(*(expand(leaf, x) for leaf in check_level_type(level)))


def check_level_type(level: NoiseLevel) -> NoiseLevel:
    """Refuse a time, or a schedule, in the place of a level."""
    if not isinstance(level, NoiseLevel):
        raise TypeError(
            f"The level is a {type(level).__name__}; needed is a NoiseLevel, what a schedule makes "
            "of a time: cosine()(0.5)."
        )
    return level


def safe_sqrt(values: Array) -> Array:
    """Square root with the gradient 0, not infinity, at 0; negative values count as 0.

    >>> import jax
    >>> jax.grad(safe_sqrt)(0.0)
    Array(0., dtype=float32, weak_type=True)
    """
    # double where: the gradient of the untaken branch is infinite at 0
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1.0)), 0.0)


def inverse_or_zero(values: Array) -> Array:
    """1 / value, and 0, with the gradient 0, where it is 0.

    >>> inverse_or_zero(jnp.array([0.0, 4.0])).tolist()
    [0.0, 0.25]
    """
    # double where: the quotient of the untaken branch is infinite
    there = values != 0
    return jnp.where(there, 1.0 / jnp.where(there, values, 1.0), 0.0)


def logsnr(level: NoiseLevel) -> Array:
    """Log signal-to-noise ratio, 2 log(alpha / sigma), in the shape of the level.

    It is +inf at sigma = 0 and -inf at alpha = 0.
    """
    return 2.0 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def ratio_of(level: NoiseLevel) -> Array:
    """sigma / alpha, which EDM and k-diffusion call sigma; infinite at alpha = 0."""
    # double where: the gradient of the untaken branch is NaN at alpha = 0
    signal = level.alpha > 0
    return jnp.where(signal, level.sigma / jnp.where(signal, level.alpha, 1.0), jnp.inf)


def add_noise(x0: Array, eps: Array, level: NoiseLevel) -> Array:
    """Noise clean data to a level in one go: x = alpha x0 + sigma eps, the DDPM `q_sample`.

    Source: DDPM, arXiv:2006.11239, Eq. 4.

    Args:
      x0: [B, ...] clean data, float32.
      eps: [B, ...] standard normal noise, float32.
      level: the target level; leaves scalar or [B].

    Returns:
      [B, ...] noisy data, float32.

    Raises:
      TypeError: x0 holds integers, such as the bytes of an image; or the level is none.
      ValueError: x0 and eps differ in shape, or there are neither B levels nor one.

    >>> level = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
    >>> float(add_noise(jnp.ones((1, 2)), jnp.zeros((1, 2)), level)[0, 0])
    0.6000000238418579
    """
    x0, eps = jnp.asarray(x0), jnp.asarray(eps)
    if not jnp.issubdtype(x0.dtype, jnp.inexact):
        raise TypeError(
            f"x0 is {x0.dtype}{list(x0.shape)}; needed are floats. Bytes of images become x0 in "
            "[-1, 1] by x / 127.5 - 1."
        )
    if eps.shape != x0.shape:
        raise ValueError(f"eps is {eps.shape} and x0 {x0.shape}; noise has the shape of the data.")
    level = expand_level(level, x0)
    return level.alpha * x0 + level.sigma * eps


def transition(current: NoiseLevel, next_: NoiseLevel) -> tuple[Array, Array]:
    """Scale and variance of the forward kernel that leads from the cleaner level to the noisier.

        alpha_ts = alpha_t / alpha_s,    sigma_ts^2 = sigma_t^2 (1 - SNR_t / SNR_s)

    Sampling order: `current` is the noisier level t, `next_` the cleaner level s. The variance is
    written as a product, because the difference of two nearly equal squares would cancel. It is 0
    where the two levels are equal, also at sigma = 0.
    """
    alpha_ts = current.alpha / next_.alpha
    # double where: the quotient of the untaken branch is 0 / 0 at sigma_t = 0
    noisy = current.sigma > 0
    ratio = alpha_ts * next_.sigma / jnp.where(noisy, current.sigma, 1.0)
    variance = current.sigma**2 * jnp.maximum((1.0 - ratio) * (1.0 + ratio), 0.0)
    return alpha_ts, jnp.where(noisy, variance, 0.0)


def q_step(x: Array, eps: Array, current: NoiseLevel, next_: NoiseLevel) -> Array:
    """One step of the forward chain, q(x_t | x_s): from `current` (s) to the noisier `next_` (t).

        x_t = alpha_ts x_s + sigma_ts eps

    With neighbouring levels of a table this is x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps.
    Source: DDPM, arXiv:2006.11239, Eq. 2.

    Args:
      x: [B, ...] data at level `current`, float32.
      eps: [B, ...] fresh standard normal noise, float32.
      current, next_: levels with leaves scalar or [B]; `next_` has the lower SNR.

    Returns:
      [B, ...] data at level `next_`, float32.
    """
    scale, variance = transition(expand_level(next_, x), expand_level(current, x))
    return scale * x + safe_sqrt(variance) * eps


def q_posterior(x: Array, x0: Array, current: NoiseLevel, next_: NoiseLevel) -> tuple[Array, Array]:
    """Mean and variance of q(x_s | x_t, x0), from the noisier `current` (t) to `next_` (s).

    Source: DDPM, arXiv:2006.11239, Eq. 7, for neighbouring steps; VDM, arXiv:2107.00630,
    Appendix A.2, for any two levels.

    Args:
      x: [B, ...] data at level `current`, float32.
      x0: [B, ...] clean data, or an estimate of it, float32.
      current, next_: levels with leaves scalar or [B]; `current` has the lower SNR.

    Returns:
      The mean, [B, ...], and the variance, in the shape of the levels made to broadcast with x.
    """
    current, next_ = expand_level(current, x), expand_level(next_, x)
    alpha_ts, _ = transition(current, next_)
    small, large = reverse_variances(current, next_)
    noisy = current.sigma > 0
    variance_t = jnp.where(noisy, current.sigma**2, 1.0)
    keep = jnp.where(noisy, alpha_ts * next_.sigma**2 / variance_t, 1.0)
    return keep * x + next_.alpha * large / variance_t * x0, small


def reverse_variances(current: NoiseLevel, next_: NoiseLevel) -> tuple[Array, Array]:
    """The smallest and the largest sensible variance of a reverse step, in the levels' shape.

        small = sigma_ts^2 sigma_s^2 / sigma_t^2    exact for data that is a single point
        large = sigma_ts^2                          exact for data that is N(0, I)

    Neighbouring steps of a table: beta-tilde_t and beta_t. Source: DDPM, arXiv:2006.11239,
    Section 3.2.

    Args:
      current, next_: the noisier level t and the cleaner level s; leaves of one shape.
    """
    _, large = transition(current, next_)
    # double where: the quotient of the untaken branch is 0 / 0 at sigma_t = 0
    noisy = current.sigma > 0
    ratio = jnp.where(noisy, next_.sigma / jnp.where(noisy, current.sigma, 1.0), 0.0)
    return large * ratio**2, large


def interpolate_variance(log_small: Array, log_large: Array, fraction: Array) -> Array:
    """The log-variance that a network picks: fraction in [0, 1], from small (0) to large (1).

    Source: Improved DDPM, arXiv:2102.09672, Eq. 15.
    """
    return fraction * log_large + (1.0 - fraction) * log_small
