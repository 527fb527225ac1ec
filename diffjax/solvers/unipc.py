"""UniPC: a multistep predictor, and a corrector that costs no call of the network.

The corrector of a step runs when the next step has called the network at its end: that estimate is
one node more of the polynomial that is integrated (see `exponential`), and the step is taken again,

    predictor   through the estimates at lambda_t and before,           order p
    corrector   the same and the estimate at the end of the step,       order p + 1

The paper's function B(h) matters with two nodes only, where it takes the place of a moment:
M_1 / M_0 = 1/2 for bh2, (1/2) / M_0 for bh1. The last step is not corrected.
Source: UniPC, arXiv:2302.04867, Algorithms 1-2 and Section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.solvers.exponential import (
    PREDICTIONS,
    History,
    Rule,
    Transfer,
    at_an_end,
    empty_history,
    estimate,
    extrapolate,
    half_logsnr,
    midpoint,
    moments,
    remember,
    transfer,
    usable_order,
)


def bh1(exponent: Array, means: list[Array]) -> list[Array]:
    """B(h) = h: with two nodes."""
    return [means[0], 0.5 / moments(exponent, 1)[0]] if len(means) == 2 else means


VARIANTS: dict[str, Rule] = {"bh1": bh1, "bh2": midpoint}


class Taken(NamedTuple):
    """What a step leaves for its own correction, and for the steps after it.

    Attributes:
      history: estimates at the starts of the steps so far.
      base: [B, ...] the part of the step that is not integrated, keep x + spread z.
      row: the coefficients of the step.
      h: its length.
      order: estimates that its corrector may use besides that at its end; -1 for no correction.
    """

    history: History
    base: Array
    row: Transfer
    h: Array
    order: Array


def corrected_multistep(
    predictor: int,
    corrector: int,
    *,
    predict: str,
    rule: Rule,
    tau: Callable[[NoiseLevel], ArrayLike] | None = None,
    orders: np.ndarray | Array | None = None,
    correct: np.ndarray | Array | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """A multistep predictor with a corrector: the engine of UniPC and SA-Solver.

    Args:
      predictor: number of estimates that the predictor uses, 1 or more.
      corrector: number that the corrector uses besides the one at the end of the step; -1 for no
        corrector.
      predict: "x0" or "eps", what is integrated.
      rule: how the polynomial is integrated.
      tau: level -> share of the noise; None for the ODE.
      orders: [num_steps] upper limits of both numbers for each step.
      correct: [num_steps] booleans, whether each step is corrected.
      normal: how noise is drawn.
    """
    if predict not in PREDICTIONS:
        raise ValueError(f"predict is {predict!r}; it must be 'x0' or 'eps'.")
    limits = None if orders is None else jnp.asarray(orders, jnp.int32)
    wanted = None if correct is None else jnp.asarray(correct, bool)
    length = max(predictor - 1, corrector, 1)

    def init(x: Array) -> Taken:
        zero = jnp.zeros((), x.dtype)
        row = Transfer(zero, zero, zero, zero)
        return Taken(empty_history(x, length), x, row, zero, jnp.full((), -1, jnp.int32))

    def corrected(x: Array, value: Array, taken: Taken) -> Array:
        history = taken.history
        before = _older(history, 1, max(corrector, 1))
        mean = extrapolate(
            history.estimates[0],
            before,
            history.positions[0],
            taken.h,
            taken.row,
            rule,
            jnp.maximum(taken.order, 0),
            ahead=value,
        )
        return jnp.where(taken.order >= 0, taken.base + mean, x)

    def step(keys, x, taken, denoise, current, next_):
        history = taken.history
        value = estimate(predict, x, denoise(x, current), current)
        x = corrected(x, value, taken) if corrector >= 0 else x
        lambda_, finite = half_logsnr(current), ~at_an_end(current)
        used = usable_order(history, lambda_, finite & ~at_an_end(next_))
        if limits is not None:
            used = jnp.minimum(used, limits[history.count])
        row = transfer(current, next_, predict, 0.0 if tau is None else tau(current))
        row = Transfer(*(jnp.asarray(leaf, x.dtype) for leaf in row))
        h = jnp.asarray(half_logsnr(next_) - lambda_, x.dtype)
        base = row.keep * x
        if tau is not None:
            base = base + row.spread * normal(keys, x.shape[1:], x.dtype)
        before = _older(history, 0, predictor - 1)
        mean = extrapolate(value, before, lambda_, h, row, rule, jnp.minimum(used, predictor))
        again = finite if wanted is None else finite & wanted[history.count]
        order = jnp.where(again, jnp.minimum(used, corrector), -1)
        history = remember(history, value, lambda_, finite)
        return base + mean, Taken(history, base, row, h, order)

    return Solver(init, step)


def _older(history: History, start: int, stop: int) -> History:
    """A part of the history, newest first."""
    kept = (leaf[start:stop] for leaf in history[1:])
    return History(history.count, *kept)


def unipc(
    order: int = 2,
    *,
    predict: str = "x0",
    variant: str = "bh2",
    orders: np.ndarray | Array | None = None,
    correct: np.ndarray | Array | None = None,
) -> Solver:
    """The UniPC solver: one call of the network in each step, order + 1 where it is corrected.

    Args:
      order: p of the predictor, 1, 2 or 3.
      predict: "x0" (default) or "eps", what is integrated.
      variant: "bh2" (default) or "bh1".
      orders: [num_steps] upper limits of the order of each step, see `lower_final_orders`.
      correct: [num_steps] booleans, whether each step is corrected; all but the last by default.

    >>> solver = unipc(2)
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; it must be 1, 2 or 3.")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be 'bh1' or 'bh2'.")
    return corrected_multistep(
        order, order, predict=predict, rule=VARIANTS[variant], orders=orders, correct=correct
    )
