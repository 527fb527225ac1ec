"""Walks that go up again: noising part of the way back and denoising anew.

A grid need not fall from level to level. Where the next level of a walk is the noisier one,
`renoising` takes a step of the forward process in the place of the solver's; `resampling` says in
which order to visit the entries of an ordinary grid. RePaint and self-recurrence are such walks:
only the order of the levels changes, the loop does not.

    levels = revisited(schedule(trailing(50)), jump_length=5, num_resamples=4)
    sample(key, x, denoise, renoising(ddim()), levels)
"""

import jax
import numpy as np
from jax import lax

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel, q_step
from diffjax.core.sampling import Solver


def renoising(solver: Solver, *, normal: Normal = normal_each) -> Solver:
    """A solver that also walks up: to a noisier level by fresh noise, otherwise as `solver` does.

        x_t = alpha_ts x_s + sigma_ts z    where `next_` is noisier than `current`

    A multistep solver forgets its memory there, because x is a new one. Not for inversion, which
    walks up by itself.

    Args:
      solver: for the steps down.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.sampling import stateless
    >>> solver = renoising(stateless(lambda *_: 0.0))
    """

    def step(keys, x, state, denoise, current, next_):
        def up():
            noise = normal(keys, x.shape[1:], x.dtype)
            return q_step(x, noise, current, next_), solver.init(x)

        def down():
            return solver.step(keys, x, state, denoise, current, next_)

        # sigma / alpha grows, without the quotient
        noisier = next_.sigma * current.alpha > current.sigma * next_.alpha
        return lax.cond(noisier, up, down)

    return solver._replace(step=step, plan=None)


def revisited(levels: NoiseLevel, *, jump_length: int = 10, num_resamples: int = 10) -> NoiseLevel:
    """A grid in the order of `resampling`, to be walked by a `renoising` solver.

    Args:
      levels: [N + 1] grid, noise first.
      jump_length, num_resamples: as in `resampling`, which also says what it refuses.

    >>> levels = NoiseLevel(*jax.numpy.arange(3.0)[None].repeat(3, 0))
    >>> revisited(levels, jump_length=1, num_resamples=2).t.tolist()
    [0.0, 1.0, 2.0, 1.0, 2.0]
    """
    walk = resampling(len(levels.t) - 1, jump_length=jump_length, num_resamples=num_resamples)
    return jax.tree.map(lambda leaf: leaf[walk], levels)


def resampling(num_steps: int, *, jump_length: int = 10, num_resamples: int = 10) -> np.ndarray:
    """In which order RePaint visits the entries of a grid of N steps.

    Whenever a multiple of jump_length steps is left, the walk goes back up by that many and comes
    down again, until the stretch has been walked num_resamples times. With jump_length 1 every
    step is repeated, which is the self-recurrence of universal guidance. One resample is the plain
    grid.
    Source: RePaint, arXiv:2201.09865, Algorithm 1 and Appendix; universal guidance,
    arXiv:2302.07121, Section 4.4.

    Args:
      num_steps: N of the grid, which has N + 1 entries.
      jump_length: steps of a stretch, from 1 to N.
      num_resamples: times that it is walked, at least 1.

    Returns:
      int32 indices into the grid, neighbours of which differ by one: 0, 1, ..., N, N - 1, ..., N.

    Raises:
      ValueError: a stretch longer than the grid, or a length or number below 1.

    >>> resampling(4, jump_length=2, num_resamples=2)
    array([0, 1, 2, 3, 4, 3, 2, 3, 4], dtype=int32)
    """
    if not 1 <= jump_length <= num_steps or num_resamples < 1:
        raise ValueError(
            f"jump_length is {jump_length} and num_resamples {num_resamples} for a grid of "
            f"{num_steps} steps; needed are a length from 1 to {num_steps} and at least 1."
        )
    rises = dict.fromkeys(range(0, num_steps - jump_length, jump_length), num_resamples - 1)
    left, walk = num_steps, [num_steps]
    while left > 0:
        left -= 1
        walk.append(left)
        if rises.get(left, 0) > 0:
            rises[left] -= 1
            walk.extend(range(left + 1, left + jump_length + 1))
            left += jump_length
    return num_steps - np.array(walk, np.int32)
