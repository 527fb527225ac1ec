"""Euler's method in the ratio s = sigma / alpha, with EDM's churn or ancestral noise.

With x0 and eps held over a step, x = alpha x0 + sigma eps leads from any level to any other. In the
variable u = x / alpha of k-diffusion this is Euler's method for du/ds = eps; on the straight flow
it is Euler's method in time; with no noise added it is DDIM.

Churn first moves x to a higher level, s -> s (1 + gamma), by fresh noise. Ancestral steps go to a
lower level than the next one and come back by fresh noise; the two levels are those of DDIM with
eta = 1. Sources: EDM, arXiv:2206.00364, Algorithm 2; DDIM, arXiv:2010.02502, Eq. 16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.inverse import level_at
from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import NoiseLevel, safe_sqrt
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import Schedule
from diffjax.solvers.ddim import ddim_update

MAX_GAMMA = 2.0**0.5 - 1.0  # EDM never more than doubles the variance in one step


class Churn(NamedTuple):
    """EDM's noise in front of a step.

        gamma = min(s_churn / num_steps, sqrt(2) - 1) where s_tmin <= s <= s_tmax, otherwise 0
        u -> u + sqrt(s_hat^2 - s^2) s_noise z,    s_hat = s (1 + gamma)

    Source: EDM, arXiv:2206.00364, Algorithm 2. All but the schedule may be traced.

    Attributes:
      schedule: of the levels; it gives the clock at s_hat.
      num_steps: of the whole run.
      s_churn: amount of noise over the whole run; EDM uses up to 80.
      s_tmin, s_tmax: range of s = sigma / alpha in which noise is added.
      s_noise: scale of the noise; slightly more than 1 makes up for too smooth denoisers.
    """

    schedule: Schedule
    num_steps: ArrayLike
    s_churn: ArrayLike
    s_tmin: ArrayLike = 0.0
    s_tmax: ArrayLike = jnp.inf
    s_noise: ArrayLike = 1.0


def churn_update(
    x: Array, noise: Array, current: NoiseLevel, churn: Churn
) -> tuple[Array, NoiseLevel]:
    """x with churn added, and the level that it then is at.

    Args:
      x: [B, ...] at `current`, float32.
      noise: [B, ...] standard normal.
      current: level with scalar leaves.
      churn: how much.
    """
    # pure noise, alpha = 0, takes no more of it
    signal = current.alpha > 0
    alpha = jnp.where(signal, current.alpha, 1.0)
    ratio = current.sigma / alpha
    inside = signal & (churn.s_tmin <= ratio) & (ratio <= churn.s_tmax)
    gamma = jnp.where(inside, jnp.minimum(churn.s_churn / churn.num_steps, MAX_GAMMA), 0.0)
    raised = level_at(churn.schedule)(ratio * (1.0 + gamma))
    # without churn exactly the level of the grid, clock included
    level = jax.tree.map(lambda a, b: jnp.where(gamma > 0, a, b), raised, current)
    added = ratio * safe_sqrt(gamma * (2.0 + gamma)) * churn.s_noise
    return jnp.where(signal, level.alpha / alpha, 1.0) * x + level.alpha * added * noise, level


def euler(churn: Churn | None = None, *, normal: Normal = normal_each) -> Solver:
    """Euler's method: of first order, one call of the network in each step.

    Without churn it is deterministic and the same as `ddim()`.

    Args:
      churn: noise added in front of every step.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> from diffjax.core.sigma_schedules import edm_sigmas
    >>> solver = euler(Churn(edm_sigmas(), num_steps=18, s_churn=10.0))
    """

    def step(keys, x, denoise, current, next_):
        if churn is not None:
            noise = normal(keys, x.shape[1:], x.dtype)
            x, current = churn_update(x, noise, current, churn)
        return ddim_update(x, denoise(x, current), None, current, next_)

    return stateless(step)


def euler_ancestral(
    eta: ArrayLike = 1.0, s_noise: float | Array = 1.0, *, normal: Normal = normal_each
) -> Solver:
    """Euler's method with ancestral noise: DDIM whose noise can be scaled.

    Args:
      eta: share of the ancestral noise, in [0, 1]; may be traced.
      s_noise: scale of the noise; may be traced.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = euler_ancestral()
    """

    def step(keys, x, denoise, current, next_):
        noise = s_noise * normal(keys, x.shape[1:], x.dtype)
        return ddim_update(x, denoise(x, current), noise, current, next_, eta=eta)

    return stateless(step)
