"""Initial values of parameters.

A law turns numbers that are uniform in (-1, 1) into the initial values of one parameter, and the
parameter remembers its law. A network can therefore draw the numbers of all its parameters at
once: XLA compiles each separate draw anew for each shape, and on a CPU these compilations take ten
times as long as everything else in the start of a small network.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

Law = Callable[[Array], Array]


class ShapesOnly(nnx.Rngs):
    """Marks a construction of which only shapes and laws are kept.

    Tracing one key takes Flax as long as tracing twenty operations.
    """


def parameter(rngs: nnx.Rngs, shape: Sequence[int], law: Law) -> nnx.Param:
    """A float32 parameter that starts as its law says."""
    if isinstance(rngs, ShapesOnly):
        return nnx.Param(jnp.zeros(shape), law=law)
    return nnx.Param(law(uniform(rngs.params(), shape)), law=law)


def filled(shape: Sequence[int], value: float) -> nnx.Param:
    """A float32 parameter that starts at `value` everywhere."""
    return nnx.Param(jnp.full(shape, value), law=lambda u: jnp.full(u.shape, value))


def uniform(key: Array, shape: Sequence[int]) -> Array:
    """Uniform float32 numbers in (-1, 1), without either end."""
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    return jax.random.uniform(key, tuple(shape), jnp.float32, lowest, 1.0)


def fan_average(shape: Sequence[int]) -> Law:
    """Uniform with variance 2 / (fan_in + fan_out), for kernels [*window, in, out].

    Source: Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward
    neural networks, Eq. 16; DDPM's choice for all of its layers.

    >>> round(float(fan_average((3, 3, 4, 8))(jnp.ones(()))), 4)
    0.2357
    """
    *window, inputs, outputs = shape
    bound = math.sqrt(6.0 / (math.prod(window) * (inputs + outputs)))
    return lambda u: bound * u


def standard_normal(u: Array) -> Array:
    """Normal numbers of mean 0 and variance 1."""
    return math.sqrt(2.0) * lax.erf_inv(u)
