"""Multistep solvers: steps that use the estimates of the steps before.

What such a step multiplies its estimates with follows from a window of levels alone, its own and
those of the steps before. `sample`, which knows the whole grid, therefore has the coefficients of
all steps computed at once before its loop (`Solver.plan`), and the loop moves arrays only. A step
that is called by itself finds its window in the solver's state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver


class Window(NamedTuple):
    """The levels of one step and of the steps before it.

    Attributes:
      count: steps taken before this one, int32.
      known: how many of those the window shows, min(count, p).
      starts: levels [p + 1] where this step starts and where the steps before did, newest first;
        what lies before the first step is of no meaning, but finite.
      next_: the level where this step ends, scalar leaves.
    """

    count: Array
    known: Array
    starts: NoiseLevel
    next_: NoiseLevel


class Walk(NamedTuple):
    """The state of a multistep solver.

    Attributes:
      count: steps taken so far, int32.
      before: levels [p] where they started, newest first.
      memory: arrays in the shape of x, the solver's own.
    """

    count: Array
    before: NoiseLevel
    memory: Any


def start_of(window: Window) -> NoiseLevel:
    """The level where the step starts."""
    return jax.tree.map(lambda leaf: leaf[0], window.starts)


def step_before(window: Window) -> Window:
    """The window of the step before; before the first step one of no meaning, but finite."""
    taken = window.count > 0
    # 1 is a level like any other, where pure noise twice would be 0 / 0
    starts = jax.tree.map(lambda leaf: jnp.where(taken, leaf, 1), window.starts)
    next_ = jax.tree.map(lambda leaf: leaf[0], starts)
    starts = jax.tree.map(lambda leaf: leaf[1:], starts)
    return Window(window.count - 1, window.known - 1, starts, next_)


def windowed(
    length: int,
    coefficients: Callable[[Window], Any],
    start: Callable[[Array], Any],
    advance: Callable[..., tuple[Array, Any]],
) -> Solver:
    """A solver whose steps are told coefficients that a window of levels determines.

    Args:
      length: p, how many steps before its own a window shows.
      coefficients: window -> what the step multiplies with, scalars in any tree.
      start: x -> memory, arrays in the shape of x.
      advance: (keys, x, memory, denoise, current, next_, coefficients) -> (x, memory).
    """

    def init(x: Array) -> Walk:
        ones = jnp.ones((length,), x.dtype)
        return Walk(jnp.zeros((), jnp.int32), NoiseLevel(ones, ones, ones), start(x))

    def step(keys, x, walk, denoise, current, next_, *, planned=None):
        def push(new, old):
            return jnp.concatenate([jnp.asarray(new, old.dtype)[None], old])

        starts = jax.tree.map(push, current, walk.before)
        if planned is None:
            known = jnp.minimum(walk.count, length)
            planned = coefficients(Window(walk.count, known, starts, next_))
        x, memory = advance(keys, x, walk.memory, denoise, current, next_, planned)
        before = jax.tree.map(lambda leaf: leaf[:length], starts)
        return x, Walk(walk.count + 1, before, memory)

    def plan(levels: NoiseLevel) -> Any:
        num_steps = len(levels.sigma) - 1
        # constants, so that with levels that are known the compiler finds out the whole plan; 0, 1,
        # 2, ... by itself it takes for a loop and does not
        counts = np.arange(num_steps, dtype=np.int32)
        known = np.minimum(counts, length)

        def shifted(leaf):
            longer = jnp.concatenate([jnp.broadcast_to(leaf[0], length), leaf])
            backwards = range(length, -1, -1)
            return jnp.stack([longer[k : k + num_steps] for k in backwards], axis=1)

        starts = jax.tree.map(shifted, levels)
        ends = jax.tree.map(lambda leaf: leaf[1:], levels)
        windows = Window(jnp.asarray(counts), jnp.asarray(known), starts, ends)
        return jax.vmap(coefficients)(windows)

    return Solver(init, step, plan)
