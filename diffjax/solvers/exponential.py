"""Exponential multistep integration: the mathematics that DPM-Solver, DEIS and UniPC share.

With lambda = log(alpha / sigma) the probability-flow ODE and the reverse SDE are solved exactly,
between the levels t and s with h = lambda_s - lambda_t, by

    ODE, x0    x_s = (sigma_s / sigma_t) x_t + alpha_s  int_0^h e^-(h-u)    x0(lambda_t + u) du
    ODE, eps   x_s = (alpha_s / alpha_t) x_t - sigma_s  int_0^h e^(h-u)     eps(lambda_t + u) du
    SDE, x0    x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s  int_0^h 2 e^-2(h-u) x0 du
                     + sigma_s sqrt(1 - e^-2h) z
    SDE, eps   x_s = (alpha_s / alpha_t) x_t - sigma_s  int_0^h 2 e^(h-u)   eps du
                     + sigma_s sqrt(e^2h - 1) z

(the last line is that of a first-order step). A solver replaces the estimate under the integral by
a polynomial through estimates at known levels; what is left are moments of the exponential,

    M_k(H) = int_0^1 e^(-H (1 - r)) r^k dr,    H = h, -h, 2h, -h    in the four rows.

Sources: DPM-Solver, arXiv:2206.00927, Eq. 3.4; DPM-Solver++, arXiv:2211.01095, Eq. 8;
SEEDS, arXiv:2305.14267.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffjax.core.levels import NoiseLevel, safe_sqrt
from diffjax.core.parameterizations import estimate_eps

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
    """One row of the table above, for one pair of levels: x_s = keep x + gain mean + spread z.

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


def transfer(current: NoiseLevel, next_: NoiseLevel, predict: str, stochastic: bool) -> Transfer:
    """The coefficients of a step; finite at sigma_s = 0, and for x0 also at alpha_t = 0.

    Args:
      current, next_: levels with scalar leaves; current.sigma > 0.
      predict: "x0" or "eps", what is integrated.
      stochastic: the reverse SDE instead of the ODE.
    """
    h = half_logsnr(next_) - half_logsnr(current)
    # used in moments, which no step to or from infinite lambda needs
    h = jnp.where(at_an_end(current) | at_an_end(next_), 1.0, h)
    if predict == "x0":
        keep = next_.sigma / current.sigma
        # e^-h, exact at both ends
        decay = current.alpha * keep / next_.alpha
        if not stochastic:
            return Transfer(keep, next_.alpha * (1.0 - decay), jnp.zeros_like(h), h)
        remaining = (1.0 - decay) * (1.0 + decay)
        spread = next_.sigma * safe_sqrt(remaining)
        return Transfer(keep * decay, next_.alpha * remaining, spread, 2.0 * h)
    keep = next_.alpha / current.alpha
    gain = next_.sigma - keep * current.sigma
    if not stochastic:
        return Transfer(keep, gain, jnp.zeros_like(h), -h)
    spread = safe_sqrt((keep * current.sigma) ** 2 - next_.sigma**2)
    return Transfer(keep, 2.0 * gain, spread, -h)


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


def node_weights(nodes: Sequence[Array], step: Transfer, rule: Rule) -> list[Array]:
    """The weight of the estimate at each node: the integral of its Lagrange polynomial.

    Args:
      nodes: positions (lambda - lambda_t) / h of the estimates.
      step: the row of the table.
      rule: how the moments are approximated.
    """
    values = moments(step.exponent, len(nodes))
    means = rule(step.exponent, [value / values[0] for value in values])
    return [step.gain * sum(c * m for c, m in zip(row, means)) for row in lagrange(nodes)]


class History(NamedTuple):
    """Estimates of the steps before, newest first.

    Attributes:
      count: steps taken so far, int32.
      estimates: [p, B, ...] with p = order - 1.
      positions: [p] where they were made: lambda, or another coordinate.
      finite: [p] whether that is finite.
    """

    count: Array
    estimates: Array
    positions: Array
    finite: Array


def empty_history(x: Array, length: int) -> History:
    """No steps taken: room for `length` estimates."""
    return History(
        jnp.zeros((), jnp.int32),
        jnp.zeros((length, *x.shape), x.dtype),
        jnp.zeros((length,), x.dtype),
        jnp.zeros((length,), bool),
    )


def remember(history: History, value: Array, position: Array, finite: Array) -> History:
    """The history after one more step, the oldest estimate forgotten."""

    def push(new, old):
        return jnp.concatenate([jnp.asarray(new, old.dtype)[None], old])[: len(old)]

    return History(
        history.count + 1,
        push(value, history.estimates),
        push(position, history.positions),
        push(finite, history.finite),
    )


def usable_order(history: History, position: Array, finite: Array) -> Array:
    """The highest order of a step: 1 + the number of estimates before, at distinct finite places.

    Args:
      history: estimates before the step.
      position: of its start.
      finite: whether the step neither starts nor ends at infinity; its order is 1 otherwise.
    """
    positions = jnp.concatenate([jnp.asarray(position)[None], history.positions])
    good = history.finite & (jnp.diff(positions) != 0)
    number = jnp.sum(jnp.cumprod(good.astype(jnp.int32)), dtype=jnp.int32)
    return jnp.where(finite, 1 + number, 1)


def extrapolate(
    value: Array,
    history: History,
    position: Array,
    h: Array,
    step: Transfer,
    rule: Rule,
    order: Array,
    *,
    ahead: Array | None = None,
) -> Array:
    """The integral of the polynomial through the newest estimates.

    Args:
      value: [B, ...] the estimate at the start of the step.
      history: estimates before it.
      position, h: where the step starts, and its length, in the history's coordinate.
      step, rule: see `node_weights`.
      order: number of nodes used from `value` back, 1 .. 1 + len(history), traced.
      ahead: [B, ...] an estimate at the end of the step, for correctors; one node more.
    """
    length = len(history.positions)
    # placeholders keep finite what is not used: weights of estimates that are not there, and all
    # of them when the two levels are equal
    ranks = jnp.arange(length)
    distance = (history.positions - position) / jnp.where(h == 0, 1.0, h)
    positions = jnp.where((ranks < order - 1) & (h != 0), distance, -1.0 - ranks)
    extra = [] if ahead is None else [jnp.ones_like(h)]
    table = []
    for used in range(1, length + 2):
        nodes = [*extra, jnp.zeros_like(h), *positions[: used - 1]]
        weights = node_weights(nodes, step, rule)
        table.append(jnp.stack([*weights, *[jnp.zeros_like(h)] * (length + 1 - used)]))
    weights = jnp.stack(table)[order - 1]
    values = [*([] if ahead is None else [ahead]), value, *history.estimates]
    return sum((weight * each for weight, each in zip(weights, values)), jnp.zeros_like(value))
