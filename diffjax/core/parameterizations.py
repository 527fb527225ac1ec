"""What a network's output means: one affine row for each prediction.

A network output F is a combination of clean data and noise, and together with x = alpha x0 +
sigma eps it determines the clean data:

    F  = a(level) x0 + b(level) eps                              (target)
    x0 = skip(level) x + out(level) F                            (estimate)

| row      | a      | b        | skip              | out               |
| -------- | ------ | -------- | ----------------- | ----------------- |
| eps      | 0      | 1        | 1 / alpha         | -sigma / alpha    |
| x0       | 1      | 0        | 0                 | 1                 |
| v        | -sigma | alpha    | alpha / norm      | -sigma / norm     | norm = alpha^2 + sigma^2
| score    | 0      | -1/sigma | 1 / alpha         | sigma^2 / alpha   |
| velocity | -1     | 1        | 1 / (alpha+sigma) | -sigma / (alpha+sigma) |
| ncsn     | 0      | -1       | 1 / alpha         | sigma / alpha     | told log(sigma / alpha)
| edm      | see `edm`: F of unit variance, with its own input scale and clock |

The two halves of a row are inverse to each other (skip alpha + out a = 1, skip sigma + out b = 0);
both are written out, because each is exact where the other divides by zero. Everything else is
derived: the denoiser, the regression target, the conversion of loss weights.

`v` is alpha eps - sigma x0 (arXiv:2202.00512, Appendix D); `velocity` is the time derivative of
the straight interpolant alpha = 1 - t, sigma = t, that is eps - x0 (arXiv:2210.02747, Eq. 23, with
time from data to noise).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from diffjax.core.levels import NoiseLevel, check_level_type, expand, expand_level, inverse_or_zero
from diffjax.core.schedules import Schedule, num_train_steps

Denoiser = Callable[[Array, NoiseLevel], Array]
Coefficients = Callable[[NoiseLevel], tuple[Array, Array]]


class Parameterization(NamedTuple):
    """One row of the table of predictions.

    Attributes:
      name: the field's name of the prediction.
      target: level -> (a, b), the coefficients of x0 and eps in F.
      estimate: level -> (skip, out), the coefficients of x and F in x0.
      in_scale: level -> factor on x before it enters the network.
      clock: level -> the time that the network is told.
    """

    name: str
    target: Coefficients
    estimate: Coefficients
    in_scale: Callable[[NoiseLevel], Array] = lambda level: jnp.ones_like(level.alpha)
    clock: Callable[[NoiseLevel], Array] = lambda level: level.t


def _zero_one(level: NoiseLevel) -> tuple[Array, Array]:
    return jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)


def _one_zero(level: NoiseLevel) -> tuple[Array, Array]:
    return jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)


def _v_estimate(level: NoiseLevel) -> tuple[Array, Array]:
    norm = level.alpha**2 + level.sigma**2
    return level.alpha / norm, -level.sigma / norm


def _velocity_estimate(level: NoiseLevel) -> tuple[Array, Array]:
    norm = level.alpha + level.sigma
    return 1.0 / norm, -level.sigma / norm


eps = Parameterization(
    "eps",
    target=_zero_one,
    estimate=lambda level: (1.0 / level.alpha, -level.sigma / level.alpha),
)
x0 = Parameterization(
    "x0",
    target=_one_zero,
    estimate=_zero_one,
)
v = Parameterization(
    "v",
    target=lambda level: (-level.sigma, level.alpha),
    estimate=_v_estimate,
)
score = Parameterization(
    "score",
    target=lambda level: (jnp.zeros_like(level.alpha), -1.0 / level.sigma),
    estimate=lambda level: (1.0 / level.alpha, level.sigma**2 / level.alpha),
)
velocity = Parameterization(
    "velocity",
    target=lambda level: (-jnp.ones_like(level.alpha), jnp.ones_like(level.alpha)),
    estimate=_velocity_estimate,
)


def log_ratio(level: NoiseLevel) -> Array:
    """log(sigma / alpha): what the networks of NCSN++ and, in quarters, of EDM are told."""
    return jnp.log(level.sigma) - jnp.log(level.alpha)


# the score times sigma, in the form of NCSN++: arXiv:2011.13456, Appendix C
ncsn = Parameterization(
    "ncsn",
    target=lambda level: (jnp.zeros_like(level.alpha), -jnp.ones_like(level.alpha)),
    estimate=lambda level: (1.0 / level.alpha, level.sigma / level.alpha),
    clock=log_ratio,
)


def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioning: inputs and targets of unit variance for data of scale sigma_data.

        norm^2 = sigma^2 + alpha^2 sigma_data^2
        x0 = (alpha sigma_data^2 / norm^2) x + (sigma sigma_data / norm) F,
        F = F(x / norm, log(sigma / alpha) / 4)

    Source: EDM, arXiv:2206.00364, Eq. 7 and Table 1, where alpha = 1.

    Args:
      sigma_data: standard deviation of the data, positive.
    """

    def norm(level: NoiseLevel) -> Array:
        return jnp.hypot(level.sigma, level.alpha * sigma_data)

    return Parameterization(
        "edm",
        target=lambda level: (
            level.sigma / (sigma_data * norm(level)),
            -level.alpha * sigma_data / norm(level),
        ),
        estimate=lambda level: (
            level.alpha * sigma_data**2 / norm(level) ** 2,
            level.sigma * sigma_data / norm(level),
        ),
        in_scale=lambda level: 1.0 / norm(level),
        clock=lambda level: 0.25 * log_ratio(level),
    )


PARAMETERIZATIONS = {row.name: row for row in (eps, x0, v, score, velocity, ncsn, edm())}


def target(parameterization: Parameterization, clean: Array, noise: Array, level: NoiseLevel):
    """What the network should output: F = a x0 + b eps.

    Args:
      parameterization: a row of the table.
      clean, noise: [B, ...] x0 and eps, float32.
      level: leaves scalar or [B].

    Returns:
      [B, ...] regression target, float32.
    """
    a, b = parameterization.target(expand_level(level, clean))
    return a * clean + b * noise


def estimate_x0(parameterization: Parameterization, x: Array, output: Array, level: NoiseLevel):
    """The clean data that an output F stands for: x0 = skip x + out F.

    Args:
      parameterization: a row of the table.
      x, output: [B, ...] noisy input and what the network made of it, float32.
      level: of x; leaves scalar or [B].

    Returns:
      [B, ...] estimate of x0, float32.
    """
    skip, out = parameterization.estimate(expand_level(level, x))
    return skip * x + out * output


def estimate_eps(x: Array, clean: Array, level: NoiseLevel) -> Array:
    """The noise that belongs to an estimate of the clean data: eps = (x - alpha x0) / sigma.

    It is 0 at sigma = 0, where x holds no noise.

    Args:
      x, clean: [B, ...] noisy input and the estimate of x0, float32.
      level: of x; leaves scalar or [B].

    Returns:
      [B, ...] estimate of eps, float32.
    """
    level = expand_level(level, x)
    # numbers first: as a quotient of arrays, chosen between, it is several times as slow on a CPU
    inverse = inverse_or_zero(level.sigma)
    return inverse * x - (inverse * level.alpha) * clean


class LearnedVariance(NamedTuple):
    """An estimate of x0 together with the network's choice of reverse variance.

    Attributes:
      x0: [B, ...] estimate of the clean data.
      fraction: [B, ...] in [0, 1]: 0 is the smallest reverse variance (q_posterior's), 1 the
        largest (the forward step's); between them the logarithm is interpolated.
    """

    x0: Array
    fraction: Array


def map_x0(function: Callable[[Array], Array], estimate: Any) -> Any:
    """Apply a function to a denoiser's estimate of x0; a learned variance passes through."""
    if isinstance(estimate, LearnedVariance):
        return estimate._replace(x0=function(estimate.x0))
    return function(estimate)


def run_network(
    apply: Callable[..., Array],
    params: Any,
    parameterization: Parameterization,
    x: Array,
    level: NoiseLevel,
    **kwargs: Any,
) -> Array:
    """Call a network as its parameterization wants it: F(in_scale x, clock), output in float32."""
    clock = jnp.broadcast_to(parameterization.clock(level), (x.shape[0],))
    scale = expand(parameterization.in_scale(level), x)
    return apply(params, scale * x, clock, **kwargs).astype(x.dtype)


def make_denoiser(
    apply: Callable[..., Array],
    params: Any,
    parameterization: Parameterization,
    **conditioning: Any,
) -> Denoiser:
    """A denoiser, (x, level) -> estimate of x0, from a network.

        x0 = skip(level) x + out(level) F(in_scale(level) x, clock(level))

    Make it inside the jitted function, with params and conditioning among that function's
    arguments; closed over from outside they would be compiled in as constants.

    Args:
      apply: `apply(params, x, t, **conditioning)` -> array in the shape of x.
      params: the network's parameters.
      parameterization: what the network predicts: `eps`, `x0`, `v`, `score`, `velocity`.
      **conditioning: further inputs of the network, such as `labels` [B].

    Returns:
      (x [B, ...], level with leaves scalar or [B]) -> [B, ...] in the dtype of x.

    Raises:
      ValueError: when the output has another shape than x, or (outside jit) where the prediction
        does not determine x0.

    >>> denoise = make_denoiser(lambda params, x, t: params * x, 0.5, x0)
    >>> denoise(jnp.ones((1, 2)), NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8)))
    Array([[0.5, 0.5]], dtype=float32)
    """

    def denoise(x: Array, level: NoiseLevel) -> Array:
        check_level(parameterization, level)
        output = run_network(apply, params, parameterization, x, level, **conditioning)
        if output.shape != x.shape:
            raise ValueError(
                f"The network returned {output.shape} for an input of {x.shape}; a denoiser needs "
                "equal shapes. Does it predict a variance too (make_learned_variance_denoiser)?"
            )
        return estimate_x0(parameterization, x, output, level)

    return denoise


def make_learned_variance_denoiser(
    apply: Callable[..., Array],
    params: Any,
    parameterization: Parameterization,
    **conditioning: Any,
) -> Callable[[Array, NoiseLevel], LearnedVariance]:
    """Like `make_denoiser`, for a network that also predicts the reverse variance.

    Its output has twice the channels of x: first the prediction, then values whose range [-1, 1]
    is mapped to fractions [0, 1]. For `ancestral(variance="learned_range")`.
    Source: Improved DDPM, arXiv:2102.09672, Eq. 15.

    Arguments (apply, params, parameterization, conditioning) as of `make_denoiser`.

    Returns:
      (x, level) -> `LearnedVariance`.

    Raises:
      ValueError: when the output has not twice the channels of x.
    """

    def denoise(x: Array, level: NoiseLevel) -> LearnedVariance:
        check_level(parameterization, level)
        output = run_network(apply, params, parameterization, x, level, **conditioning)
        prediction, values = split_learned_variance(output, x)
        return LearnedVariance(
            estimate_x0(parameterization, x, prediction, level), 0.5 * (values + 1.0)
        )

    return denoise


def split_learned_variance(output: Array, x: Array) -> tuple[Array, Array]:
    """Halve the channels of a network output [..., 2 C] into prediction and variance values.

    Raises:
      ValueError: the output has other than twice the channels of x.
    """
    if output.shape != (*x.shape[:-1], 2 * x.shape[-1]):
        raise ValueError(
            f"The network returned {output.shape} for an input of {x.shape}; a learned variance "
            f"needs {2 * x.shape[-1]} output channels."
        )
    prediction, values = jnp.split(output, 2, axis=-1)
    return prediction, values


def check_level(parameterization: Parameterization, level: NoiseLevel) -> None:
    """Refuse levels at which the prediction says nothing about x0; traced levels pass.

    Raises:
      TypeError: the prediction is no row of the table, or the level is none.
      ValueError: when x0 = skip x + out F has no finite coefficients there, as for eps and score
        at zero SNR (alpha = 0): x is pure noise, and knowing that noise tells nothing of x0.
    """
    if not isinstance(parameterization, Parameterization):
        raise TypeError(
            f"The prediction is {parameterization!r}; needed is a row such as eps, or what edm() "
            "returns (by its name: PARAMETERIZATIONS['eps'])."
        )
    if any(isinstance(leaf, Tracer) for leaf in check_level_type(level)):
        return
    with jax.ensure_compile_time_eval():
        coefficients = np.array([np.asarray(c) for c in parameterization.estimate(level)])
        clock = np.asarray(parameterization.clock(level))
    # a clock of minus infinity is that of clean data, which no network is asked about
    if not np.all(np.isfinite(coefficients)) or np.any(np.isposinf(clock)):
        raise ValueError(
            f"The prediction {parameterization.name!r} does not determine x0 at zero "
            "signal-to-noise ratio (alpha = 0), where the input is pure noise. "
            "Use 'v', 'velocity' or 'x0', or a schedule whose terminal SNR is positive."
        )


def check_schedule(parameterization: Parameterization, schedule: Schedule) -> None:
    """Refuse a schedule whose noisiest level `check_level` refuses; traced schedules pass.

    Raises:
      TypeError: the parameterization or the schedule is none.
      ValueError: when the parameterization says nothing of x0 there, as eps at zero terminal SNR.
    """
    if not callable(schedule):
        raise TypeError(
            f"The schedule is {schedule!r}; needed is a function from times to levels, such as "
            "linear_betas() (by its name: SCHEDULES['linear_betas']())."
        )
    steps = num_train_steps(schedule)
    check_level(parameterization, schedule(jnp.asarray(1.0 if steps is None else steps - 1)))
