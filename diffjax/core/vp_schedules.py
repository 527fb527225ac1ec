"""Schedules of the VP and sub-VP SDEs in continuous time, told by their betas or their signal.

Times are floats in [0, 1]: 0 is data, 1 is noise. Each schedule is written so that neither alpha
nor sigma is the difference of two nearly equal numbers.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.arguments import check_order, check_positive, continuous_time
from diffjax.core.levels import NoiseLevel, safe_sqrt


@register_dataclass
@dataclass(frozen=True)
class Linear:
    """Variance-preserving SDE with beta(t) linear in t: see `linear`."""

    beta_min: Array | float = 0.1
    beta_max: Array | float = 20.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        return _from_log_alpha(t, _linear_log_alpha(t, self.beta_min, self.beta_max))


@register_dataclass
@dataclass(frozen=True)
class SubVp:
    """Sub-VP SDE with beta(t) linear in t: see `sub_vp`."""

    beta_min: Array | float = 0.1
    beta_max: Array | float = 20.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        log_alpha = _linear_log_alpha(t, self.beta_min, self.beta_max)
        return NoiseLevel(t, jnp.exp(log_alpha), -jnp.expm1(2.0 * log_alpha))


@register_dataclass
@dataclass(frozen=True)
class ScaledLinear:
    """Variance-preserving SDE with sqrt(beta(t)) linear in t: see `scaled_linear`."""

    beta_min: Array | float = 0.85
    beta_max: Array | float = 12.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        start = jnp.sqrt(self.beta_min)
        slope = jnp.sqrt(self.beta_max) - start
        integral = start**2 * t + start * slope * t**2 + slope**2 * t**3 / 3.0
        return _from_log_alpha(t, -0.5 * integral)


@register_dataclass
@dataclass(frozen=True)
class Cosine:
    """Squared-cosine signal variance: see `cosine`."""

    offset: Array | float = 0.008

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        quarter = 0.5 * jnp.pi / (1.0 + self.offset)
        start = quarter * self.offset
        # sin of the angle left until t = 1 is exactly 0 there; cos(pi / 2) would not be
        alpha = jnp.sin(quarter * (1.0 - t)) / jnp.cos(start)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a)
        variance = jnp.sin(quarter * t) * jnp.sin(quarter * t + 2.0 * start)
        return NoiseLevel(t, alpha, safe_sqrt(variance) / jnp.cos(start))


@register_dataclass
@dataclass(frozen=True)
class Sigmoid:
    """Sigmoid signal variance: see `sigmoid`."""

    start: Array | float = -3.0
    end: Array | float = 3.0
    temperature: Array | float = 1.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        low, high = self.start / self.temperature, self.end / self.temperature
        here = low + t * (high - low)

        def rise(a, b, length):
            # sigmoid(b) - sigmoid(a), with b - a = length given without cancellation
            return jnp.sinh(0.5 * length) / (2.0 * jnp.cosh(0.5 * a) * jnp.cosh(0.5 * b))

        total = rise(low, high, high - low)
        alpha = safe_sqrt(rise(here, high, (1.0 - t) * (high - low)) / total)
        return NoiseLevel(t, alpha, safe_sqrt(rise(low, here, t * (high - low)) / total))


def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Linear:
    """Continuous-time limit of the linear DDPM schedule, the VP SDE of score-based models.

        log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2

    The betas are rates: a table of T steps has beta_t = beta(t) / T, so DDPM's 1e-4 .. 0.02 with
    T = 1000 is 0.1 .. 20. Source: Score SDE, arXiv:2011.13456, Eq. 33.

    Args:
      beta_min, beta_max: rates at t = 0 and t = 1, 0 < beta_min < beta_max.

    Raises:
      ValueError: they are not positive, or beta_max is not the larger.

    >>> level = linear()(jnp.array(0.0))
    >>> float(level.alpha), float(level.sigma)
    (1.0, 0.0)
    """
    check_order("linear", beta_min=beta_min, beta_max=beta_max)
    check_positive("linear", beta_min=beta_min)
    return Linear(beta_min, beta_max)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SubVp:
    """The sub-VP SDE: the signal of the VP SDE, with less noise.

        alpha as for `linear`,    sigma = 1 - alpha^2

    (the VP SDE has the square root). Its SDE is another one too: the drift -beta x / 2 is the
    same, the squared diffusion is beta (1 - alpha^4) instead of beta. Nothing needs to be told:
    `sde.drift_and_diffusion` and the forward kernels of `levels` follow from alpha and sigma.
    Source: Score SDE, arXiv:2011.13456, Eqs. 12 and 29.

    Args:
      beta_min, beta_max: as of `linear`.

    >>> level = sub_vp()(jnp.array(0.5))
    >>> round(float(level.alpha**2 + level.sigma), 6)
    1.0
    """
    check_order("sub_vp", beta_min=beta_min, beta_max=beta_max)
    check_positive("sub_vp", beta_min=beta_min)
    return SubVp(beta_min, beta_max)


def scaled_linear(beta_min: float = 0.85, beta_max: float = 12.0) -> ScaledLinear:
    """Continuous-time limit of latent diffusion's schedule: sqrt(beta(t)) is linear in t.

        log alpha(t) = -(a^2 t + a b t^2 + b^2 t^3 / 3) / 2,
        a = sqrt(beta_min), b = sqrt(beta_max) - a

    Source: Latent Diffusion Models, arXiv:2112.10752 (betas 0.00085 .. 0.012 with T = 1000).

    Args:
      beta_min, beta_max: as of `linear`.
    """
    check_order("scaled_linear", beta_min=beta_min, beta_max=beta_max)
    check_positive("scaled_linear", beta_min=beta_min)
    return ScaledLinear(beta_min, beta_max)


def cosine(offset: float = 0.008) -> Cosine:
    """The cosine schedule; its terminal SNR is exactly zero.

        alpha(t) = f(t) / f(0),    f(t) = cos(pi / 2 * (t + s) / (1 + s)),    s = offset

    Source: Improved DDPM, arXiv:2102.09672, Eq. 17.

    Args:
      offset: s >= 0; a larger one makes the first steps noisier.

    Raises:
      ValueError: a negative offset.

    >>> level = cosine()(jnp.array([0.0, 1.0]))
    >>> level.alpha.tolist(), level.sigma.tolist()
    ([1.0, 0.0], [0.0, 1.0])
    """
    if offset < 0:
        raise ValueError(f"cosine: offset is {offset}; it must be at least 0.")
    return Cosine(offset)


def sigmoid(start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> Sigmoid:
    """The sigmoid schedule; its terminal SNR is exactly zero.

        alpha(t)^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)),
        S(u) = 1 / (1 + exp(-u / temperature))

    Source: Chen, "On the Importance of Noise Scheduling", arXiv:2301.10972, Algorithm 1.

    Args:
      start, end: interval of the sigmoid that is used, start < end.
      temperature: positive; smaller is steeper.

    Raises:
      ValueError: start is not below end, or the temperature is not positive.
    """
    check_order("sigmoid", start=start, end=end)
    check_positive("sigmoid", temperature=temperature)
    return Sigmoid(start, end, temperature)


def _linear_log_alpha(t: Array, beta_min: Array | float, beta_max: Array | float) -> Array:
    """Minus half the integral of the rate beta_min + t (beta_max - beta_min)."""
    return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def _from_log_alpha(t: Array, log_alpha: Array) -> NoiseLevel:
    return NoiseLevel(t, jnp.exp(log_alpha), safe_sqrt(-jnp.expm1(2.0 * log_alpha)))
