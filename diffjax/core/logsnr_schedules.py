"""Variance-preserving schedules told by their log-SNR lambda(t),

    alpha^2 = sigmoid(lambda),    sigma^2 = sigmoid(-lambda).

Any decreasing function of t in [0, 1] makes one. Source: VDM, arXiv:2107.00630, Eqs. 3 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial, register_dataclass
from jax.typing import ArrayLike

from diffjax.core import densities
from diffjax.core.arguments import at_least_float32, check_order, continuous_time
from diffjax.core.densities import Curve, finite_logsnr
from diffjax.core.levels import NoiseLevel, vp_level


@register_dataclass
@dataclass(frozen=True)
class FromLogsnr:
    """Variance-preserving levels along a curve of log-SNR: see `from_logsnr`."""

    curve: Curve

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        logsnr, finite = finite_logsnr(self.curve, t)
        end = jnp.where(logsnr > 0, 0.0, jnp.inf)
        return vp_level(t, jnp.where(finite, jnp.exp(-0.5 * logsnr), end))


@register_dataclass
@dataclass(frozen=True)
class LogLinear:
    """Log-SNR linear in time: see `log_linear`."""

    start: Array | float = 13.3
    end: Array | float = -5.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        logsnr = densities.Uniform(self.start, self.end)(t)
        return vp_level(t, jnp.exp(-0.5 * logsnr))

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        ratio = at_least_float32(ratio)
        return vp_level(jnp.clip(clock_of_logsnr(ratio, self.start, self.end), 0.0, 1.0), ratio)


def from_logsnr(curve: Curve) -> FromLogsnr:
    """The variance-preserving schedule with a given log-SNR.

    Args:
      curve: t in [0, 1] -> 2 log(alpha / sigma), elementwise, decreasing; it may be infinite at
        either end, which is then clean data or pure noise. A registered dataclass keeps its
        parameters traceable.

    >>> cosine = from_logsnr(lambda t: -2.0 * jnp.log(jnp.tan(0.5 * jnp.pi * t)))
    >>> cosine(0.5).alpha.round(4)
    Array(0.7071, dtype=float32)
    """
    return FromLogsnr(as_pytree(curve))


def laplace(mean: float = 0.0, scale: float = 0.5) -> FromLogsnr:
    """The Laplace schedule: log-SNR is Laplace-distributed over time; zero terminal SNR.

        lambda(t) = mean - scale sign(1/2 - t) log(1 - 2 |t - 1/2|)

    Source: "Improved Noise Schedule for Diffusion Training", arXiv:2407.03297, Table 1.

    Args:
      mean: log-SNR at t = 1/2, where the schedule is slowest.
      scale: positive; smaller spends more of the time there.

    >>> level = laplace()(jnp.array([0.0, 1.0]))
    >>> level.alpha.tolist(), level.sigma.tolist()
    ([1.0, 0.0], [0.0, 1.0])
    """
    return from_logsnr(densities.laplace(mean, scale))


def log_linear(start: float = 13.3, end: float = -5.0) -> LogLinear:
    """Log-SNR linear in time, that is sigma / alpha geometric.

        lambda(t) = start + t (end - start)

    It is the VE SDE with its states scaled to preserve the variance. The defaults are the ends
    that VDM's learned schedule starts from. Source: VDM, arXiv:2107.00630, Section 6.

    Args:
      start, end: log-SNR at t = 0 and t = 1, start > end.

    >>> log_linear(10.0, -10.0)(0.5).sigma.round(4)
    Array(0.7071, dtype=float32)
    """
    check_order("log_linear", end=end, start=start)
    return LogLinear(start, end)


def clock_of_logsnr(ratio: Array, start: Array | float, end: Array | float) -> Array:
    """Log-SNR at a ratio sigma / alpha, counted from 0 at `start` to 1 at `end` and beyond.

    It is 0 at the ratio 0 and 1 at infinity.
    """
    finite = (ratio > 0) & jnp.isfinite(ratio)
    logsnr = -2.0 * jnp.log(jnp.where(finite, ratio, 1.0))
    return jnp.where(finite, (start - logsnr) / (start - end), jnp.where(ratio > 0, 1.0, 0.0))


def as_pytree(function: Callable) -> Callable:
    """A plain function as a pytree without leaves; a registered dataclass is one already."""
    return Partial(function) if jax.tree_util.all_leaves([function]) else function
