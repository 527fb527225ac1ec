"""What schedules ask of their arguments: float times, ordered ends, positive rates."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike


def continuous_time(t: ArrayLike) -> Array:
    """Times of a continuous schedule, in float32 at least; traced ones pass unchecked.

    Raises:
      TypeError: they are integers.
      ValueError: they leave [0, 1] by more than a rounding error.
    """
    values, t = concrete_values(t), jnp.asarray(t)
    if jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"A continuous schedule takes float times in [0, 1], not {t.dtype} time steps. "
            "Was a table meant (linear_betas, cosine_betas, ...)?"
        )
    # NaN fails every comparison
    if values is not None and not np.all((values >= -1e-5) & (values <= 1.0 + 1e-5)):
        raise ValueError(
            f"Times reach from {values.min()} to {values.max()}; a continuous schedule takes them "
            "in [0, 1]. Was a table meant (linear_betas, cosine_betas, ...)?"
        )
    return at_least_float32(t)


def concrete_values(values: ArrayLike) -> np.ndarray | None:
    """What can be looked at before tracing, as NumPy; None for traced values, or none at all."""
    if isinstance(values, Tracer) or np.size(values) == 0:
        return None
    # NumPy: inside jit even the minimum of a concrete JAX array would be traced
    return np.asarray(values)


def at_least_float32(values: ArrayLike) -> Array:
    """Levels are never computed in half precision, whatever the dtype of the times."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_num_steps(name: str, num_steps: int) -> None:
    """Refuse a table without steps."""
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps is {num_steps}; a table needs at least one step.")


def check_order(name: str, **ends: float) -> None:
    """Refuse two ends of which the second is not the larger."""
    (low_name, low), (high_name, high) = ends.items()
    if not low < high:
        raise ValueError(f"{name}: {low_name} is {low}, {high_name} is {high}; it must be larger.")


def check_positive(name: str, **values: float) -> None:
    """Refuse values that are not positive."""
    for value_name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: {value_name} is {value}; it must be positive.")
