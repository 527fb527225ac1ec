"""Kernels with a change of low rank, which are never multiplied out.

    y = x W + (x down) up

W may be frozen, and stored in bfloat16: the gradients of down and up need no gradient in the shape
of W, and they keep a precision of their own.

Source: LoRA, arXiv:2106.09685, Eq. 3.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankKernel:
    """In the place of a kernel among the params of a network; `Linear` and `Conv` take it.

    Attributes:
      kernel: [*window, in, out].
      down: [*window, in, rank].
      up: [rank, out].

    >>> import jax.numpy as jnp
    >>> kernel = LowRankKernel(jnp.zeros((3, 4)), jnp.ones((3, 1)), jnp.ones((1, 4)))
    >>> jnp.ones((2, 3)) @ kernel
    Array([[3., 3., 3., 3.],
           [3., 3., 3., 3.]], dtype=float32)
    """

    kernel: Array
    down: Array
    up: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    @property
    def dtype(self) -> Any:
        return self.kernel.dtype

    def astype(self, dtype: Any) -> "LowRankKernel":
        return jax.tree.map(lambda part: part.astype(dtype), self)

    def __getitem__(self, index: Any) -> "LowRankKernel":
        """The kernel itself: a module reads its parameters by `[...]`."""
        if index is not Ellipsis:
            raise TypeError(f"a kernel with a change is read whole, by [...], not by [{index}]")
        return self

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.kernel + (x @ self.down) @ self.up
