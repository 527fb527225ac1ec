"""A system without learned weights, whose images are known."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

import diffjax as dj
from diffjax.pipelines import System
from diffjax.pipelines.system import pixel_codec


def constant_system(
    says: Callable[[Any, Array], Array] = lambda params, value: params * value,
) -> System:
    """Its network says that every image is a constant: `says(params, value)` of what it is told."""

    def apply(params, x, t, *, value):
        return jnp.broadcast_to(says(params, value)[:, None, None, None], x.shape)

    return System(
        parameterization=dj.x0,
        learned_variance=False,
        prepare=lambda values: [{"value": jnp.asarray(values)}],
        condition=lambda params, inputs: inputs,
        apply=apply,
        **pixel_codec(3, 2)._asdict(),
        size=(4, 4),
    )
