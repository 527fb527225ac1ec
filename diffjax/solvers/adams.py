"""Linear multistep methods: Adams-Bashforth in the ratio sigma / alpha (LMS), and PLMS.

Between two levels x is moved by a slope that would be constant for perfect estimates,

    slope      x_s = keep x_t + gain slope
    "eps"      keep = alpha_s / alpha_t,                        gain = sigma_s - keep sigma_t
    "v"        keep = (alpha_s alpha_t + sigma_s sigma_t) / n,
               gain = (sigma_s alpha_t - alpha_s sigma_t) / n,    n = alpha_t^2 + sigma_t^2

and the slopes of the steps before are extrapolated over the step by a polynomial. LMS takes it in
sigma / alpha, with the true distances. PLMS, of the pseudo numerical methods (PNDM), takes the
weights of equal distances, (3, -1) / 2, (23, -16, 5) / 12, (55, -59, 37, -9) / 24, and makes its
first steps with more calls of the network: as Heun does, or Runge and Kutta.

Sources: LMS as in github.com/crowsonkb/k-diffusion; PNDM, arXiv:2202.09778, Eqs. 11-12 and
Algorithm 2; iPNDM: DEIS, arXiv:2204.13902, Appendix.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, estimate_eps
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.solvers.exponential import (
    Interval,
    Transfer,
    exact,
    extrapolated,
    node_weights,
    usable_order,
    weighted,
)
from diffjax.solvers.window import Window, start_of, windowed

SLOPES = ("eps", "v")


def slope_transfer(current: NoiseLevel, next_: NoiseLevel, slope: str) -> Transfer:
    """The coefficients of the table; for "eps" they are of no use where alpha_t = 0."""
    zero = jnp.zeros_like(current.alpha)
    if slope == "eps":
        keep = next_.alpha / jnp.where(current.alpha > 0, current.alpha, 1.0)
        return Transfer(keep, next_.sigma - keep * current.sigma, zero, zero)
    norm = current.alpha**2 + current.sigma**2
    keep = (next_.alpha * current.alpha + next_.sigma * current.sigma) / norm
    gain = (next_.sigma * current.alpha - next_.alpha * current.sigma) / norm
    return Transfer(keep, gain, zero, zero)


def lms(order: int = 4) -> Solver:
    """Adams-Bashforth in sigma / alpha, with the true distances of the levels.

    One call of the network in each step; the first steps have the order that the slopes so far
    allow. It cannot start from pure noise (alpha = 0), where sigma / alpha is infinite.

    Args:
      order: 1 to 4.

    >>> solver = lms()
    """
    _check_order(order)

    def in_ratio(window: Window) -> Interval:
        row = slope_transfer(start_of(window), window.next_, "eps")
        ratios = window.starts.sigma / window.starts.alpha
        return _interval(ratios, window.next_.sigma / window.next_.alpha - ratios[0], row)

    return extrapolated(order, in_ratio, estimate_eps)._replace(from_pure_noise=False)


def _interval(places: Array, length: Array, row: Transfer) -> Interval:
    """A step in a coordinate that is finite everywhere."""
    everywhere = jnp.ones(places.shape, bool)
    return Interval(places, everywhere, everywhere[0], length, row, exact)


class Planned(NamedTuple):
    """What a step of PLMS multiplies with.

    Attributes:
      weights: of the estimate of x0, or of x where v is the slope; then of the slopes, newest
        first.
      gain: of a slope over the whole step.
      starting: whether the step takes more calls of the network instead.
    """

    weights: list[Array]
    gain: Array
    starting: Array


def plms(
    order: int = 4,
    *,
    slope: str = "eps",
    start: str = "two_calls",
    schedule: Schedule | None = None,
) -> Solver:
    """PLMS: Adams-Bashforth with the weights of equal distances, whatever the distances are.

    The first step from pure noise (alpha = 0) is one of DDIM.
    It has its order where the grid is evenly spaced in sigma / alpha, and order 2 where the lengths
    of the steps change smoothly; with the slope "v", which turns as x moves, it has order 1. On the
    grids that it was made for its errors are small all the same.

    Args:
      order: 1 to 4.
      slope: "eps", or "v" for networks that predict it: which predictions are extrapolated.
      start: "two_calls" (default) takes the mean of the slopes at both ends of the first step;
        "runge_kutta" (PNDM's own) makes the first three steps with four calls each; "one_call"
        (iPNDM) starts with lower orders.
      schedule: of the levels, for "runge_kutta": it is called with the time in the middle.

    Raises:
      ValueError: another order or name, or "runge_kutta" without a schedule.

    >>> solver = plms()
    """
    _check_order(order)
    if slope not in SLOPES or start not in STARTS:
        raise ValueError(
            f"slope is {slope!r} and start is {start!r}; they must be one of {', '.join(SLOPES)} "
            f"and one of {', '.join(STARTS)}."
        )
    if start == "runge_kutta" and schedule is None:
        raise ValueError("start='runge_kutta' needs the schedule, for levels between the grid's.")
    num_starting, mean_slope = STARTS[start]

    def advance(keys, x, before, denoise, current, next_, planned: Planned):
        x0 = denoise(x, current)
        slopes = [_slope_of(x, x0, current, slope), *before]
        moved = weighted(planned.weights, [x0 if slope == "eps" else x, *slopes])

        def more_calls():
            mean = mean_slope(x, moved, slopes[0], denoise, schedule, current, next_, slope)
            return moved + planned.gain * (mean - slopes[0])

        if num_starting > 0:
            moved = lax.cond(planned.starting, more_calls, lambda: moved)
        return moved, slopes[: order - 1]

    plan = partial(_planned, order, slope, num_starting)
    return windowed(order - 1, plan, lambda x: [jnp.zeros_like(x)] * (order - 1), advance)


def _planned(order: int, slope: str, num_starting: int, window: Window) -> Planned:
    """What the levels tell of a step: it is one of DDIM, and the change that the slopes make."""
    current, next_ = start_of(window), window.next_
    row = slope_transfer(current, next_, slope)
    # equal distances: the steps are counted
    places = jnp.asarray(-np.arange(order), row.keep.dtype)
    interval = _interval(places, jnp.ones_like(row.keep), row)
    newest, *before = node_weights(interval, usable_order(interval, window.known))
    # a call at clean data would learn nothing, from pure noise the slope is not used
    starting = (window.count < num_starting) & (next_.sigma > 0) & (current.alpha > 0)
    # only the denoiser knows x0 at alpha = 0
    plain = starting | (current.alpha == 0) if slope == "eps" else starting
    change, *before = (jnp.where(plain, 0.0, each) for each in (newest - row.gain, *before))
    # DDIM's step in small numbers: near pure noise x and eps, times keep and gain, would cancel
    ddim = (next_.alpha, next_.sigma) if slope == "eps" else (row.keep, row.gain)
    return Planned([ddim[0], ddim[1] + change, *before], row.gain, starting)


def ipndm(order: int = 4, *, slope: str = "eps") -> Solver:
    """iPNDM: PLMS that starts with lower orders, one call of the network in each step.

    Source: DEIS, arXiv:2204.13902, Appendix.

    Args:
      order, slope: see `plms`.

    >>> solver = ipndm()
    """
    return plms(order, slope=slope, start="one_call")


def pndm(schedule: Schedule, *, slope: str = "eps") -> Solver:
    """PNDM: PLMS after three Runge-Kutta steps of four calls each.

    Source: PNDM, arXiv:2202.09778, Algorithm 2.

    Args:
      schedule: of the levels; it gives the level in the middle of a step.
      slope: see `plms`.

    >>> from diffjax.core.schedules import linear_betas
    >>> solver = pndm(linear_betas())
    """
    return plms(slope=slope, start="runge_kutta", schedule=schedule)


def _slope(x: Array, denoise: Denoiser, level: NoiseLevel, slope: str) -> Array:
    return _slope_of(x, denoise(x, level), level, slope)


def _slope_of(x: Array, x0: Array, level: NoiseLevel, slope: str) -> Array:
    eps = estimate_eps(x, x0, level)
    return eps if slope == "eps" else level.alpha * eps - level.sigma * x0


def _heun(x, moved, first, denoise, schedule, current, next_, slope) -> Array:
    """The mean of the slopes at both ends of a step, with one more call."""
    return 0.5 * (first + _slope(moved, denoise, next_, slope))


def _runge_kutta(x, moved, first, denoise, schedule, current, next_, slope) -> Array:
    """The mean slope of a classical Runge-Kutta step, with three more calls."""
    steps = current.t - next_.t
    half = steps // 2 if jnp.issubdtype(steps.dtype, jnp.integer) else 0.5 * steps
    middle = schedule(next_.t + half)

    def along(value, level):
        row = slope_transfer(current, level, slope)
        return row.keep * x + row.gain * value

    second = _slope(along(first, middle), denoise, middle, slope)
    third = _slope(along(second, middle), denoise, middle, slope)
    fourth = _slope(along(third, next_), denoise, next_, slope)
    return (first + 2.0 * second + 2.0 * third + fourth) / 6.0


# name -> how many of the first steps it takes, and the mean slope of each
STARTS: dict[str, tuple[int, Any]] = {
    "one_call": (0, None),
    "two_calls": (1, _heun),
    "runge_kutta": (3, _runge_kutta),
}


def _check_order(order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}; it must be 1, 2, 3 or 4.")
