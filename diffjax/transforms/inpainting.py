"""Inpainting: draw the missing part of an array so that it goes with the part that is known.

    replace_known    after every step the known part is put back, noised to the level reached
    repaint          the same, on a walk that goes up again and again (`resampling`)

Replacement alone forgets in each step what the other part was drawn for, and its result is biased;
going back up lets the two parts agree. Both work on images, and as well on the rows of a table
with missing numbers: x is [B, ...] of any shape. The mask is 1 where x is to be painted and 0
where it is known: ones alone make a plain sample, zeros alone return the data.

    levels = schedule(trailing(50)[resampling(50)])
    sample(key, noise, denoise, repaint(ddim(eta=1.0), known, mask), levels)
"""

import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import add_noise
from diffjax.core.sampling import Solver
from diffjax.transforms.resampling import renoising

KNOWN_NOISE = 2**30  # what this noise's keys are folded with; solvers fold small numbers


def replace_known(
    solver: Solver, known: Array, mask: Array, *, normal: Normal = normal_each
) -> Solver:
    """Inpainting by replacement: put the known part back after every step.

        x_s <- mask x_s + (1 - mask) (alpha_s known + sigma_s z)

    Source: Score SDE, arXiv:2011.13456, Appendix I.2; RePaint, arXiv:2201.09865, Eq. 8.

    Args:
      solver: any.
      known: [B, ...] clean data; what it holds where the mask is 1 does not matter, NaN included.
      mask: 1 (or True) where x is painted, 0 where it is known; [B, ...] or broadcasting to it.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    Raises:
      ValueError: when sampling starts, if the shapes do not fit x.

    >>> from diffjax.core.sampling import stateless
    >>> solver = replace_known(stateless(lambda *_: 0.0), jnp.ones((4, 2)), jnp.array([0, 1]))
    """

    def init(x):
        _check_shapes(x, known, mask)
        return solver.init(x)

    def step(keys, x, state, denoise, current, next_, **planned):
        x, state = solver.step(keys, x, state, denoise, current, next_, **planned)
        noise = normal(fold_in_each(keys, KNOWN_NOISE), x.shape[1:], x.dtype)
        return jnp.where(mask, x, add_noise(known, noise, next_)), state

    return solver._replace(init=init, step=step)


def repaint(solver: Solver, known: Array, mask: Array, *, normal: Normal = normal_each) -> Solver:
    """RePaint: replacement on the way down, fresh noise on the way up.

    Give `sample` the grid in the order of `resampling`. The more often a stretch is walked, and
    the shorter the steps, the closer the result is to a draw from the conditional distribution.
    Source: arXiv:2201.09865, Algorithm 1.

    Args:
      solver: any; `ddim(eta=1.0)` and `ancestral()` are the paper's.
      known, mask, normal: as in `replace_known`.

    >>> from diffjax.core.sampling import stateless
    >>> solver = repaint(stateless(lambda *_: 0.0), jnp.ones((4, 2)), jnp.array([0, 1]))
    """
    return renoising(replace_known(solver, known, mask, normal=normal), normal=normal)


def _check_shapes(x: Array, known: Array, mask: Array) -> None:
    if jnp.shape(known) != x.shape:
        raise ValueError(f"known has the shape {jnp.shape(known)}, but x has {x.shape}.")
    try:
        fits = jnp.broadcast_shapes(jnp.shape(mask), x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask has the shape {jnp.shape(mask)}, which does not broadcast to that of x, "
            f"{x.shape}."
        )
