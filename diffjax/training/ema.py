"""Exponential moving averages of the parameters.

After each optimizer step, for every decay d,

    ema <- ema + (1 - d_n) (params - ema),    d_n = d                          without warm-up,
                                              d_n = min(d, (1 + n) / (10 + n))  with it,

where n counts the steps taken before this one. The averages are float32 whatever the type of the
parameters: with d = 0.9999 a bfloat16 average would not move at all. The difference form has the
parameters themselves as its fixed point, which d ema + (1 - d) params, rounded, has not.

Several averages can be kept at once; they live in a dict under the names of their decays,
`{"0.999": ..., "0.9999": ...}`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Params = Any  # nested dict of arrays


def ema_names(decays: float | Sequence[float]) -> dict[str, float]:
    """Name each decay by its shortest decimal form, as `TrainState.ema` does.

    Args:
      decays: one decay, or several, each in [0, 1); an empty sequence keeps no average.

    Raises:
      ValueError: a decay is outside [0, 1), or given twice.

    >>> ema_names([0.999, 0.9999])
    {'0.999': 0.999, '0.9999': 0.9999}
    """
    values = [float(decay) for decay in (decays if isinstance(decays, Sequence) else [decays])]
    for value in values:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"ema_decay is {value}; a decay lies in [0, 1). 0 copies the params.")
    names = {
        f"{value:g}" if float(f"{value:g}") == value else repr(value): value for value in values
    }
    if len(names) < len(values):
        raise ValueError(f"ema_decay holds a decay twice: {values}.")
    return names


def init_ema(params: Params, decays: float | Sequence[float]) -> dict[str, Params]:
    """Start every average at the parameters: float32 copies that share no buffer with them.

    >>> init_ema({"w": jnp.ones(2, jnp.bfloat16)}, 0.5)
    {'0.5': {'w': Array([1., 1.], dtype=float32)}}
    """
    copy = lambda leaf: jnp.array(leaf, jnp.float32, copy=True)
    return {name: jax.tree.map(copy, params) for name in ema_names(decays)}


def update_ema(
    ema: dict[str, Params], params: Params, step: Array, *, warmup: bool = True
) -> dict[str, Params]:
    """Move every average towards the parameters by the rule of this module.

    Args:
      ema: averages by the name of their decay; a decay of 0 gives back the parameters exactly.
      params: the parameters after the step.
      step: scalar int, the number of steps taken before this one.
      warmup: let the decay grow as (1 + n) / (10 + n), so that a short run does not average the
        random initial weights.

    >>> update_ema({"0.5": {"w": jnp.zeros(1)}}, {"w": jnp.ones(1)}, jnp.array(0), warmup=False)
    {'0.5': {'w': Array([0.5], dtype=float32)}}
    """
    moved = {}
    for name, average in ema.items():
        weight = _update_weight(float(name), step, warmup)
        moved[name] = jax.tree.map(lambda e, p, w=weight: _move(e, p, w), average, params)
    return moved


def _update_weight(decay: float, step: Array, warmup: bool) -> Array | float:
    """1 - d_n, without subtracting in float32: 1 - (1 + n) / (10 + n) = 9 / (10 + n)."""
    if not warmup or decay == 0.0:
        return 1.0 - decay
    return jnp.maximum(1.0 - decay, 9.0 / (10.0 + step.astype(jnp.float32)))


def _move(average: Array, value: Array, weight: Array | float) -> Array:
    value = value.astype(jnp.float32)
    # in float32 a + (b - a) is not always b
    return (
        value
        if isinstance(weight, float) and weight == 1.0
        else average + weight * (value - average)
    )
