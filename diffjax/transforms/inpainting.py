"""Inpainting: draw the missing part of an array so that it goes with the part that is known.

    replace_known    after every step the known part is put back, noised to the level reached
    repaint          the same, on a walk that goes up again and again (`resampling`)

Replacement alone forgets in each step what the other part was drawn for, and its result is biased;
going back up lets the two parts agree. Both work on images, and as well on the rows of a table
with missing numbers: x is [B, ...] of any shape. The mask is 1 where x is to be painted and 0
where it is known: ones alone make a plain sample, zeros alone return the data.

    levels = revisited(schedule(trailing(50)))
    sample(key, noise, denoise, repaint(ddim(eta=1.0), known, mask), levels)
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.arguments import concrete_values
from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import add_noise
from diffjax.core.sampling import Solver
from diffjax.transforms.editing import require_floats
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
      ValueError: the mask holds other numbers than 0 and 1, or the known part some that are not
        finite; when sampling starts, if the shapes do not fit x.
      TypeError: known holds integers.

    >>> from diffjax.core.sampling import stateless
    >>> solver = replace_known(stateless(lambda *_: 0.0), jnp.ones((4, 2)), jnp.array([0, 1]))
    """
    require_floats("known", known)
    _check_values(known, mask)

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


def _check_values(known: Array, mask: Array) -> None:
    values, holes = concrete_values(known), concrete_values(mask)
    if holes is not None and not np.all(np.isin(holes, (0, 1))):
        raise ValueError(
            f"mask holds {np.min(holes):g} to {np.max(holes):g}; needed is 1 where x is painted "
            "and 0 where it is known, nothing between."
        )
    if values is None or holes is None:
        return
    try:
        missing = np.isfinite(values) | np.asarray(holes, bool)
    except ValueError:
        # shapes that do not fit are refused with those of x
        return
    if not missing.all():
        raise ValueError(
            "known holds numbers that are not finite where the mask is 0, which says that they are "
            "known. Is the mask 1 where something is missing?"
        )


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
