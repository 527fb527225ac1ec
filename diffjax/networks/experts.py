"""Expert denoisers: networks of one architecture, each for a part of the way from data to noise.

    F(x, t) = F_i(x, t),    t_i <= t < t_(i + 1)

A step of sampling costs what one network costs, so that there is more capacity at the same speed;
and what is learned of layout, where noise hides all, stands no longer against what is learned of
details. Source: eDiff-I, arXiv:2211.01324, Section 4.1.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from diffjax.core.levels import select
from diffjax.networks.functional import Functional


def experts(network: Functional, boundaries: Sequence[float]) -> Functional:
    """One network more than there are boundaries between the parts.

        loss = diffusion_loss(partial(apply, part=1), schedule, times=within(stratified, 0.75, 1.0))

    trains the second of two for the noisiest quarter of the times, and leaves the first as it is.

    Args:
      network: of one part; all have its architecture, and parameters of their own.
      boundaries: ascending, as times that a network is told; a boundary belongs to the part of
        more noise.

    Returns:
      A network whose params are {"0": ..., "1": ...}, the part at the data first. Its `apply` takes
      `part`, the number of the one that all samples are of; None to go by t, [B]. Those that no
      sample of the batch is of are not computed.

    Raises:
      ValueError: there are no boundaries, or they do not ascend.

    >>> times = Functional(lambda key: 1.0, lambda params, x, t: params * x)
    >>> init, apply = experts(times, [0.5])
    >>> apply({"0": 2.0, "1": 3.0}, jnp.ones(3), jnp.array([0.1, 0.5, 0.9])).tolist()
    [2.0, 3.0, 3.0]
    """
    if not boundaries or any(a >= b for a, b in pairwise(boundaries)):
        raise ValueError(
            f"The boundaries between experts are {list(boundaries)}; needed is at least one, and "
            "they must ascend."
        )
    names = [str(i) for i in range(len(boundaries) + 1)]

    def init(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(names))
        return {name: network.init(key) for name, key in zip(names, keys)}

    def apply(
        params: dict[str, Any], x: Array, t: Array, *, part: int | None = None, **conditioning: Any
    ) -> Any:
        def estimate(i: int) -> Any:
            return network.apply(params[names[i]], x, t, **conditioning)

        if part is not None:
            return estimate(part)
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: estimate(0)))
        parts = jnp.searchsorted(jnp.asarray(boundaries), t, side="right")
        found = nothing
        for i in range(len(names)):
            of_it = parts == i
            new = lax.cond(jnp.any(of_it), partial(estimate, i), lambda: nothing)
            found = select(of_it, new, found)
        return found

    return Functional(init, apply)
