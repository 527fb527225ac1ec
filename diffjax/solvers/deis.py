"""DEIS and exponential Adams-Bashforth: polynomials through estimates, integrated exactly.

The probability flow is linear but for the network: x_s is (alpha_s / alpha_t) x_t and alpha_s times
the integral of eps over rho = sigma / alpha. The methods differ in what is a polynomial in what:

    exponential Adams-Bashforth   x0 or eps in lambda = -log(rho), see `exponential`
    DEIS, log-rho                 eps in log(rho), which is the same
    DEIS, tAB                     eps in the time t of the schedule

In the last one the weight of r^k, with r from 0 to 1 over the step, is found by quadrature,

    int r^k drho = rho_s - [k = 0] rho_t - k int_0^1 rho(r) r^(k-1) dr.

Sources: DEIS, arXiv:2204.13902, Eqs. 14-16 and Appendix; Hochbruck and Ostermann, "Exponential
integrators", Acta Numerica 2010, Section 2.5.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.inverse import time_of
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.solvers.adams import slope_transfer
from diffjax.solvers.exponential import Interval, Rule, extrapolated, multistep
from diffjax.solvers.window import Window, start_of

# Gauss-Legendre on [0, 1]; rho is smooth within a step, but for its square root at clean data
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
NODES, WEIGHTS = 0.5 * (NODES + 1.0), 0.5 * WEIGHTS


def exponential_adams(
    order: int = 4, *, predict: str = "x0", orders: np.ndarray | Array | None = None
) -> Solver:
    """Exponential Adams-Bashforth in log-SNR: of the given order, one call in each step.

    Args:
      order: 1 to 4.
      predict: "x0" (default) or "eps", what is integrated; "eps" cannot start from pure noise.
      orders: [num_steps] upper limits of the order of each step, see `lower_final_orders`.

    >>> solver = exponential_adams(3)
    """
    _check_order(order)
    return multistep(order, predict=predict, orders=orders)


def deis(
    order: int = 3,
    *,
    schedule: Schedule | None = None,
    orders: np.ndarray | Array | None = None,
) -> Solver:
    """The DEIS solver: of the given order, one call of the network in each step.

    It extrapolates eps and cannot start from pure noise (alpha = 0).

    Args:
      order: 1 to 4.
      schedule: of the levels, for the paper's tAB, which extrapolates in its time; without it eps
        is extrapolated in log(rho). A table is smooth in its time over steps longer than its own;
        shorter ones have a lower order.
      orders: [num_steps] upper limits of the order of each step, see `lower_final_orders`.

    >>> solver = deis(3)
    """
    _check_order(order)
    if schedule is None:
        return multistep(order, predict="eps", orders=orders)

    def in_time(window: Window) -> Interval:
        current = start_of(window)
        times = jnp.asarray(time_of(schedule, window.starts), window.starts.sigma.dtype)
        length = time_of(schedule, window.next_) - times[0]
        row = slope_transfer(current, window.next_, "eps")
        rule = _along(schedule, current, window.next_, order)
        everywhere = jnp.ones(times.shape, bool)
        return Interval(times, everywhere, window.next_.sigma > 0, length, row, rule)

    solver = extrapolated(order, in_time, estimate_eps, orders=orders)
    return solver._replace(from_pure_noise=False)


def _along(schedule: Schedule, current: NoiseLevel, next_: NoiseLevel, count: int) -> Rule:
    """The means of r^0 .. r^(count - 1) over rho, within one step in time."""
    start, end = (time_of(schedule, level) for level in (current, next_))
    # times of a table are whole numbers, those between them are not
    inner = schedule(start + jnp.asarray(NODES, current.sigma.dtype) * (end - start))
    rho = inner.sigma / inner.alpha
    first, last = current.sigma / current.alpha, next_.sigma / next_.alpha
    length = jnp.where(first == last, 1.0, last - first)
    weights = [WEIGHTS * NODES ** (k - 1) for k in range(1, count)]
    integrals = [last - k * jnp.sum(each * rho) for k, each in enumerate(weights, start=1)]
    means = [jnp.ones_like(length), *(integral / length for integral in integrals)]
    return lambda exponent, exact_means: means[: len(exact_means)]


def _check_order(order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}; it must be 1, 2, 3 or 4.")
