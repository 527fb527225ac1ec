"""The probability-flow ODE, in variables that are finite from clean data to pure noise.

Every level x = alpha x0 + sigma eps is a rotation up to its scale: with norm = sqrt(alpha^2 +
sigma^2) and the angle phi, tan(phi) = sigma / alpha,

    z = x / norm = cos(phi) x0 + sin(phi) eps,
    dz/dphi = cos(phi) E[eps | x] - sin(phi) E[x0 | x] = (cos(phi) z - E[x0 | x]) / sin(phi).

No schedule appears in it: schedules differ in how fast they turn and in what they tell the network.
A grid should be fine where the data has structure, which is on a logarithmic scale of sigma /
alpha, and yet reach both ends. Positions p from 0, clean data, to 1, pure noise, do both:

    sigma / alpha = (p / (1 - p))^3,    p = 1 / (1 + (alpha / sigma)^(1/3)),
    dz/dp = 3 (1 - p)^2 / (p sqrt(p^6 + (1 - p)^6)) (cos(phi) z - E[x0 | x]).

The flow is smooth in p up to both ends, where it stands still.
Source: Score SDE, arXiv:2011.13456, Section 4.3; the rotation is that of arXiv:2202.00512,
Appendix D; the positions are this library's.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from diffjax.core.integrators import Integrate, runge_kutta
from diffjax.core.inverse import level_at
from diffjax.core.levels import NoiseLevel, expand_level
from diffjax.core.parameterizations import Denoiser
from diffjax.core.schedules import Schedule

CLEANEST = 1e-4  # positions of the levels at which a network may be asked: at p = 0 and p = 1
NOISIEST = 1.0 - 1e-4  # its clock or its row may be infinite, and its answer has no weight


def position_of(level: NoiseLevel) -> Array:
    """The position p of a level, 0 at sigma = 0 and 1 at alpha = 0.

    >>> round(float(position_of(NoiseLevel(0.5, jnp.array(0.1), jnp.array(0.8)))), 4)
    0.6667
    """
    noise = jnp.cbrt(level.sigma)
    return noise / (noise + jnp.cbrt(level.alpha))


def velocity_field(denoise: Denoiser, schedule: Schedule) -> Callable[[Array, Array], Array]:
    """The right-hand side of the ODE: (p, z) -> dz/dp, for a scalar p and z of shape [B, ...].

    Args:
      denoise: (x, level) -> estimate of x0, under any parameterization.
      schedule: of the levels that the denoiser knows.
    """
    to_level = level_at(schedule)

    def velocity(p: Array, z: Array) -> Array:
        inside = jnp.clip(p, CLEANEST, NOISIEST)
        level = to_level((inside / (1.0 - inside)) ** 3)
        estimate = denoise(z * jnp.hypot(level.alpha, level.sigma), level)
        # a LearnedVariance holds more than the estimate
        x0 = getattr(estimate, "x0", estimate)
        norm = jnp.sqrt(p**6 + (1.0 - p) ** 6)
        moving = p > 0
        speed = 3.0 * (1.0 - p) ** 2 / (jnp.where(moving, p, 1.0) * norm)
        return jnp.where(moving, speed, 0.0) * ((1.0 - p) ** 3 / norm * z - x0)

    return velocity


def follow_flow(
    x: Array,
    denoise: Denoiser,
    schedule: Schedule,
    current: NoiseLevel,
    next_: NoiseLevel,
    *,
    integrate: Integrate | None = None,
) -> Array:
    """Carry x along the probability flow from one level to another, in either direction.

    From a clean level to a noisy one it encodes data in the noise from which deterministic
    samplers make it; the way back decodes. `exact.probability_flow` is the closed form.

    Args:
      x: [B, ...] at the level `current`, float32.
      denoise: (x, level) -> estimate of x0.
      schedule: of the levels that the denoiser knows.
      current, next_: scalar leaves; alpha = 0 and sigma = 0 are allowed.
      integrate: how the ODE is solved; by default 32 Runge-Kutta steps, 128 calls.

    Returns:
      [B, ...] at the level `next_`, float32.

    >>> from diffjax.core import exact, schedules
    >>> schedule, denoise = schedules.cosine(), exact.denoiser(exact.gaussian([0.0], 4.0))
    >>> follow_flow(jnp.ones((1, 1)), denoise, schedule, schedule(0.0), schedule(1.0)).round(3)
    Array([[0.5]], dtype=float32)
    """
    integrate = runge_kutta(32) if integrate is None else integrate
    here, there = expand_level(current, x), expand_level(next_, x)
    z = integrate(
        velocity_field(denoise, schedule),
        x / jnp.hypot(here.alpha, here.sigma),
        position_of(current),
        position_of(next_),
    )
    return z * jnp.hypot(there.alpha, there.sigma)
