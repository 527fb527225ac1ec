"""The stochastic differential equation behind a schedule.

The levels x_t = alpha x0 + sigma eps are the marginals of one linear SDE,

    dx = f(t) x dt + g(t) dw,
    f = d log(alpha) / dt,    g^2 = d sigma^2 / dt - 2 f sigma^2,

whose reverse is dx = (f x - g^2 score) dt + g dw, and whose probability flow is
dx/dt = f x - g^2 score / 2, with score = (alpha E[x0 | x] - x) / sigma^2.

| schedule         | f            | g^2                                            |
| ---------------- | ------------ | ---------------------------------------------- |
| VP, rate beta(t) | -beta / 2    | beta                                           |
| sub-VP           | -beta / 2    | beta (1 - alpha^4)                             |
| VE               | 0            | d sigma^2 / dt                                 |
| straight flow    | -1 / (1 - t) | 2 t / (1 - t)                                  |

Source: Score SDE, arXiv:2011.13456, Eqs. 5, 6, 13 and Appendix B; VDM, arXiv:2107.00630, Eq. 2.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.arguments import at_least_float32
from diffjax.core.levels import NoiseLevel, Schedule


def drift_and_diffusion(schedule: Schedule, t: ArrayLike) -> tuple[Array, Array]:
    """The coefficients f(t) and g(t)^2 of a schedule's SDE, by differentiating the schedule.

    At the clean end they are the limits from inside. At zero SNR (alpha = 0) they do not exist,
    and are infinite.

    Args:
      schedule: any function from time to a level, elementwise in t.
      t: times of the schedule, any shape: in [0, 1], or steps of a table, fractions too.

    Returns:
      f and g^2, each in the shape of t, float32, per unit of the schedule's own time.

    >>> from diffjax.core.schedules import linear
    >>> f, g2 = drift_and_diffusion(linear(beta_min=0.1, beta_max=20.0), jnp.array([0.0, 1.0]))
    >>> f.round(3).tolist(), g2.round(3).tolist()
    ([-0.05000000074505806, -10.0], [0.10000000149011612, 20.0])
    """
    level, slope = _with_slope(schedule, t)
    signal = level.alpha > 0
    f = jnp.where(signal, slope.alpha / jnp.where(signal, level.alpha, 1.0), -jnp.inf)
    return f, 2.0 * level.sigma * (slope.sigma - f * level.sigma)


def snr_decay(schedule: Schedule, t: ArrayLike) -> Array:
    """How fast the signal-to-noise ratio falls: -d(alpha^2 / sigma^2) / dt, in the shape of t.

    It is alpha^2 g^2 / sigma^4, the weight that the likelihood gives to an error on x0; finite at
    zero SNR, and near infinity at the clean end of schedules with sigma = 0. Arguments as above.

    >>> from diffjax.core.logsnr_schedules import log_linear
    >>> snr_decay(log_linear(5.0, -5.0), 0.5).round(3)
    Array(10., dtype=float32)
    """
    level, slope = _with_slope(schedule, t)
    root = level.alpha / level.sigma
    return 2.0 * root * (root * slope.sigma - slope.alpha) / level.sigma


def _with_slope(schedule: Schedule, t: ArrayLike) -> tuple[NoiseLevel, NoiseLevel]:
    t = at_least_float32(t)
    # sigma may rise like sqrt(t) from 0, with a slope that is infinite there; sigma^2 does not
    t = jnp.where(schedule(t).sigma > 0, t, t + 1e-10)
    return jax.jvp(schedule, (t,), (jnp.ones_like(t),))
