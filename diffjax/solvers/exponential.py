"""Exponential multistep integration: the mathematics that DPM-Solver, DEIS and UniPC share.

With lambda = log(alpha / sigma) the probability-flow ODE and the reverse SDE are solved exactly,
between the levels t and s with h = lambda_s - lambda_t and c = 1 + tau^2, by

    x0    x_s = (sigma_s / sigma_t) e^(-tau^2 h) x_t + alpha_s  int_0^h c e^(-c (h-u)) x0(u) du
                + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
    eps   x_s = (alpha_s / alpha_t) x_t - sigma_s  int_0^h c e^(h-u) eps(u) du
                + tau sigma_s sqrt(e^2h - 1) z

where tau = 0 is the ODE, tau = 1 the SDE, and every other tau has the same marginals too. A solver
replaces the estimate under the integral by a polynomial through estimates at known levels; what is
left are moments of the exponential,

    M_k(H) = int_0^1 e^(-H (1 - r)) r^k dr,    H = c h for x0, -h for eps.

Sources: DPM-Solver, arXiv:2206.00927, Eq. 3.4; DPM-Solver++, arXiv:2211.01095, Eq. 8;
SA-Solver, arXiv:2309.05019, Proposition 4.2.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel, safe_sqrt
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver
from diffjax.solvers.window import Window, start_of, windowed

# (h, [M_0 / M_0, M_1 / M_0, ...]) -> the same list, as a solver approximates it
Rule = Callable[[Array, list[Array]], list[Array]]

PREDICTIONS = ("x0", "eps")
SERIES_TERMS = 12  # 1 / 12! is below the rounding of float32


def half_logsnr(level: NoiseLevel) -> Array:
    """lambda = log(alpha / sigma); the factor that is zero counts as 1, to keep gradients finite.

    Steps from pure noise and to clean data, where lambda is infinite, have order 1 and use no
    lambda: see `at_an_end`.
    """
    alpha, sigma = (jnp.where(leaf > 0, leaf, 1.0) for leaf in (level.alpha, level.sigma))
    return jnp.log(alpha) - jnp.log(sigma)


def at_an_end(level: NoiseLevel) -> Array:
    """Whether a level is clean data or pure noise, where lambda is infinite."""
    return (level.alpha == 0) | (level.sigma == 0)


class Transfer(NamedTuple):
    """One of the lines above, for one pair of levels: x_s = keep x + gain mean + spread z.

    Attributes:
      keep: factor of x.
      gain: the integral of a constant estimate 1.
      spread: factor of the noise, 0 for the ODE.
      exponent: H, the argument of the moments.
    """

    keep: Array
    gain: Array
    spread: Array
    exponent: Array


def transfer(
    current: NoiseLevel, next_: NoiseLevel, predict: str, tau: ArrayLike = 0.0
) -> Transfer:
    """The coefficients of a step; finite at sigma_s = 0, and for x0 also at alpha_t = 0.

    Args:
      current, next_: levels with scalar leaves; current.sigma > 0.
      predict: "x0" or "eps", what is integrated.
      tau: share of the noise, 0 for the ODE, 1 for the SDE; may be traced.
    """
    h = half_logsnr(next_) - half_logsnr(current)
    # used in moments, which no step to or from infinite lambda needs
    h = jnp.where(at_an_end(current) | at_an_end(next_), 1.0, h)
    rate = jnp.square(tau)
    if predict == "x0":
        keep = next_.sigma / current.sigma
        # e^-h, exact at both ends
        decay = current.alpha * keep / next_.alpha
        # double where: the gradient of the untaken branch is infinite at e^-h = 0
        inside = decay > 0
        lost = jnp.where(inside, jnp.where(inside, decay, 1.0) ** rate, jnp.equal(rate, 0.0))
        spread = next_.sigma * safe_sqrt((1.0 - lost) * (1.0 + lost))
        return Transfer(keep * lost, next_.alpha * (1.0 - decay * lost), spread, (1.0 + rate) * h)
    keep = next_.alpha / current.alpha
    before = keep * current.sigma
    spread = jnp.asarray(tau) * safe_sqrt((before - next_.sigma) * (before + next_.sigma))
    return Transfer(keep, (1.0 + rate) * (next_.sigma - before), spread, -h)


def estimate(predict: str, x: Array, x0: Array, level: NoiseLevel) -> Array:
    """What is integrated, from the denoiser's estimate of x0."""
    return x0 if predict == "x0" else estimate_eps(x, x0, level)


def moments(exponent: Array, count: int) -> list[Array]:
    """M_0, ..., M_{count-1} at H = `exponent`: by their series for small H, else by recurrence.

    M_0 = (1 - e^-H) / H,    M_k = (1 - k M_{k-1}) / H
    """
    small = jnp.abs(exponent) < 1.0
    # double where: the quotients of the untaken branch are 0 / 0 at H = 0
    large = jnp.where(small, 1.0, exponent)
    near = jnp.where(small, exponent, 0.0)
    result, recurrence = [], -jnp.expm1(-large) / large
    for k in range(count):
        if k > 0:
            recurrence = (1.0 - k * recurrence) / large
        series = jnp.zeros_like(exponent)
        for j in reversed(range(SERIES_TERMS)):
            series = series * -near + math.factorial(k) / math.factorial(k + j + 1)
        result.append(jnp.where(small, series, recurrence))
    return result


def lagrange(nodes: Sequence[Array]) -> list[list[Array]]:
    """Coefficients of the Lagrange polynomials: row j is 1 at node j and 0 at the others."""
    rows = []
    for j, node in enumerate(nodes):
        row = [jnp.ones_like(node)]
        for i, other in enumerate(nodes):
            if i != j:
                shifted, kept = [0.0, *row], [*(-other * c for c in row), 0.0]
                row = [(a + b) / (node - other) for a, b in zip(shifted, kept)]
        rows.append(row)
    return rows


def exact(h: Array, means: list[Array]) -> list[Array]:
    """The polynomial is integrated exactly."""
    return means


def midpoint(h: Array, means: list[Array]) -> list[Array]:
    """With two nodes the line is evaluated in the middle of the step, as DPM-Solver-2 does."""
    return [means[0], 0.5 * means[0]] if len(means) == 2 else means


RULES: dict[str, Rule] = {"exact": exact, "midpoint": midpoint}


class Interval(NamedTuple):
    """One step in the coordinate in which estimates are extrapolated.

    Attributes:
      places: [p + 1] where the estimates were made, that of this step first.
      finite: [p + 1] whether those places are.
      inner: whether the end of the step is finite; otherwise the step has order 1.
      length: h, of the step.
      row: its coefficients for a constant estimate.
      rule: how the polynomial is integrated.
    """

    places: Array
    finite: Array
    inner: Array
    length: Array
    row: Transfer
    rule: Rule


# the coordinate of a method: what a step is in it
Coordinate = Callable[[Window], Interval]


def in_logsnr(
    predict: str, rule: Rule, tau: Callable[[NoiseLevel], ArrayLike] = lambda level: 0.0
) -> Coordinate:
    """Polynomials in lambda, for the integrals of this module."""

    def interval(window: Window) -> Interval:
        current = start_of(window)
        lambdas = half_logsnr(window.starts)
        length = half_logsnr(window.next_) - lambdas[0]
        row = transfer(current, window.next_, predict, tau(current))
        inner = ~at_an_end(window.next_)
        return Interval(lambdas, ~at_an_end(window.starts), inner, length, row, rule)

    return interval


def usable_order(interval: Interval, known: Array) -> Array:
    """The highest order of a step: 1 + the number of estimates before, at distinct finite places.

    Args:
      interval: the step.
      known: how many of its places before the step are of meaning.
    """
    good = interval.finite[1:] & (jnp.diff(interval.places) != 0)
    order, unbroken = jnp.int32(1), interval.inner & interval.finite[0]
    for k, each in enumerate(good):
        unbroken = unbroken & each & (k < known)
        order = order + unbroken
    return order


def node_weights(interval: Interval, order: Array, *, ahead: bool = False) -> list[Array]:
    """The weight of each estimate: the integral of the Lagrange polynomial of its place.

    Args:
      interval: the step.
      order: number of places used from the start of the step back, 1 .. p + 1, traced.
      ahead: whether there is an estimate at the end of the step too, for correctors; its weight
        comes first, and `order` may be 0.

    Returns:
      p + 1 scalars, or p + 2; those of estimates that are not used are 0.
    """
    start, h = interval.places[0], interval.length
    # placeholders keep finite what is not used: weights of estimates that are not there, and all
    # of them when the two levels are equal
    distances = (interval.places[1:] - start) / jnp.where(h == 0, 1.0, h)
    before = [
        jnp.where((k < order - 1) & (h != 0), distance, -1.0 - k)
        for k, distance in enumerate(distances)
    ]
    nodes = [*([jnp.ones_like(h)] if ahead else []), jnp.zeros_like(h), *before]
    used = order + ahead
    result = [jnp.zeros_like(h)] * len(nodes)
    for count in range(1, len(nodes) + 1):
        integrals = _integrals(nodes[:count], interval)
        for k, integral in enumerate(integrals):
            result[k] = jnp.where(used == count, integral, result[k])
    return result


def _integrals(nodes: Sequence[Array], interval: Interval) -> list[Array]:
    values = moments(interval.row.exponent, len(nodes))
    means = interval.rule(interval.row.exponent, [value / values[0] for value in values])
    return [interval.row.gain * sum(c * m for c, m in zip(row, means)) for row in lagrange(nodes)]


class Coefficients(NamedTuple):
    """What a multistep solver multiplies with in one step.

    Attributes:
      keep: factor of x.
      weights: of the estimates, newest first.
      spread: factor of the noise.
    """

    keep: Array
    weights: list[Array]
    spread: Array


def weighted(weights: Sequence[Array], estimates: Sequence[Array]) -> Array:
    """The sum of estimates, each times its weight."""
    terms = [weight * each for weight, each in zip(weights, estimates)]
    return reduce(jnp.add, terms)


def limited(order: Array, orders: Array | None, count: Array) -> Array:
    """The order of a step, not above the limit that was given for it."""
    return order if orders is None else jnp.minimum(order, orders[count])


def extrapolated(
    order: int,
    coordinate: Coordinate,
    value_of: Callable[[Array, Array, NoiseLevel], Array],
    *,
    orders: np.ndarray | Array | None = None,
    normal: Normal | None = None,
) -> Solver:
    """Extrapolate the estimates of the last `order` steps over the next: one call in each step.

    Args:
      order: number of estimates, 1 or more.
      coordinate: in which they lie on a polynomial.
      value_of: (x, x0, level) -> what is extrapolated.
      orders: [num_steps] upper limits of the order of each step.
      normal: how noise is drawn, for methods that add noise.
    """
    limits = None if orders is None else jnp.asarray(orders, jnp.int32)

    def coefficients(window: Window) -> Coefficients:
        interval = coordinate(window)
        used = limited(usable_order(interval, window.known), limits, window.count)
        row = interval.row
        return Coefficients(row.keep, node_weights(interval, used), row.spread)

    def start(x):
        return [jnp.zeros_like(x)] * (order - 1)

    def advance(keys, x, before, denoise, current, next_, row: Coefficients):
        estimates = [value_of(x, denoise(x, current), current), *before]
        x = row.keep * x + weighted(row.weights, estimates)
        if normal is not None:
            x = x + row.spread * normal(keys, x.shape[1:], x.dtype)
        return x, estimates[: order - 1]

    return windowed(order - 1, coefficients, start, advance)


def multistep(
    order: int,
    *,
    predict: str = "x0",
    tau: float = 0.0,
    rule: Rule = exact,
    orders: np.ndarray | Array | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """Multistep solvers in log-SNR: DPM-Solver's forms and exponential Adams-Bashforth.

    The first steps have the order that the estimates so far allow, and a step to clean data has
    order 1, which is exact there.

    Args:
      order: number of estimates, 1 or more.
      predict: "x0" or "eps", what is integrated; "eps" cannot start from pure noise.
      tau: 0 for the ODE, 1 for the SDE, with fresh noise in each step.
      rule: how the polynomial is integrated.
      orders: [num_steps] upper limits of the order of each step.
      normal: how noise is drawn; another function than the default may replay recorded draws.
    """
    if predict not in PREDICTIONS:
        raise ValueError(f"predict is {predict!r}; it must be 'x0' or 'eps'.")
    solver = extrapolated(
        order,
        in_logsnr(predict, rule, lambda level: tau),
        partial(estimate, predict),
        orders=orders,
        normal=normal if tau else None,
    )
    return solver._replace(from_pure_noise=predict == "x0")
