"""Integrators of ordinary differential equations, for flows that are not walks over a grid.

An integrator is a function

    integrate(field, state, start, end) -> state,    d state / d position = field(position, state)

with scalar positions, `end` on either side of `start`, and a state of any arrays whose first axis
is the batch. `runge_kutta` takes steps of one length, `dormand_prince` chooses them. Each compiles
its field once, whatever the number of steps and stages.
Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", Sections II.1, II.4-5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

State = Any
Field = Callable[[Array, State], State]
Integrate = Callable[[Field, State, Array, Array], State]

# the pair of order 5 and 4 of Dormand and Prince; the last row is also the step of order 5
STAGES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
ORDER_4 = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])


def runge_kutta(num_steps: ArrayLike) -> Integrate:
    """The classical Runge-Kutta method: order 4, steps of equal length, four calls in each.

    Differentiable when `num_steps` is a Python number: a gradient keeps one state for each step.

    Args:
      num_steps: at least 1; traced, one compiled program serves every number of steps.

    Raises:
      ValueError: no step at all.

    >>> integrate = runge_kutta(8)
    >>> round(float(integrate(lambda p, y: y, jnp.ones(()), 0.0, 1.0)), 3)
    2.718
    """
    if isinstance(num_steps, int | np.integer) and num_steps < 1:
        raise ValueError(f"runge_kutta: num_steps is {num_steps}; it must be at least 1.")
    # stage j starts from state + reach_j h k_{j-1}, at position + reach_j h
    reaches, weights = np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6.0

    def integrate(field: Field, state: State, start: Array, end: Array) -> State:
        h = (end - start) / num_steps

        @partial(jax.checkpoint, prevent_cse=False)
        def step(i, state):
            def stage(carry, coefficients):
                slope, total = carry
                reach, weight = coefficients
                slope = field(start + (i + reach) * h, _move(state, reach * h, slope))
                return (slope, _move(total, weight * h, slope)), None

            zero = jax.tree.map(jnp.zeros_like, state)
            rows = jnp.asarray(reaches), jnp.asarray(weights)
            (_, total), _ = lax.scan(stage, (zero, state), rows)
            return total

        return lax.fori_loop(0, num_steps, step, state)

    return integrate


def dormand_prince(
    rtol: ArrayLike = 1e-5, atol: ArrayLike = 1e-5, *, max_steps: int = 1000
) -> Integrate:
    """The method of Dormand and Prince: order 5, steps as long as its error estimate allows.

    The estimate is scaled by atol + rtol |state|, averaged over each sample (root mean square) and
    must be below 1 for all of them, so that the steps, not the accuracy, depend on the batch.
    Differentiable forwards (`jax.jvp`) only; for gradients see `runge_kutta`.

    Args:
      rtol, atol: relative and absolute tolerance of one step; may be traced.
      max_steps: tried steps, six calls each, after which the result is given up as NaN.

    >>> integrate = dormand_prince(1e-6, 1e-6)
    >>> round(float(integrate(lambda p, y: y, jnp.ones((1,)), 0.0, 1.0)[0]), 4)
    2.7183
    """

    def integrate(field: Field, state: State, start: Array, end: Array) -> State:
        dtype = jnp.result_type(*jax.tree.leaves(state))
        start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)

        def unfinished(carry):
            tries, position, *_ = carry
            return (position != end) & (tries < max_steps)

        def attempt(carry):
            tries, position, h, state, slope = carry
            h = jnp.where(jnp.abs(h) < jnp.abs(end - position), h, end - position)
            moved, error, last = _dormand_prince_step(field, state, position, h, slope)
            size = _scaled_error(error, state, moved, rtol, atol)
            # NaN, from a field that was asked too far away, shortens the step like a large error
            accept = size <= 1.0
            factor = jnp.where(size > 0, 0.9 * jnp.where(size > 0, size, 1.0) ** -0.2, 5.0)
            factor = jnp.where(jnp.isnan(size), 0.2, jnp.clip(factor, 0.2, 5.0))
            kept = jax.tree.map(
                partial(jnp.where, accept), (position + h, moved, last), (position, state, slope)
            )
            # the sum of the steps may miss the end by a rounding error
            position = jnp.where(accept & (h == end - position), end, kept[0])
            return tries + 1, position, factor * h, kept[1], kept[2]

        begin = (0, start, 0.02 * (end - start), state, field(start, state))
        _, position, _, state, _ = lax.while_loop(unfinished, attempt, begin)
        return jax.tree.map(lambda leaf: jnp.where(position == end, leaf, jnp.nan), state)

    return integrate


def _dormand_prince_step(field: Field, state: State, position: Array, h: Array, slope: State):
    """The state of order 5, its difference from order 4, and the slope at the end of the step."""

    def combine(weights, slopes):
        return jax.tree.map(lambda k: jnp.tensordot(jnp.asarray(weights, k.dtype), k, 1), slopes)

    def stage(carry, row):
        slopes, _ = carry
        j, weights = row
        reached = _move(state, h, combine(weights, slopes))
        new = field(position + jnp.sum(weights) * h, reached)
        return (jax.tree.map(lambda k, value: k.at[j].set(value), slopes, new), reached), None

    slopes = jax.tree.map(lambda k: jnp.zeros((7, *k.shape), k.dtype).at[0].set(k), slope)
    rows = jnp.arange(1, 7), jnp.asarray(STAGES[1:], position.dtype)
    (slopes, moved), _ = lax.scan(stage, (slopes, state), rows)
    error = combine(h * (STAGES[6] - ORDER_4), slopes)
    return moved, error, jax.tree.map(lambda k: k[6], slopes)


def _scaled_error(error: State, state: State, moved: State, rtol, atol) -> Array:
    """The largest root mean square, over samples and leaves, of error / (atol + rtol |state|)."""

    def largest(error, before, after):
        scaled = error / (atol + rtol * jnp.maximum(jnp.abs(before), jnp.abs(after)))
        return jnp.max(jnp.sqrt(jnp.mean(scaled.reshape(scaled.shape[0], -1) ** 2, axis=1)))

    sizes = jax.tree.leaves(jax.tree.map(largest, error, state, moved))
    return jnp.max(jnp.stack(sizes))


def _move(state: State, length: Array, slope: State) -> State:
    return jax.tree.map(lambda y, k: y + jnp.asarray(length, y.dtype) * k, state, slope)
