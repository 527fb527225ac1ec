"""Tables: the levels of a discrete chain, as a network was trained on them.

They take the integer time steps 0 .. T - 1, and -1 for the clean end of the chain. They are made
in float64 from the variances beta_t of the steps,

    alpha_t^2 = alphas_cumprod_t = prod_{s <= t} (1 - beta_s),    sigma_t^2 = 1 - alphas_cumprod_t,

or, without scaling the data, from the noise scales themselves. Float times interpolate log-SNR
between the steps, so that solvers in continuous time run on models of discrete time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.arguments import (
    at_least_float32,
    check_num_steps,
    check_order,
    check_positive,
    concrete_values,
)
from diffjax.core.levels import NoiseLevel, Schedule, ve_level, vp_level


def num_train_steps(schedule: Schedule) -> int | None:
    """The length T of a table, or None for a schedule in continuous time."""
    return getattr(schedule, "num_train_steps", None)


@partial(
    register_dataclass,
    data_fields=["alpha", "sigma", "logsnr"],
    meta_fields=["num_train_steps", "level_of"],
)
@dataclass(frozen=True, eq=False)
class Table:
    """A chain of T noise levels, made by `from_betas`, `from_sigmas` and their relatives.

    Entry i of each array is the level of time step i - 1; entry 0, time step -1, is the clean end.

    Attributes:
      alpha, sigma, logsnr: [T + 1] float64 NumPy arrays (float32 as soon as JAX uses them).
      num_train_steps: T.
      level_of: (t, sigma / alpha) -> level, for levels between the steps: `vp_level`, `ve_level`.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    logsnr: np.ndarray
    num_train_steps: int
    level_of: Callable[[Array, Array], NoiseLevel] = vp_level

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        """Levels at time steps -1 .. T - 1; float times interpolate log-SNR between steps."""
        self._check_range(t)
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.integer):
            return NoiseLevel(t, jnp.asarray(self.alpha)[t + 1], jnp.asarray(self.sigma)[t + 1])
        t = at_least_float32(t)
        return self.level_of(t, self._interpolated_ratio(t))

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`, its time between those of the steps.

        Below the first step the network is told 0, at the ratio 0 it is told -1.
        """
        ratio = at_least_float32(ratio)
        # pure noise, where the ratio is infinite, would spoil the interpolation of the last step
        known = jnp.minimum(-0.5 * jnp.asarray(self.logsnr)[1:], 80.0)
        t = jnp.interp(jnp.log(ratio), known, jnp.arange(self.num_train_steps))
        # there, as in `_interpolated_ratio`, the angle is linear in time
        alpha, sigma = jnp.asarray(self.alpha)[-2], jnp.asarray(self.sigma)[-2]
        last = self.num_train_steps - 1 - jnp.arctan2(1.0, ratio) / jnp.arctan2(alpha, sigma)
        to_pure_noise = jnp.isinf(jnp.asarray(self.logsnr)[-1]) & (alpha * ratio > sigma)
        t = jnp.where(to_pure_noise, last, t)
        return self.level_of(jnp.where(ratio > 0, t, -1.0), ratio)

    def _interpolated_ratio(self, t: Array) -> Array:
        tables = (self.alpha, self.sigma, self.logsnr)
        alpha, sigma, logsnr = map(jnp.asarray, tables)
        low = jnp.clip(jnp.floor(t).astype(jnp.int32) + 1, 0, self.num_train_steps - 1)
        weight = t - (low - 1)

        def mix(values):
            return (1.0 - weight) * values[low] + weight * values[low + 1]

        finite = jnp.isfinite(logsnr)
        ratio = jnp.exp(-0.5 * mix(jnp.where(finite, logsnr, 0.0)))
        # log-SNR is infinite at a clean or a pure-noise end; the angle between alpha and sigma is
        # not, and the sine of each of the two complementary angles is exactly 0 where it should be
        sine = jnp.sin(mix(jnp.arctan2(sigma, alpha)))
        cosine = jnp.sin(mix(jnp.arctan2(alpha, sigma)))
        pure = cosine <= 0
        tangent = jnp.where(pure, jnp.inf, sine / jnp.where(pure, 1.0, cosine))
        return jnp.where(finite[low] & finite[low + 1], ratio, tangent)

    def _check_range(self, t) -> None:
        values = concrete_values(t)
        if values is None:
            return
        low, high = values.min(), values.max()
        if values.size > 2 and (values.flat[0], values.flat[-1]) == (1.0, 0.0) and low == 0:
            raise ValueError(
                "The times run from 1 to 0, a grid of continuous time; that of this table is "
                f"trailing(num_steps, {self.num_train_steps}), or another with its steps."
            )
        # NaN fails every comparison
        if not (low >= -1 and high <= self.num_train_steps - 1):
            raise ValueError(
                f"Time steps reach from {low} to {high}; this table has the steps "
                f"-1 (clean) .. {self.num_train_steps - 1}."
            )


def from_betas(betas: np.ndarray, *, final_alpha_cumprod: float = 1.0) -> Table:
    """A table from the variances beta_t of q(x_t | x_{t-1}).

        alphas_cumprod_t = prod_{s <= t} (1 - beta_s), accumulated in float64

    Source: DDPM, arXiv:2006.11239, Eq. 4.

    Args:
      betas: [T] in (0, 1]; 1 is allowed for the last step only (zero terminal SNR).
      final_alpha_cumprod: alpha^2 at time step -1, where sampling ends; 1 is clean data, the
        first entry of alphas_cumprod (latent diffusion's `set_alpha_to_one=False`) keeps a trace
        of noise.

    Raises:
      ValueError: no betas, or one that is out of range.

    >>> from_betas(np.full(10, 0.1)).num_train_steps
    10
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas has shape {betas.shape}; it must be one-dimensional, not empty.")
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise ValueError(
            f"betas reach from {betas.min():g} to {betas.max():g}; each must be in (0, 1), "
            "and only the last may be 1."
        )
    return from_alphas_cumprod(np.cumprod(1.0 - betas), final_alpha_cumprod=final_alpha_cumprod)


def from_alphas_cumprod(alphas_cumprod: np.ndarray, *, final_alpha_cumprod: float = 1.0) -> Table:
    """A table from alpha_t^2 for t = 0 .. T - 1, not increasing, in [0, 1], float64.

    Args:
      alphas_cumprod: [T].
      final_alpha_cumprod: alpha^2 at time step -1, at least alphas_cumprod[0]: see `from_betas`.

    Raises:
      ValueError: no values, one outside of [0, 1], or one larger than that of the step before.
    """
    alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
    if alphas_cumprod.ndim != 1 or alphas_cumprod.size == 0:
        raise ValueError(
            f"alphas_cumprod has shape {alphas_cumprod.shape}; it must be one-dimensional, not "
            "empty."
        )
    variance = np.concatenate([[final_alpha_cumprod], alphas_cumprod])
    if not (np.all(variance >= 0) and np.all(variance <= 1) and np.all(np.diff(variance) <= 0)):
        raise ValueError(
            "alphas_cumprod, with final_alpha_cumprod in front, must lie in [0, 1] and not "
            "increase with the time step."
        )
    with np.errstate(divide="ignore"):
        logsnr = np.log(variance) - np.log1p(-variance)
    return Table(np.sqrt(variance), np.sqrt(1.0 - variance), logsnr, len(variance) - 1)


def from_sigmas(sigmas: np.ndarray) -> Table:
    """A table of unscaled data with growing noise: alpha = 1, sigma_t = sigmas[t].

    The noise levels of NCSN, whose network is told the index of the level. Index 0 is the
    cleanest level here; papers that number them from the noisiest count the other way round.
    Source: NCSN, arXiv:1907.05600, Section 3.

    Args:
      sigmas: [T] positive, increasing.

    Raises:
      ValueError: no sigmas, one that is not positive or not finite, or one that does not increase.

    >>> from_sigmas(np.array([0.1, 1.0, 10.0]))(2).sigma
    Array(10., dtype=float32)
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or sigmas.size == 0:
        raise ValueError(f"sigmas has shape {sigmas.shape}; it must be one-dimensional, not empty.")
    if not (np.all(sigmas > 0) and np.all(np.diff(sigmas) > 0) and np.all(np.isfinite(sigmas))):
        raise ValueError(
            "sigmas must be positive and increase with the time step, cleanest first "
            f"(they start with {sigmas[0]:g} and end with {sigmas[-1]:g})."
        )
    sigmas = np.append(0.0, sigmas)
    with np.errstate(divide="ignore"):
        logsnr = -2.0 * np.log(sigmas)
    return Table(np.ones_like(sigmas), sigmas, logsnr, len(sigmas) - 1, ve_level)


def linear_betas(
    beta_start: float = 1e-4, beta_end: float = 0.02, *, num_steps: int = 1000
) -> Table:
    """DDPM's table: betas evenly spaced from `beta_start` to `beta_end`.

    Source: DDPM, arXiv:2006.11239, Section 4.

    Args:
      beta_start, beta_end: the first and the last beta, 0 < beta_start < beta_end <= 1.
      num_steps: T, at least 1.

    Raises:
      ValueError: betas that are out of range or do not increase, or no step.

    >>> schedule = linear_betas(1e-4, 0.02, num_steps=1000)
    >>> round(float(schedule(jnp.array(999)).alpha), 4)
    0.0064
    """
    return from_betas(_betas("linear_betas", beta_start, beta_end, num_steps))


def scaled_linear_betas(
    beta_start: float = 0.00085, beta_end: float = 0.012, *, num_steps: int = 1000
) -> Table:
    """Latent diffusion's table: sqrt(beta) evenly spaced. Source: arXiv:2112.10752.

    Arguments (beta_start, beta_end, num_steps) and errors as of `linear_betas`.
    """
    check_positive("scaled_linear_betas", beta_start=beta_start)
    return from_betas(_betas("scaled_linear_betas", beta_start**0.5, beta_end**0.5, num_steps) ** 2)


def cosine_betas(*, num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Table:
    """The cosine schedule's table, each beta capped so that the last steps stay regular.

        beta_t = min(1 - f(t + 1) / f(t), max_beta),    f(t) = cos^2(pi / 2 * (t / T + s) / (1 + s))

    Source: Improved DDPM, arXiv:2102.09672, Eq. 17.

    Args:
      num_steps: T, at least 1.
      offset: s, at least 0; a larger one makes the first steps noisier.
      max_beta: in (0, 1]; with 1 the last step is pure noise.

    Raises:
      ValueError: no step, or numbers that make betas outside of (0, 1).
    """
    check_num_steps("cosine_betas", num_steps)
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset) * np.pi / 2
    signal = np.cos(angle) ** 2
    return from_betas(np.minimum(1.0 - signal[1:] / signal[:-1], max_beta))


def sigmoid_betas(
    beta_start: float = 1e-4, beta_end: float = 0.02, *, num_steps: int = 1000
) -> Table:
    """Betas that follow a sigmoid of an even grid on [-6, 6], between the two ends.

    Source: GeoDiff, arXiv:2203.02923 (and the schedule named "sigmoid" in several libraries).

    Arguments (beta_start, beta_end, num_steps) and errors as of `linear_betas`.
    """
    check_order("sigmoid_betas", beta_start=beta_start, beta_end=beta_end)
    shape = 1.0 / (1.0 + np.exp(-_betas("sigmoid_betas", -6.0, 6.0, num_steps)))
    return from_betas(beta_start + (beta_end - beta_start) * shape)


def geometric_sigmas(
    sigma_min: float = 0.01, sigma_max: float = 50.0, *, num_steps: int = 1000
) -> Table:
    """The noise levels of score networks: geometric from `sigma_min` to `sigma_max`.

    NCSN took 10 of them from 0.01 to 1, NCSNv2 232 from 0.01 to 50, NCSN++ 1000 from 0.01 to 50.
    Sources: arXiv:1907.05600, Section 3; arXiv:2006.09011, Section 3; arXiv:2011.13456, Appendix C.

    Args:
      sigma_min, sigma_max: the first and the last sigma, 0 < sigma_min < sigma_max.
      num_steps: T, at least 1.

    Raises:
      ValueError: sigmas that are not positive or do not increase, or no step.

    >>> geometric_sigmas(0.01, 1.0, num_steps=3).sigma.tolist()
    [0.0, 0.01, 0.1, 1.0]
    """
    check_positive("geometric_sigmas", sigma_min=sigma_min)
    check_order("geometric_sigmas", sigma_min=sigma_min, sigma_max=sigma_max)
    check_num_steps("geometric_sigmas", num_steps)
    return from_sigmas(np.geomspace(sigma_min, sigma_max, num_steps))


def zero_terminal_snr(table: Table) -> Table:
    """Rescale a table so that its last step is pure noise, keeping its first step.

        alpha'_t = (alpha_t - alpha_{T-1}) alpha_0 / (alpha_0 - alpha_{T-1})

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    arXiv:2305.08891, Algorithm 1. Predictions of eps or of the score are undefined at the last
    step of the result: use v, velocity or x0.

    Raises:
      TypeError: a schedule in continuous time.
      ValueError: a table of unscaled data, or one that has the same level at both ends.
    """
    if not isinstance(table, Table):
        raise TypeError(
            f"zero_terminal_snr rescales tables, not {type(table).__name__}; the continuous "
            "schedules cosine and sigmoid have zero terminal SNR already."
        )
    if table.level_of is not vp_level:
        raise ValueError("zero_terminal_snr rescales tables that preserve the variance alone.")
    end, alpha = table.alpha[0], table.alpha[1:]
    if not alpha[0] > alpha[-1]:
        raise ValueError(
            "zero_terminal_snr keeps the first step and makes the last one pure noise; "
            f"this table of {table.num_train_steps} step(s) has the same level at both."
        )
    # the first step is kept: rounding may not lift it above the end of the chain
    alpha = np.minimum((alpha - alpha[-1]) / (alpha[0] - alpha[-1]), 1.0) * alpha[0]
    return from_alphas_cumprod(alpha**2, final_alpha_cumprod=float(end**2))


def _betas(name: str, start: float, end: float, num_steps: int) -> np.ndarray:
    check_order(name, start=start, end=end)
    check_num_steps(name, num_steps)
    return np.linspace(start, end, num_steps, dtype=np.float64)
