"""Distributions of log-SNR, as curves from [0, 1] down the noise scale.

A curve is a decreasing function from u in [0, 1] to log-SNR, 2 log(alpha / sigma). If u is uniform
then log-SNR is distributed as the curve's name says: the curve is its quantile function, counted
from the clean end. One curve serves twice:

- as the schedule of a variance-preserving process: `from_logsnr(curve)`,
- as the distribution of the levels that another schedule is trained on: `resampled(schedule,
  curve)`, which is importance sampling of the training times.

| curve          | distribution                                                 | used by          |
| -------------- | ------------------------------------------------------------ | ---------------- |
| `log_normal`   | log(sigma / alpha) ~ N(mean, std^2)                          | EDM              |
| `logit_normal` | the same: on the straight flow t = sigmoid(N(mean, std^2))   | SD3              |
| `laplace`      | log-SNR ~ Laplace(mean, scale)                               | arXiv:2407.03297 |
| `uniform`      | log-SNR evenly spread from `start` to `end`                  | VDM              |
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from jax.tree_util import register_dataclass

from diffjax.core.arguments import check_order, check_positive

Curve = Callable[[Array], Array]


@register_dataclass
@dataclass(frozen=True)
class LogNormal:
    """Normal log-ratios: see `log_normal`."""

    mean: Array | float = -1.2
    std: Array | float = 1.2

    def __call__(self, u: Array) -> Array:
        return -2.0 * (self.mean + self.std * ndtri(u))


@register_dataclass
@dataclass(frozen=True)
class Laplace:
    """Laplace-distributed log-SNR: see `laplace`."""

    mean: Array | float = 0.0
    scale: Array | float = 0.5

    def __call__(self, u: Array) -> Array:
        clean = u < 0.5
        # each half from its own end: 1 - 2 |u - 1/2| would cancel there
        tail = jnp.log(2.0 * jnp.where(clean, u, 1.0 - u))
        return self.mean + jnp.where(clean, -self.scale, self.scale) * tail


@register_dataclass
@dataclass(frozen=True)
class Uniform:
    """Evenly spread log-SNR: see `uniform`."""

    start: Array | float = 13.3
    end: Array | float = -5.0

    def __call__(self, u: Array) -> Array:
        return (1.0 - u) * self.start + u * self.end


def log_normal(mean: float = -1.2, std: float = 1.2) -> LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), EDM's distribution of training levels.

    Source: EDM, arXiv:2206.00364, Table 1 (P_mean, P_std).

    >>> float(log_normal(mean=0.0)(jnp.array(0.5)))
    -0.0
    """
    check_positive("log_normal", std=std)
    return LogNormal(mean, std)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> LogNormal:
    """Times sigmoid(N(mean, std^2)) of the straight flow.

    There sigma / alpha = t / (1 - t), whose logarithm is the logit of t: this is `log_normal` with
    the defaults of its paper. Source: Stable Diffusion 3, arXiv:2403.03206, Section 3.1.
    """
    check_positive("logit_normal", std=std)
    return LogNormal(mean, std)


def laplace(mean: float = 0.0, scale: float = 0.5) -> Laplace:
    """log-SNR ~ Laplace(mean, scale), which is trained most where signal and noise are equal.

    Source: "Improved Noise Schedule for Diffusion Training", arXiv:2407.03297, Table 1.

    >>> laplace()(jnp.array([0.0, 0.5, 1.0]))
    Array([ inf,   0., -inf], dtype=float32)
    """
    check_positive("laplace", scale=scale)
    return Laplace(mean, scale)


def uniform(start: float = 13.3, end: float = -5.0) -> Uniform:
    """log-SNR evenly spread from `start`, the clean end, to `end`.

    As the distribution of training levels it turns the plain mean squared error on eps into the
    likelihood weighting.
    Sources: VDM, arXiv:2107.00630, Eq. 17; Song et al., arXiv:2101.09258, Section 4.
    """
    check_order("uniform", end=end, start=start)
    return Uniform(start, end)


DENSITIES: dict[str, Callable[..., Curve]] = {
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "laplace": laplace,
    "uniform": uniform,
}


def finite_logsnr(curve: Curve, u: Array) -> tuple[Array, Array]:
    """The curve a little inside of ends where it is infinite, and where it was finite."""
    finite = jnp.isfinite(curve(u))
    # double where: the slope of the curve is infinite there too
    return curve(jnp.where(finite, u, jnp.clip(u, 1e-6, 1.0 - 1e-6))), finite
