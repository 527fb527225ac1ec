"""Diffusion posterior sampling: any solver, and after each step one towards the measurement.

    x_s = step(x_t) - step_size grad |y - A(x0(x_t))|

with the gradient taken through the denoiser. A may be any differentiable function, linear or not,
and what its noise is need not be known. The price is a step size that depends on the problem and
on the number of steps; the result is no sample of the posterior but near its mode.

Source: Chung et al., Diffusion posterior sampling for general noisy inverse problems,
arXiv:2209.14687, Algorithm 1, where step_size is 2 zeta'.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.levels import safe_sqrt
from diffjax.core.parameterizations import Denoiser
from diffjax.core.sampling import Solver
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.linear import Operator, residual


def dps(solver: Solver, operator: Operator, y: Array, *, step_size: ArrayLike = 1.0) -> Solver:
    """Let a solver descend the distance |y - A(x0)| on its way.

    Costs one backward pass a step; the estimate that it starts from is handed to the solver.

    Args:
      solver: any, such as `ancestral()`, the paper's, or `ddim()`.
      operator: A, differentiable, [B, ...] -> [B, ...].
      y: the measurement, in the shape of A(x0), or with 1 in place of B.
      step_size: 0 is off; may be traced.

    >>> from diffjax.core.sampling import stateless
    >>> still = stateless(lambda keys, x, denoise, current, next_: x)
    >>> towards = dps(still, lambda x: x[:, :1] ** 3, jnp.array([[8.0]]), step_size=0.1)
    >>> identity = lambda x, level: x
    >>> towards.step(None, jnp.ones((1, 2)), (), identity, None, None)[0].round(2).tolist()
    [[1.2999999523162842, 1.0]]
    """

    def step(keys, x, state, denoise, current, next_, **planned):
        def distance(x):
            estimate = denoise(x, current)
            difference = residual(operator, y, x0_of(estimate))
            squares = jnp.sum(difference**2, axis=tuple(range(1, difference.ndim)))
            return jnp.sum(safe_sqrt(squares)), estimate

        gradient, estimate = jax.grad(distance, has_aux=True)(x)
        known = _remembering(denoise, x, current, estimate)
        moved, state = solver.step(keys, x, state, known, current, next_, **planned)
        return moved - step_size * gradient, state

    return solver._replace(step=step)


def _remembering(denoise: Denoiser, x: Array, level, estimate) -> Denoiser:
    """The denoiser, without a second call for the very x and level whose estimate is known."""

    def recall(asked, at):
        return estimate if asked is x and at is level else denoise(asked, at)

    return recall
