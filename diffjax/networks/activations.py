"""Activation functions by the names that published configurations give them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), CLIP's approximation of the GELU.

    Source: Gaussian Error Linear Units, arXiv:1606.08415, section 2.
    """
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x Phi(x), with the normal distribution function itself."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """The approximation of the GELU by a tanh."""
    return jax.nn.gelu(x, approximate=True)


# name -> function; several names mean one function
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu-approximate": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of a name.

    Raises:
      ValueError: the name is unknown; lists the known ones.

    >>> float(activation("relu")(jnp.float32(-1.0)))
    0.0
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]
