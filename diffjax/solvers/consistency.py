"""Samplers of few-step models: jump towards clean data, then noise again.

    consistency   x_s = alpha_s x0 + sqrt(sigma_s^2 - alpha_s^2 floor^2) z
    trajectory    x_u = DDIM step to a level u below s,    x_s ~ q(x_s | x_u)

Consistency models, latent consistency models and the stochastic sampler of rectified flow are the
first, each with its own denoiser; trajectory consistency distillation is the second.
Sources: Consistency Models, arXiv:2303.01469, Algorithm 1; LCM, arXiv:2310.04378, Algorithm 3;
TCD, arXiv:2402.19159, Algorithm 4.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import q_step, safe_sqrt
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import Schedule
from diffjax.solvers.ddim import ddim_update


def renoise(
    *,
    fresh: ArrayLike = 1.0,
    floor: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    normal: Normal = normal_each,
) -> Solver:
    """Multistep consistency sampling: x0 from the denoiser, fresh noise for the next level.

    With fresh = zeta < 1 the noise is partly the old one, as DiffPIR (arXiv:2305.08995,
    Algorithm 1) has it:

        x_s = alpha_s x0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z),    eps of x and x0

    Args:
      fresh: zeta in [0, 1], the share of the variance that is new; 0 is DDIM.
      floor: scale of the noise that the denoiser leaves in x0; consistency models map to
        sigma_min and not to clean data.
      s_noise: scale of the noise.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = renoise()
    """

    def step(keys, x, denoise, current, next_):
        scale = safe_sqrt(next_.sigma**2 - (next_.alpha * floor) ** 2)
        noise = s_noise * normal(keys, x.shape[1:], x.dtype)
        x0 = denoise(x, current)
        old = safe_sqrt(1.0 - jnp.asarray(fresh)) * estimate_eps(x, x0, current)
        return next_.alpha * x0 + scale * (old + safe_sqrt(jnp.asarray(fresh)) * noise)

    return stateless(step)


def tcd(schedule: Schedule, eta: ArrayLike = 0.3, *, normal: Normal = normal_each) -> Solver:
    """Strategic stochastic sampling: a DDIM step past the next level, and noise back up to it.

    The level in between is at the time (1 - eta) t_s, rounded down in a table.

    Args:
      schedule: of the levels.
      eta: 0 is DDIM, 1 goes to the clean end of the table; the paper calls it gamma.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.schedules import linear_betas
    >>> solver = tcd(linear_betas())
    """

    def step(keys, x, denoise, current, next_):
        t = (1.0 - eta) * next_.t
        if jnp.issubdtype(jnp.asarray(next_.t).dtype, jnp.integer):
            t = jnp.floor(t).astype(next_.t.dtype)
        below = schedule(t)
        # clean data, which not every schedule reaches in time, stays where it is
        past = below.sigma * next_.alpha < next_.sigma * below.alpha
        below = jax.tree.map(partial(jnp.where, past), below, next_)
        x = ddim_update(x, denoise(x, current), None, current, below)
        return q_step(x, normal(keys, x.shape[1:], x.dtype), below, next_)

    return stateless(step)
