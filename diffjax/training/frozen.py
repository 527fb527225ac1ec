"""Training a part of the params; the rest is frozen, and data to the step.

    g = grad_trainable loss(join(trainable, frozen), batch)

`join` puts the two together: a union of parts, new rows of a table, kernels with changes of low
rank. The frozen params are an argument of the step: closed over, they would be compiled into the
program as constants.
"""

from collections.abc import Callable, Sequence
from typing import Any

import optax
from jax import Array

from diffjax.training.state import TrainState
from diffjax.training.step import Batch, Loss, Metrics, make_train_step

Join = Callable[[Any, Any], Any]
FrozenStep = Callable[[TrainState, Any, Batch, Array], tuple[TrainState, Metrics]]


def union(trainable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """Whole parts of the params that are trained, in the place of the frozen ones.

    >>> union({"unet": 1}, {"unet": 0, "vae": 0})
    {'unet': 1, 'vae': 0}
    """
    return {**frozen, **trainable}


def make_frozen_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    join: Join = union,
    *,
    ema_decay: float | Sequence[float] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
) -> FrozenStep:
    """Make `step(state, frozen, batch, key) -> (state, metrics)`, to be compiled by the caller.

        state = init_train_state(trainable, optimizer, ema_decay=())
        step = jax.jit(make_frozen_step(loss, optimizer, join), donate_argnums=0)

    Args:
      loss: of the joined params, see `make_train_step`.
      optimizer: any optax gradient transformation; its state holds the trainable part alone.
      join: `join(trainable, frozen)` -> the params of the loss.
      ema_decay, accumulate, axis_name: see `make_train_step`.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax.training.state import init_train_state
    >>> miss = lambda params, batch, keys: ((params["a"] + params["b"] - batch["x0"]) ** 2, {})
    >>> step = jax.jit(make_frozen_step(miss, optax.sgd(0.5)))
    >>> state = init_train_state({"a": jnp.zeros(())}, optax.sgd(0.5), ema_decay=())
    >>> state, _ = step(state, {"b": jnp.array(2.0)}, {"x0": jnp.array([5.0])}, jax.random.key(0))
    >>> state.params
    {'a': Array(3., dtype=float32)}
    """

    def step(state: TrainState, frozen: Any, batch: Batch, key: Array):
        joined = lambda trainable, part, keys: loss(join(trainable, frozen), part, keys)
        take = make_train_step(
            joined, optimizer, ema_decay=ema_decay, accumulate=accumulate, axis_name=axis_name
        )
        return take(state, batch, key)

    return step
