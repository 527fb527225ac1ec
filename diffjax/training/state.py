"""The state of a training run: arrays only, so it can be traced, sharded and saved as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffjax.training.ema import init_ema


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: scalar int32, the number of steps taken.
      params: the parameters, a nested dict of arrays.
      ema: float32 averages of the parameters, by the name of their decay; may be empty.
      opt_state: the state of the optax optimizer.
    """

    step: Array
    params: Any
    ema: dict[str, Any]
    opt_state: Any


def init_train_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | Sequence[float] = 0.9999,
) -> TrainState:
    """The state before the first step.

    Args:
      params: the initial parameters, a nested dict of arrays. The state holds these very arrays:
        a step that donates its state consumes them.
      optimizer: any optax gradient transformation.
      ema_decay: one decay or several, as given to `make_train_step`; `()` keeps no average.

    >>> state = init_train_state({"w": jnp.ones(3)}, optax.sgd(0.1), ema_decay=(0.9, 0.99))
    >>> int(state.step), sorted(state.ema)
    (0, ['0.9', '0.99'])
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=init_ema(params, ema_decay),
        opt_state=_unshared(optimizer.init(params), params),
    )


def _unshared(tree: Any, params: Any) -> Any:
    """The tree with copies of arrays that are among params, or twice in it.

    Some optimizers start so (Prodigy keeps the initial parameters), and a step can donate no array
    twice.
    """
    taken = {id(leaf) for leaf in jax.tree.leaves(params)}

    def own(leaf: Any) -> Any:
        if isinstance(leaf, Array) and id(leaf) in taken:
            return jnp.array(leaf, copy=True)
        taken.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)
