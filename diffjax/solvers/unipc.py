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
    Coefficients,
    Rule,
    estimate,
    in_logsnr,
    limited,
    midpoint,
    moments,
    node_weights,
    usable_order,
    weighted,
)
from diffjax.solvers.window import Window, step_before, windowed


def bh1(exponent: Array, means: list[Array]) -> list[Array]:
    """B(h) = h: with two nodes."""
    return [means[0], 0.5 / moments(exponent, 1)[0]] if len(means) == 2 else means


VARIANTS: dict[str, Rule] = {"bh1": bh1, "bh2": midpoint}


class Corrected(NamedTuple):
    """What a step multiplies with.

    Attributes:
      change: weights of what the corrector adds to the step before, that of the estimate at its
        end first.
      row: coefficients of the step itself.
    """

    change: list[Array]
    row: Coefficients


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
      predict: "x0" or "eps", what is integrated; "eps" cannot start from pure noise.
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
    coordinate = in_logsnr(predict, rule, (lambda level: 0.0) if tau is None else tau)
    # the corrector takes the predictor's part back
    length = max(predictor, corrector) if corrector >= 0 else predictor - 1

    def coefficients(window: Window) -> Corrected:
        interval = coordinate(window)
        used = limited(usable_order(interval, window.known), limits, window.count)
        weights = node_weights(interval, jnp.minimum(used, predictor))[:predictor]
        change = change_of(step_before(window)) if corrector >= 0 else []
        return Corrected(change, Coefficients(interval.row.keep, weights, interval.row.spread))

    def change_of(window: Window) -> list[Array]:
        interval = coordinate(window)
        used = limited(usable_order(interval, window.known), limits, window.count)
        corrects = node_weights(interval, jnp.minimum(used, corrector), ahead=True)
        predicts = node_weights(interval, jnp.minimum(used, predictor))
        again = interval.finite[0] & (window.known >= 0)
        again = again if wanted is None else again & wanted[window.count]
        pairs = zip(corrects, [jnp.zeros_like(predicts[0]), *predicts])
        return [jnp.where(again, corrected - predicted, 0.0) for corrected, predicted in pairs]

    def start(x: Array) -> list[Array]:
        return [jnp.zeros_like(x)] * length

    def advance(keys, x, before, denoise, current, next_, rows: Corrected):
        estimates = [estimate(predict, x, denoise(x, current), current), *before]
        if corrector >= 0:
            x = x + weighted(rows.change, estimates)
        x = rows.row.keep * x + weighted(rows.row.weights, estimates)
        if tau is not None:
            x = x + rows.row.spread * normal(keys, x.shape[1:], x.dtype)
        return x, estimates[:length]

    solver = windowed(length, coefficients, start, advance)
    return solver._replace(from_pure_noise=predict == "x0")


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
      predict: "x0" (default) or "eps", what is integrated; "eps" cannot start from pure noise.
      variant: "bh2" (default) or "bh1".
      orders: [num_steps] upper limits of the order of each step, see `lower_final_orders`.
      correct: [num_steps] booleans, whether each step is corrected; all but the last by default.

    Raises:
      ValueError: another order or variant.

    >>> solver = unipc(2)
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; it must be 1, 2 or 3.")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be 'bh1' or 'bh2'.")
    return corrected_multistep(
        order, order, predict=predict, rule=VARIANTS[variant], orders=orders, correct=correct
    )
