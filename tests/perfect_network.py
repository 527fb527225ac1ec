"""A network that makes no error, whatever it predicts."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from diffjax.core.inverse import level_at
from diffjax.core.levels import expand
from diffjax.core.parameterizations import Denoiser, Parameterization, estimate_eps, target
from diffjax.core.schedules import Schedule

# predictions whose clock is log(sigma / alpha) over so much; the others tell the time
LOGARITHMIC = {"ncsn": 1.0, "edm": 4.0}


def perfect_network(
    row: Parameterization, denoise: Denoiser, schedule: Schedule
) -> Callable[..., Array]:
    """`apply(params, x, t)` that says what `denoise` says, in a prediction and by its clock alone.

    params: None, or what the estimate of x0 is multiplied by.
    """

    def apply(params, x: Array, t: Array, keys=None) -> Array:
        own = LOGARITHMIC.get(row.name)
        level = schedule(t) if own is None else level_at(schedule)(jnp.exp(own * t))
        x = x / expand(row.in_scale(level), x)
        x0 = denoise(x, level) if params is None else params * denoise(x, level)
        return target(row, x0, estimate_eps(x, x0, level), level)

    return apply
