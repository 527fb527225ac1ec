"""Loss weights: what an error at a level counts, written once for every prediction.

With the target F of a network's prediction, a loss is

    loss = w_F(level) mean |F - target|^2,    w_F = w(level) out(level)^2,

where w is the weight of the same error measured on x0 (x0 - x0_estimate = out (target - F)). A
weight is therefore written once, on x0, and gives the same gradient whichever prediction the
network makes.

Weights on x0 (SNR = alpha^2 / sigma^2):

    constant               1
    simple, snr            SNR: plain mean squared error on eps, DDPM's L_simple
    score_matching         the same: sigma^2 times the squared error on the score, NCSN's
    snr_plus_one           SNR + 1: plain mean squared error on v
    velocity               (sqrt(SNR) + 1)^2: plain mean squared error on the velocity
    edm(sigma_data)        SNR + 1 / sigma_data^2: plain mean squared error on EDM's output
    truncated_snr          max(SNR, 1)
    min_snr(gamma)         min(SNR, gamma)
    p2(gamma, k)           SNR / (k + SNR)^gamma
    sigmoid(bias)          SNR sigmoid(bias - log SNR)
    likelihood(schedule)   -dSNR/dt: g^2 times the squared error on the score
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Parameterization
from diffjax.core.schedules import Schedule, time_of
from diffjax.core.sde import snr_decay

Weight = Callable[[NoiseLevel], Array]


def _snr(level: NoiseLevel) -> Array:
    return (level.alpha / level.sigma) ** 2


def constant(level: NoiseLevel) -> Array:
    """Plain mean squared error on x0."""
    return jnp.ones_like(level.alpha)


def simple(level: NoiseLevel) -> Array:
    """Plain mean squared error on eps: DDPM's L_simple, arXiv:2006.11239, Eq. 14."""
    return _snr(level)


def snr_plus_one(level: NoiseLevel) -> Array:
    """Plain mean squared error on v: arXiv:2202.00512, Section 4."""
    return _snr(level) + 1.0


def velocity(level: NoiseLevel) -> Array:
    """Plain mean squared error on the velocity eps - x0: flow matching, arXiv:2210.02747, Eq. 23.

    Source of this form: arXiv:2403.03206, Section 2.
    """
    return (level.alpha / level.sigma + 1.0) ** 2


def edm(sigma_data: float = 0.5) -> Weight:
    """Plain mean squared error on the output of EDM's network: arXiv:2206.00364, Table 1.

    Args:
      sigma_data: standard deviation of the data, as for the parameterization `edm`.
    """
    return lambda level: _snr(level) + 1.0 / sigma_data**2


def likelihood(schedule: Schedule) -> Weight:
    """The weight under which the loss bounds the likelihood: g^2 on the score.

    It diverges where sigma = 0: cut that end off (`between`), or draw the times by importance,
    from `resampled(schedule, densities.uniform())` with the weight `simple`, which has the same
    expectation up to a constant. `bound_loss` is the whole bound, in bits per dimension.
    Source: Song et al., arXiv:2101.09258, Eq. 7 and Section 4.

    Args:
      schedule: the one that the loss trains on.
    """
    return lambda level: snr_decay(schedule, time_of(schedule, level))


def truncated_snr(level: NoiseLevel) -> Array:
    """The larger of the errors on x0 and on eps: arXiv:2202.00512, Section 4."""
    return jnp.maximum(_snr(level), 1.0)


def min_snr(gamma: float = 5.0) -> Weight:
    """Min-SNR-gamma, which limits the weight of the clean end: arXiv:2303.09556, Section 3.4."""
    return lambda level: jnp.minimum(_snr(level), gamma)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """Perception-prioritized weight, 1 / (k + SNR)^gamma on eps: arXiv:2204.00227, Eq. 8."""
    return lambda level: _snr(level) / (k + _snr(level)) ** gamma


def sigmoid(bias: float = 0.0) -> Weight:
    """Sigmoid weight, sigmoid(bias - log SNR) on eps.

    Source: Kingma and Gao, arXiv:2303.00848; Hoogeboom et al., arXiv:2410.19324, Section 3.1.
    """
    return lambda level: _snr(level) * jax.nn.sigmoid(bias - jnp.log(_snr(level)))


# name -> function that makes the weight; those of the schedule take it as an argument
WEIGHTS: dict[str, Callable[..., Any]] = {
    "constant": lambda: constant,
    "simple": lambda: simple,
    "snr": lambda: simple,
    "score_matching": lambda: simple,
    "velocity": lambda: velocity,
    "edm": edm,
    "likelihood": likelihood,
    "snr_plus_one": lambda: snr_plus_one,
    "truncated_snr": lambda: truncated_snr,
    "min_snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
}


def prediction_weight(
    weight: Weight, parameterization: Parameterization, level: NoiseLevel
) -> Array:
    """The weight on x0 converted to one on the network's output: w(level) out(level)^2.

    At SNR 0 and infinity the product is the limit: alpha and sigma count as 1e-9 at least.

    Raises:
      TypeError: the weight is no function of the level, but a name or a builder.
    """
    level = off_the_ends(level)
    values = weight(level) if callable(weight) else weight
    if callable(values) or isinstance(values, str):
        raise TypeError(
            f"weight is {weight!r}; needed is a function of the level, such as `simple` or what a "
            "builder returns: min_snr() (by its name: WEIGHTS['min_snr']())."
        )
    _, out = parameterization.estimate(level)
    # out may be tiny where w is huge: multiply one factor at a time
    return values * out * out


def off_the_ends(level: NoiseLevel) -> NoiseLevel:
    """The level with alpha and sigma of at least 1e-9, where every row and weight is finite."""
    return level._replace(
        alpha=jnp.maximum(level.alpha, 1e-9), sigma=jnp.maximum(level.sigma, 1e-9)
    )
