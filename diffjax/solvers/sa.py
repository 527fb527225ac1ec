"""SA-Solver: stochastic Adams, a multistep predictor and corrector for a family of SDEs.

For every function tau(t) the SDE with tau times the noise of the reverse SDE has the marginals of
the diffusion; tau = 0 is the probability-flow ODE. Each step integrates a polynomial through the
newest estimates exactly (see `exponential`), and is taken again, with the same noise, as soon as
the network has been called at its end.
Source: SA-Solver, arXiv:2309.05019, Algorithm 1 and Propositions 4.2, 5.1 and 5.2.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.solvers.exponential import exact
from diffjax.solvers.unipc import bh1, corrected_multistep

Tau = Callable[[NoiseLevel], ArrayLike]


def tau_between(
    smallest: ArrayLike = 0.05, largest: ArrayLike = 1.0, value: ArrayLike = 1.0
) -> Tau:
    """tau as the paper has it: `value` where smallest <= sigma / alpha <= largest, otherwise 0.

    Source: SA-Solver, arXiv:2309.05019, Appendix E.1, for CIFAR-10 and ImageNet.

    >>> level = NoiseLevel(jnp.array(0.5), jnp.array(0.8), jnp.array(0.6))
    >>> float(tau_between()(level))
    1.0
    """

    def tau(level: NoiseLevel) -> Array:
        inside = (level.sigma >= smallest * level.alpha) & (level.sigma <= largest * level.alpha)
        return jnp.where(inside, value, 0.0)

    return tau


def sa_solver(
    predictor_order: int = 2,
    corrector_order: int = 2,
    *,
    predict: str = "x0",
    tau: ArrayLike | Tau = 1.0,
    orders: np.ndarray | Array | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """SA-Solver: one call of the network in each step.

    Args:
      predictor_order: estimates that the predictor uses, 1 to 4.
      corrector_order: estimates that the corrector uses, the one at the end of the step included,
        1 to 4; 0 for no corrector.
      predict: "x0" (default) or "eps", what is integrated; "eps" cannot start from pure noise. Two
        estimates of x0 are integrated with the paper's simplification for few steps.
      tau: share of the noise of the reverse SDE, a number or a function of the level where a step
        starts, such as `tau_between()`; may be traced.
      orders: [num_steps] upper limits of the predictor's order, see `lower_final_orders`; the
        corrector's is one higher.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: other orders.

    >>> solver = sa_solver(3, 4, tau=tau_between(0.05, 1.0))
    """
    if predictor_order not in (1, 2, 3, 4) or corrector_order not in (0, 1, 2, 3, 4):
        raise ValueError(
            f"The orders are {predictor_order} and {corrector_order}; the predictor's must be 1 to "
            "4, the corrector's 0 to 4."
        )
    return corrected_multistep(
        predictor_order,
        corrector_order - 1,
        predict=predict,
        rule=bh1 if predict == "x0" else exact,
        tau=tau if callable(tau) else lambda level: tau,
        orders=orders,
        normal=normal,
    )
