"""Schedule to schedule: other times for the same levels.

The levels stay on the curve of the schedule that is transformed, and the network is told the clock
that belongs to them there. So a network that was trained on `schedule` understands all of these:

    shifted(schedule, shift)     every level has sigma / alpha multiplied by `shift`
    resampled(schedule, curve)   uniform time spreads the levels as a curve of `densities` says
    between(schedule, a, b)      a part of the schedule, stretched over [0, 1]
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.arguments import check_order, check_positive, continuous_time
from diffjax.core.densities import Curve, finite_logsnr
from diffjax.core.inverse import level_at, time_at, time_of
from diffjax.core.levels import NoiseLevel, Schedule, ratio_of
from diffjax.core.logsnr_schedules import as_pytree
from diffjax.core.tables import num_train_steps


@register_dataclass
@dataclass(frozen=True)
class Shifted:
    """More noise at every time: see `shifted`."""

    schedule: Schedule
    shift: Array | float

    @property
    def num_train_steps(self) -> int | None:
        return num_train_steps(self.schedule)

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        ratio = ratio_of(self.schedule(t))
        # double where: the slope in `shift` is infinite at pure noise, which is not shifted
        pure = jnp.isinf(ratio)
        more = jnp.where(pure, jnp.inf, self.shift * jnp.where(pure, 1.0, ratio))
        return level_at(self.schedule)(more)

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`: a ratio is not shifted."""
        return level_at(self.schedule)(jnp.asarray(ratio))

    def time_of(self, level: NoiseLevel) -> Array:
        """The time of a level."""
        before = level_at(self.schedule)(ratio_of(level) / self.shift)
        return time_of(self.schedule, before)


@register_dataclass
@dataclass(frozen=True)
class Resampled:
    """Another distribution of the levels over time: see `resampled`."""

    schedule: Schedule
    curve: Curve

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        logsnr, _ = finite_logsnr(self.curve, continuous_time(t))
        return self.at_ratio(jnp.exp(-0.5 * logsnr))

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        return level_at(self.schedule)(jnp.asarray(ratio))

    def time_of(self, level: NoiseLevel) -> Array:
        """The time of a level."""
        return time_at(self, ratio_of(level))


@register_dataclass
@dataclass(frozen=True)
class Between:
    """A part of a schedule: see `between`."""

    schedule: Schedule
    start: Array | float
    end: Array | float

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = continuous_time(t)
        return self.schedule((1.0 - t) * self.start + t * self.end)

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        return level_at(self.schedule)(jnp.asarray(ratio))

    def time_of(self, level: NoiseLevel) -> Array:
        """The time of a level."""
        return (time_of(self.schedule, level) - self.start) / (self.end - self.start)


def shifted(schedule: Schedule, shift: float) -> Shifted:
    """The schedule with sigma / alpha multiplied by `shift` at every time, as larger images need.

        log-SNR(t) -> log-SNR(t) - 2 log(shift)

    For images of k times the side, shift = k keeps the noise of their coarse structure. On the
    straight flow this is the time shift t -> shift t / (1 + (shift - 1) t). It serves training and
    sampling alike; sampled from with a plain grid of times it must not be applied to that grid too.
    Sources: simple diffusion, arXiv:2301.11093, Section 2.1 (log-SNR); Stable Diffusion 3,
    arXiv:2403.03206, Eq. 23 (time); Chen, arXiv:2301.10972, whose input scale is 1 / shift.

    Args:
      schedule: continuous, or a table, whose steps then tell the network times between the steps.
        Levels beyond its noisiest one are told that one's time.
      shift: positive; above 1 there is more noise. 1 is off.

    Raises:
      ValueError: the shift is not positive.

    >>> from diffjax.core.sigma_schedules import flow
    >>> float(shifted(flow(), 3.0)(0.5).sigma)
    0.75
    """
    check_positive("shifted", shift=shift)
    return Shifted(as_pytree(schedule), shift)


def resampled(schedule: Schedule, curve: Curve) -> Resampled:
    """The levels of a schedule, spread over time as a curve of log-SNR says: to train on.

    A loss that draws uniform times of the result (evenly, stratified or of low discrepancy) draws
    levels of the original from the curve's distribution. Ends at which the curve is infinite are
    left out by a millionth of the time.

    Args:
      schedule: whose levels and clock are used, for example `edm_sigmas()` or `flow()`.
      curve: u in [0, 1] -> log-SNR, decreasing, such as `densities.log_normal()`.

    >>> from diffjax.core import densities
    >>> from diffjax.core.sigma_schedules import edm_sigmas
    >>> resampled(edm_sigmas(), densities.log_normal(mean=0.0))(0.5).sigma
    Array(1., dtype=float32)
    """
    return Resampled(as_pytree(schedule), as_pytree(curve))


def between(schedule: Schedule, start: float, end: float) -> Between:
    """The part of a schedule from its time `start` to its time `end`, stretched over [0, 1].

    It takes away an end at which log-SNR is infinite, as likelihood bounds need: with data of
    infinite precision, or eps-prediction of pure noise.

    Args:
      schedule: in continuous time.
      start, end: 0 <= start < end <= 1.

    Raises:
      TypeError: the schedule is a table.
      ValueError: times that are not in this order.

    >>> from diffjax.core.vp_schedules import linear
    >>> float(between(linear(), 1e-3, 1.0)(0.0).sigma) > 0
    True
    """
    if num_train_steps(schedule) is not None:
        raise TypeError("between takes a schedule in continuous time, not a table.")
    check_order("between", start=start, end=end)
    if start < 0.0 or end > 1.0:
        raise ValueError(f"between: {start} .. {end} is not inside of [0, 1].")
    return Between(as_pytree(schedule), start, end)
