"""Schedules that are told by sigma: variance exploding, EDM and the straight flow.

    variance exploding   alpha = 1,     sigma = sigma_min (sigma_max / sigma_min)^t
    EDM                  alpha = 1,     sigma^(1/rho) evenly spaced in t
    straight flow        alpha = 1 - t, sigma = t

Times are floats in [0, 1]. The first two end at sigma_min instead of clean data; `level_at` of the
ratio 0, and the grids of `sigma_grids`, lead on to sigma = 0.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.arguments import at_least_float32, continuous_time
from diffjax.core.levels import NoiseLevel, ve_level


@register_dataclass
@dataclass(frozen=True)
class VarianceExploding:
    """Geometric sigmas: see `variance_exploding`."""

    sigma_min: ArrayLike = 0.01
    sigma_max: ArrayLike = 50.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        low, high = jnp.asarray(self.sigma_min), jnp.asarray(self.sigma_max)
        return ve_level(t, low * (high / low) ** t)

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        ratio = at_least_float32(ratio)
        low = jnp.log(jnp.asarray(self.sigma_min))
        # below sigma_min, and at 0, the network is told the time of sigma_min
        inside = jnp.clip(ratio, self.sigma_min, self.sigma_max)
        t = (jnp.log(inside) - low) / (jnp.log(jnp.asarray(self.sigma_max)) - low)
        return ve_level(t, ratio)


@register_dataclass
@dataclass(frozen=True)
class Edm:
    """Karras' sigmas: see `edm_sigmas`."""

    sigma_min: ArrayLike = 0.002
    sigma_max: ArrayLike = 80.0
    rho: ArrayLike = 7.0

    def _ends(self) -> tuple[Array, Array]:
        root = 1.0 / jnp.asarray(self.rho)
        return jnp.asarray(self.sigma_min) ** root, jnp.asarray(self.sigma_max) ** root

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        low, high = self._ends()
        return ve_level(t, (low + t * (high - low)) ** self.rho)

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        ratio = at_least_float32(ratio)
        low, high = self._ends()
        # below sigma_min, and at 0, the network is told the time of sigma_min
        inside = jnp.clip(ratio, self.sigma_min, self.sigma_max)
        t = (inside ** (1.0 / jnp.asarray(self.rho)) - low) / (high - low)
        return ve_level(t, ratio)


@partial(register_dataclass, data_fields=[], meta_fields=["clock"])
@dataclass(frozen=True)
class Flow:
    """The straight line from data to noise: see `flow`."""

    clock: float = 1.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        return NoiseLevel(self.clock * t, 1.0 - t, t)

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        ratio = at_least_float32(ratio)
        # 1 - 1 / (1 + ratio) would cancel for a small ratio; infinity is pure noise
        pure = jnp.isinf(ratio)
        finite = jnp.where(pure, 1.0, ratio)
        alpha = jnp.where(pure, 0.0, 1.0 / (1.0 + finite))
        sigma = jnp.where(pure, 1.0, finite / (1.0 + finite))
        return NoiseLevel(self.clock * sigma, alpha, sigma)

    def time_of(self, level: NoiseLevel) -> Array:
        """The time of a level, which the network is told times `clock`."""
        return level.t / self.clock


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> VarianceExploding:
    """The VE SDE: unscaled data, noise of geometrically growing scale.

    Source: Score SDE, arXiv:2011.13456, Eq. 31 and Appendix C; NCSN, arXiv:1907.05600, Section 3.

    Args:
      sigma_min, sigma_max: noise scales at t = 0 and t = 1, 0 < sigma_min < sigma_max.

    >>> variance_exploding(0.01, 100.0)(0.5).sigma.round(4)
    Array(1., dtype=float32)
    """
    _check_sigmas("variance_exploding", sigma_min, sigma_max)
    return VarianceExploding(sigma_min, sigma_max)


def edm_sigmas(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Edm:
    """EDM's sampling schedule: unscaled data, evenly spaced sigma^(1/rho).

    Use it with the parameterization `edm`, whose clock is log(sigma) / 4 and not t.
    Source: EDM, arXiv:2206.00364, Eq. 5.

    Args:
      sigma_min, sigma_max: noise scales at t = 0 and t = 1, 0 < sigma_min < sigma_max.
      rho: larger spends more of the time at small sigmas.
    """
    _check_sigmas("edm_sigmas", sigma_min, sigma_max)
    return Edm(sigma_min, sigma_max, rho)


def flow(*, clock: float = 1.0) -> Flow:
    """Rectified flow, or flow matching along straight lines: x_t = (1 - t) x0 + t eps.

    Its natural prediction is `velocity`. A shift towards noise for high resolutions is a change of
    the grid and of the training times, not of the schedule: see `shifted`.
    Sources: Flow Matching, arXiv:2210.02747, Eq. 22 (time reversed); arXiv:2209.03003, Eq. 1.

    Args:
      clock: what the network is told at t = 1; the networks of Stable Diffusion 3 take 1000.

    >>> level = flow()(0.25)
    >>> float(level.alpha), float(level.sigma)
    (0.75, 0.25)
    """
    return Flow(clock)


def _check_sigmas(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"{name}: sigma_min is {sigma_min}, sigma_max is {sigma_max}; "
            "needed is 0 < sigma_min < sigma_max."
        )
