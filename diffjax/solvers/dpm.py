"""DPM-Solver and DPM-Solver++, multistep and single-step, for the ODE and for the SDE.

Both integrate the estimates of the network exactly between levels (see `exponential`):
DPM-Solver those of eps, DPM-Solver++ those of x0. Multistep solvers reuse the estimates of the
steps before, one call of the network in each step. Single-step solvers work in blocks of `order`
steps of the grid: every step of a block starts again from the block's beginning with one more
estimate, and only the last of them has the full order.

Sources: DPM-Solver, arXiv:2206.00927, Algorithms 1-2 and Appendix; DPM-Solver++,
arXiv:2211.01095, Algorithms 1-2 and Section 5 (SDE).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.solvers.exponential import (
    PREDICTIONS,
    RULES,
    Interval,
    Rule,
    Transfer,
    at_an_end,
    estimate,
    half_logsnr,
    multistep,
    node_weights,
    transfer,
    weighted,
)


def lower_final_orders(num_steps: int, order: int) -> np.ndarray:
    """Orders [num_steps] that fall to 2 and 1 in the last steps, for stability with few steps.

    >>> lower_final_orders(5, 3).tolist()
    [3, 3, 3, 2, 1]
    """
    return np.minimum(order, np.arange(num_steps, 0, -1))


def dpm_multistep(
    order: int = 2,
    *,
    predict: str = "x0",
    stochastic: bool = False,
    rule: str | Rule = "midpoint",
    orders: np.ndarray | Array | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """DPM-Solver++ (or DPM-Solver) multistep: order 1, 2 or 3 with one call in each step.

    The first steps have the order that the estimates so far allow (see `multistep`). Order 1 is
    DDIM, or with `stochastic` ancestral sampling.

    Args:
      order: 1, 2 or 3. For the SDE the order is that of its deterministic part.
      predict: "x0" (DPM-Solver++) or "eps" (DPM-Solver; it cannot start from pure noise).
      stochastic: solve the reverse SDE, with fresh noise in each step, not the ODE.
      rule: "midpoint" (default) or "exact", how a second-order step integrates.
      orders: [num_steps] upper limits of the order of each step, see `lower_final_orders`.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = dpm_multistep(2, orders=lower_final_orders(10, 2))
    """
    _check(order, predict)
    return multistep(
        order,
        predict=predict,
        tau=float(stochastic),
        rule=RULES[rule] if isinstance(rule, str) else rule,
        orders=orders,
        normal=normal,
    )


def _check(order: int, predict: str) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; it must be 1, 2 or 3.")
    if predict not in PREDICTIONS:
        raise ValueError(f"predict is {predict!r}; it must be 'x0' or 'eps'.")


class Block(NamedTuple):
    """What a single-step solver remembers of the block of steps that it is in.

    Attributes:
      count: steps taken in the whole run, int32.
      x: [B, ...] where the block started.
      start: the level there.
      value: [B, ...] the estimate there.
      later: [2, B, ...] estimates since, newest first.
      lambdas: [2] where those were made.
    """

    count: Array
    x: Array
    start: NoiseLevel
    value: Array
    later: Array
    lambdas: Array


def block_orders(num_steps: int, order: int, *, lower_final: bool = True) -> np.ndarray:
    """Orders [num_steps] of the steps of a single-step solver: 1 .. order, again and again.

    With `lower_final` the blocks get shorter at the end, so that the last step, to clean data, is a
    block of its own; otherwise num_steps must be a multiple of `order`, or the last block is cut.

    >>> block_orders(8, 3).tolist(), block_orders(6, 3).tolist()
    ([1, 2, 3, 1, 2, 3, 1, 2], [1, 2, 3, 1, 2, 1])
    """
    orders = np.arange(num_steps) % order + 1
    if lower_final and num_steps % order == 0:
        orders[-1] = 1
    return orders


def dpm_singlestep(
    order: int = 2,
    *,
    predict: str = "x0",
    stochastic: bool = False,
    rule: str = "midpoint",
    orders: np.ndarray | Array | None = None,
    normal: Normal = normal_each,
) -> Solver:
    """DPM-Solver++ (or DPM-Solver) single-step, in blocks of `order` steps of the grid.

    The levels inside a block serve as the intermediate points of the papers' steps: choose a grid
    that is uniform in log-SNR for their 1/2, or 1/3 and 2/3. One call of the network in each step;
    a run of N steps is worth N / order steps of full order.

    Args:
      order: 1, 2 or 3.
      predict: "x0" (DPM-Solver++) or "eps" (DPM-Solver; it cannot start from pure noise).
      stochastic: solve the reverse SDE, not the ODE.
      rule: "midpoint" (the papers' steps) or "exact", how the estimates are integrated. The third
        order of "midpoint" needs the grid to be uniform in log-SNR.
      orders: [num_steps] the order of each step, where 1 begins a block; see `block_orders`.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = dpm_singlestep(2, orders=block_orders(10, 2))
    """
    _check(order, predict)
    limits = None if orders is None else jnp.asarray(orders, jnp.int32)

    def init(x: Array) -> Block:
        zero = jnp.zeros((), x.dtype)
        later = jnp.zeros((2, *x.shape), x.dtype)
        count = jnp.zeros((), jnp.int32)
        return Block(count, x, NoiseLevel(zero, zero, zero), x, later, jnp.zeros(2, x.dtype))

    def step(keys, x, block, denoise, current, next_):
        value = estimate(predict, x, denoise(x, current), current)
        used = block.count % order + 1 if limits is None else limits[block.count]
        # lambda is infinite at the ends of a run: the first and the last step stand alone
        used = jnp.where((block.count > 0) & ~at_an_end(block.start) & ~at_an_end(next_), used, 1)
        block = _continue_block(block, x, value, current, used == 1)
        row = transfer(block.start, next_, predict, float(stochastic))
        interval, used = _interval(block, next_, row, RULES[rule]), _distinct(block, used)
        weights = node_weights(interval, used)
        if order == 3 and rule == "midpoint":
            # the slope between the block's first and newest estimates, without the one between
            line = node_weights(interval._replace(rule=RULES["exact"]), jnp.array(2))
            weights = [jnp.where(used == 3, a, b) for a, b in zip(line, weights)]
        x = row.keep * block.x + weighted(weights, [block.value, *block.later])
        if stochastic:
            x = x + row.spread * normal(keys, x.shape[1:], x.dtype)
        return x, block._replace(count=block.count + 1)

    return Solver(init, step, from_pure_noise=predict == "x0")


def _interval(block: Block, next_: NoiseLevel, row: Transfer, rule: Rule) -> Interval:
    """The step from the start of the block, through all of its estimates."""
    start, everywhere = half_logsnr(block.start), jnp.ones(3, bool)
    places = jnp.concatenate([start[None], block.lambdas])
    return Interval(places, everywhere, everywhere[0], half_logsnr(next_) - start, row, rule)


def _distinct(block: Block, order: Array) -> Array:
    """The order that the block's estimates allow: levels that are visited twice are one node."""
    start, (newest, oldest) = half_logsnr(block.start), block.lambdas
    second = newest != start
    third = second & (oldest != newest) & (oldest != start)
    return jnp.minimum(order, 1 + second.astype(jnp.int32) + third.astype(jnp.int32))


def _continue_block(
    block: Block, x: Array, value: Array, current: NoiseLevel, begins: Array
) -> Block:
    """The block with a new estimate, or a new block that begins with it."""

    def choose(new, old):
        return jnp.where(begins, new, old)

    level = NoiseLevel(*(jnp.asarray(leaf, block.lambdas.dtype) for leaf in current))
    lambda_ = half_logsnr(level)
    return Block(
        block.count,
        choose(x, block.x),
        NoiseLevel(*(choose(new, old) for new, old in zip(level, block.start))),
        choose(value, block.value),
        choose(block.later, jnp.stack([value, block.later[0]])),
        choose(block.lambdas, jnp.stack([lambda_, block.lambdas[0]])),
    )
