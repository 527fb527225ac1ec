"""UniPC: a multistep predictor, and a corrector that costs no call of the network.

The corrector of a step runs when the next step has called the network at its end: that estimate is
one node more of the polynomial that is integrated (see `exponential`), and the step is taken again,

    predictor   through the estimates at lambda_t and before,           order p
    corrector   the same and the estimate at the end of the step,       order p + 1

The paper's function B(h) matters with two nodes only, where it takes the place of a moment:
M_1 / M_0 = 1/2 for bh2, (1/2) / M_0 for bh1. The last step is not corrected.
Source: UniPC, arXiv:2302.04867, Algorithms 1-2 and Section 3.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.solvers.exponential import (
    PREDICTIONS,
    History,
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


def _bh1(exponent: Array, means: list[Array]) -> list[Array]:
    """B(h) = h: with two nodes."""
    return [means[0], 0.5 / moments(exponent, 1)[0]] if len(means) == 2 else means


VARIANTS = {"bh1": _bh1, "bh2": midpoint}


class UniPCState(NamedTuple):
    """What a step leaves for its own correction, and for the steps after it.

    Attributes:
      history: estimates at the starts of the steps so far.
      x: [B, ...] where the last step started.
      level: the level there.
      order: of that step.
    """

    history: History
    x: Array
    level: NoiseLevel
    order: Array


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
    if predict not in PREDICTIONS or variant not in VARIANTS:
        raise ValueError(
            f"predict is {predict!r} and variant {variant!r}; they must be 'x0' or 'eps', and "
            "'bh1' or 'bh2'."
        )
    rule = VARIANTS[variant]
    limits = None if orders is None else jnp.asarray(orders, jnp.int32)
    wanted = None if correct is None else jnp.asarray(correct, bool)

    def init(x: Array) -> UniPCState:
        one = jnp.ones((), x.dtype)
        level = NoiseLevel(one, one, one)
        return UniPCState(empty_history(x, order), x, level, jnp.ones((), jnp.int32))

    def corrected(x, value, state, current):
        history, start = state.history, state.level
        row = transfer(start, current, predict, False)
        lambda_ = half_logsnr(start)
        h = half_logsnr(current) - lambda_
        before = _older(history, 1, order)
        mean = extrapolate(
            history.estimates[0], before, lambda_, h, row, rule, state.order, ahead=value
        )
        possible = (history.count > 0) & ~at_an_end(start)
        if wanted is not None:
            possible &= wanted[history.count - 1]
        return jnp.where(possible, row.keep * state.x + mean, x)

    def step(keys, x, state, denoise, current, next_):
        history = state.history
        value = estimate(predict, x, denoise(x, current), current)
        x = corrected(x, value, state, current)
        before = _older(history, 0, order - 1)
        lambda_, finite = half_logsnr(current), ~at_an_end(current)
        used = usable_order(before, lambda_, finite & ~at_an_end(next_))
        if limits is not None:
            used = jnp.minimum(used, limits[history.count])
        row = transfer(current, next_, predict, False)
        h = half_logsnr(next_) - lambda_
        predicted = row.keep * x + extrapolate(value, before, lambda_, h, row, rule, used)
        level = NoiseLevel(*(jnp.asarray(leaf, x.dtype) for leaf in current))
        history = remember(history, value, lambda_, finite)
        return predicted, UniPCState(history, x, level, used)

    return Solver(init, step)


def _older(history: History, start: int, stop: int) -> History:
    """A part of the history, newest first."""
    kept = (leaf[start:stop] for leaf in history[1:])
    return History(history.count, *kept)
