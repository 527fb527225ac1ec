"""Guidance that is more than a function of (x, level): solvers that guide.

A denoiser has no memory and does not know where a step leads. Guidance that needs either is a
function from a solver to a solver. In the place of the denoiser, `sample` is then given the
estimates of both conditions, made by `one_by_one` or `in_one_call`:

    estimates = in_one_call(make, {"labels": y}, {"labels": null})
    sample(key, x, estimates, cfg_plus_plus(ddim(), guidance_scale=0.6), levels)

Any solver will do. Where it asks for more than one estimate in a step, the first counts.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import map_x0
from diffjax.core.sampling import Solver
from diffjax.transforms.estimates import pair, x0_of
from diffjax.transforms.guidance import Scale, scale_at
from diffjax.transforms.guidance_corrections import projected


def cfg_plus_plus(solver: Solver, *, guidance_scale: Scale) -> Solver:
    """CFG++: the guided estimate of x0 with the unconditional estimate of the noise.

        x_s = (step of the unconditional denoiser) + alpha_s guidance_scale (conditional - uncond.)

    For DDIM that is alpha_s (uncond. + guidance_scale (conditional - uncond.)) + sigma_s eps_u.
    The scale is that of the paper, lambda in [0, 1]: 0 is unconditional, and there is none that
    turns it off in the sense of the other guidances, because at 1 the noise is still the
    unconditional one. A step of DDIM is the same as one of classifier-free guidance with the scale
    guidance_scale alpha_s / (alpha_s - sigma_s alpha_t / sigma_t), which falls towards the data.
    Source: arXiv:2406.08070, Algorithm 2.

    Args:
      solver: any; `ddim()` is the paper's.
      guidance_scale: a number in [0, 1], [B], or a function from the level to one; may be traced.

    >>> from diffjax.core.sampling import stateless
    >>> solver = cfg_plus_plus(stateless(lambda *_: 0.0), guidance_scale=0.6)
    """

    def step(keys, x, state, estimates, current: NoiseLevel, next_: NoiseLevel, **planned):
        differences: list[Array] = []

        def unconditional(x: Array, level: NoiseLevel) -> Array:
            conditional, base = pair(estimates(x, level))
            differences.append(x0_of(conditional) - base)
            return base

        x, state = solver.step(keys, x, state, unconditional, current, next_, **planned)
        scale = scale_at(guidance_scale, current, x)
        return x + next_.alpha * scale * differences[0], state

    return solver._replace(step=step)


def apg_momentum(
    solver: Solver,
    *,
    guidance_scale: Scale,
    momentum: ArrayLike = -0.5,
    parallel: ArrayLike = 0.0,
    threshold: ArrayLike = jnp.inf,
) -> Solver:
    """Adaptive projected guidance with (reverse) momentum, carried from step to step.

        d  = conditional - unconditional + momentum d_before
        x0 = conditional + (guidance_scale - 1) (d_orthogonal + parallel d_parallel)

    d is shortened and split as in `apg`, which this is at momentum 0. A scale of 1 is off. The
    state of the solver holds d; every estimate of one step sees the d of the step before.
    Source: arXiv:2410.02416, Algorithm 1.

    Args:
      solver: any.
      guidance_scale, parallel, threshold: as in `apg`.
      momentum: negative in the paper, which pushes away from directions taken before; may be
        traced.

    >>> from diffjax.core.sampling import stateless
    >>> solver = apg_momentum(stateless(lambda *_: 0.0), guidance_scale=4.0)
    """

    def step(keys, x, state, estimates, current: NoiseLevel, next_: NoiseLevel, **planned):
        inner, before = state
        differences: list[Array] = []

        def guided(x: Array, level: NoiseLevel) -> Any:
            conditional, base = pair(estimates(x, level))
            difference = x0_of(conditional) - base + momentum * before
            differences.append(difference)
            push = scale_at(guidance_scale, level, x) - 1.0
            lean = lambda x0: (
                x0 + push * projected(difference, x0, parallel=parallel, threshold=threshold)
            )
            return map_x0(lean, conditional)

        x, inner = solver.step(keys, x, inner, guided, current, next_, **planned)
        return x, (inner, differences[0])

    return solver._replace(init=lambda x: (solver.init(x), jnp.zeros_like(x)), step=step)
