"""Noise schedules: functions from time to a noise level.

A schedule is called with times and returns `NoiseLevel(t, alpha, sigma)`. There are two kinds.

Continuous schedules take float times in [0, 1]: 0 is data, 1 is noise. Each is written so that
neither alpha nor sigma is the difference of two nearly equal numbers.

Tables take the integer time steps 0 .. T - 1 of a discrete chain, as a network was trained on
them, and -1 for the clean end of the chain. They are made from betas in float64,

    alpha_t^2 = alphas_cumprod_t = prod_{s <= t} (1 - beta_s),    sigma_t^2 = 1 - alphas_cumprod_t,

and interpolate log-SNR between the steps when they are called with float times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel, safe_sqrt

Schedule = Callable[[ArrayLike], NoiseLevel]


def num_train_steps(schedule: Schedule) -> int | None:
    """The length T of a table, or None for a schedule in continuous time."""
    return getattr(schedule, "num_train_steps", None)


@register_dataclass
@dataclass(frozen=True)
class Linear:
    """Variance-preserving SDE with beta(t) linear in t: see `linear`."""

    beta_min: Array | float = 0.1
    beta_max: Array | float = 20.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = _continuous_time(t)
        return _from_log_alpha(
            t, -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        )


@register_dataclass
@dataclass(frozen=True)
class ScaledLinear:
    """Variance-preserving SDE with sqrt(beta(t)) linear in t: see `scaled_linear`."""

    beta_min: Array | float = 0.85
    beta_max: Array | float = 12.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = _continuous_time(t)
        start = jnp.sqrt(self.beta_min)
        slope = jnp.sqrt(self.beta_max) - start
        integral = start**2 * t + start * slope * t**2 + slope**2 * t**3 / 3.0
        return _from_log_alpha(t, -0.5 * integral)


@register_dataclass
@dataclass(frozen=True)
class Cosine:
    """Squared-cosine signal variance: see `cosine`."""

    offset: Array | float = 0.008

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = _continuous_time(t)
        quarter = 0.5 * jnp.pi / (1.0 + self.offset)
        start = quarter * self.offset
        # sin of the angle left until t = 1 is exactly 0 there; cos(pi / 2) would not be
        alpha = jnp.sin(quarter * (1.0 - t)) / jnp.cos(start)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a)
        variance = jnp.sin(quarter * t) * jnp.sin(quarter * t + 2.0 * start)
        return NoiseLevel(t, alpha, safe_sqrt(variance) / jnp.cos(start))


@register_dataclass
@dataclass(frozen=True)
class Sigmoid:
    """Sigmoid signal variance: see `sigmoid`."""

    start: Array | float = -3.0
    end: Array | float = 3.0
    temperature: Array | float = 1.0

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        t = _continuous_time(t)
        low, high = self.start / self.temperature, self.end / self.temperature
        here = low + t * (high - low)

        def rise(a, b, length):
            # sigmoid(b) - sigmoid(a), with b - a = length given without cancellation
            return jnp.sinh(0.5 * length) / (2.0 * jnp.cosh(0.5 * a) * jnp.cosh(0.5 * b))

        total = rise(low, high, high - low)
        alpha = safe_sqrt(rise(here, high, (1.0 - t) * (high - low)) / total)
        return NoiseLevel(t, alpha, safe_sqrt(rise(low, here, t * (high - low)) / total))


def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Linear:
    """Continuous-time limit of the linear DDPM schedule, the VP SDE of score-based models.

        log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2

    The betas are rates: a table of T steps has beta_t = beta(t) / T, so DDPM's 1e-4 .. 0.02 with
    T = 1000 is 0.1 .. 20. Source: Score SDE, arXiv:2011.13456, Eq. 33.

    Args:
      beta_min, beta_max: rates at t = 0 and t = 1, positive.

    >>> level = linear()(jnp.array(0.0))
    >>> float(level.alpha), float(level.sigma)
    (1.0, 0.0)
    """
    _check_order("linear", beta_min=beta_min, beta_max=beta_max)
    _check_positive("linear", beta_min=beta_min)
    return Linear(beta_min, beta_max)


def scaled_linear(beta_min: float = 0.85, beta_max: float = 12.0) -> ScaledLinear:
    """Continuous-time limit of latent diffusion's schedule: sqrt(beta(t)) is linear in t.

        log alpha(t) = -(a^2 t + a b t^2 + b^2 t^3 / 3) / 2,
        a = sqrt(beta_min), b = sqrt(beta_max) - a

    Source: Latent Diffusion Models, arXiv:2112.10752 (betas 0.00085 .. 0.012 with T = 1000).

    Args:
      beta_min, beta_max: rates at t = 0 and t = 1, positive.
    """
    _check_order("scaled_linear", beta_min=beta_min, beta_max=beta_max)
    _check_positive("scaled_linear", beta_min=beta_min)
    return ScaledLinear(beta_min, beta_max)


def cosine(offset: float = 0.008) -> Cosine:
    """The cosine schedule; its terminal SNR is exactly zero.

        alpha(t) = f(t) / f(0),    f(t) = cos(pi / 2 * (t + s) / (1 + s)),    s = offset

    Source: Improved DDPM, arXiv:2102.09672, Eq. 17.

    Args:
      offset: s >= 0; a larger one makes the first steps noisier.

    >>> level = cosine()(jnp.array([0.0, 1.0]))
    >>> level.alpha.tolist(), level.sigma.tolist()
    ([1.0, 0.0], [0.0, 1.0])
    """
    if offset < 0:
        raise ValueError(f"cosine: offset is {offset}; it must be at least 0.")
    return Cosine(offset)


def sigmoid(start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> Sigmoid:
    """The sigmoid schedule; its terminal SNR is exactly zero.

        alpha(t)^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)),
        S(u) = 1 / (1 + exp(-u / temperature))

    Source: Chen, "On the Importance of Noise Scheduling", arXiv:2301.10972, Algorithm 1.

    Args:
      start, end: interval of the sigmoid that is used, start < end.
      temperature: positive; smaller is steeper.
    """
    _check_order("sigmoid", start=start, end=end)
    _check_positive("sigmoid", temperature=temperature)
    return Sigmoid(start, end, temperature)


@partial(
    register_dataclass, data_fields=["alpha", "sigma", "logsnr"], meta_fields=["num_train_steps"]
)
@dataclass(frozen=True, eq=False)
class Table:
    """A variance-preserving chain of T noise levels, made by `from_betas` and its relatives.

    Entry i of each array is the level of time step i - 1; entry 0, time step -1, is the clean end.

    Attributes:
      alpha, sigma, logsnr: [T + 1] float64 NumPy arrays (float32 as soon as JAX uses them).
      num_train_steps: T.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    logsnr: np.ndarray
    num_train_steps: int

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        """Levels at time steps -1 .. T - 1; float times interpolate log-SNR between steps."""
        self._check_range(t)
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.integer):
            return NoiseLevel(t, jnp.asarray(self.alpha)[t + 1], jnp.asarray(self.sigma)[t + 1])
        return self._interpolate(_at_least_float32(t))

    def _interpolate(self, t: Array) -> NoiseLevel:
        tables = (self.alpha, self.sigma, self.logsnr)
        table_alpha, table_sigma, table_logsnr = map(jnp.asarray, tables)
        low = jnp.clip(jnp.floor(t).astype(jnp.int32) + 1, 0, self.num_train_steps - 1)
        weight = t - (low - 1)

        def mix(values):
            return (1.0 - weight) * values[low] + weight * values[low + 1]

        # log-SNR is infinite at a clean or a pure-noise end; the angle between alpha and sigma is
        # not, and the sine of each of the two complementary angles is exactly 0 where it should be
        finite = jnp.isfinite(table_logsnr)
        usable = finite[low] & finite[low + 1]
        logsnr = mix(jnp.where(finite, table_logsnr, 0.0))
        alpha = jnp.sin(mix(jnp.arctan2(table_alpha, table_sigma)))
        sigma = jnp.sin(mix(jnp.arctan2(table_sigma, table_alpha)))
        alpha = jnp.where(usable, jnp.sqrt(jax.nn.sigmoid(logsnr)), alpha)
        sigma = jnp.where(usable, jnp.sqrt(jax.nn.sigmoid(-logsnr)), sigma)
        return NoiseLevel(t, alpha, sigma)

    def _check_range(self, t) -> None:
        if isinstance(t, Tracer) or np.size(t) == 0:
            return
        # NumPy: inside jit even the minimum of a concrete JAX array would be traced
        values = np.asarray(t)
        low, high = values.min(), values.max()
        if low < -1 or high > self.num_train_steps - 1:
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


def linear_betas(
    beta_start: float = 1e-4, beta_end: float = 0.02, *, num_steps: int = 1000
) -> Table:
    """DDPM's table: betas evenly spaced from `beta_start` to `beta_end`.

    Source: DDPM, arXiv:2006.11239, Section 4.

    >>> schedule = linear_betas(1e-4, 0.02, num_steps=1000)
    >>> round(float(schedule(jnp.array(999)).alpha), 4)
    0.0064
    """
    return from_betas(_betas("linear_betas", beta_start, beta_end, num_steps))


def scaled_linear_betas(
    beta_start: float = 0.00085, beta_end: float = 0.012, *, num_steps: int = 1000
) -> Table:
    """Latent diffusion's table: sqrt(beta) evenly spaced. Source: arXiv:2112.10752."""
    _check_positive("scaled_linear_betas", beta_start=beta_start)
    return from_betas(_betas("scaled_linear_betas", beta_start**0.5, beta_end**0.5, num_steps) ** 2)


def cosine_betas(*, num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Table:
    """The cosine schedule's table, each beta capped so that the last steps stay regular.

        beta_t = min(1 - f(t + 1) / f(t), max_beta),    f(t) = cos^2(pi / 2 * (t / T + s) / (1 + s))

    Source: Improved DDPM, arXiv:2102.09672, Eq. 17.
    """
    _check_num_steps("cosine_betas", num_steps)
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset) * np.pi / 2
    signal = np.cos(angle) ** 2
    return from_betas(np.minimum(1.0 - signal[1:] / signal[:-1], max_beta))


def sigmoid_betas(
    beta_start: float = 1e-4, beta_end: float = 0.02, *, num_steps: int = 1000
) -> Table:
    """Betas that follow a sigmoid of an even grid on [-6, 6], between the two ends.

    Source: GeoDiff, arXiv:2203.02923 (and the schedule named "sigmoid" in several libraries).
    """
    _check_order("sigmoid_betas", beta_start=beta_start, beta_end=beta_end)
    shape = 1.0 / (1.0 + np.exp(-_betas("sigmoid_betas", -6.0, 6.0, num_steps)))
    return from_betas(beta_start + (beta_end - beta_start) * shape)


def zero_terminal_snr(table: Table) -> Table:
    """Rescale a table so that its last step is pure noise, keeping its first step.

        alpha'_t = (alpha_t - alpha_{T-1}) alpha_0 / (alpha_0 - alpha_{T-1})

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    arXiv:2305.08891, Algorithm 1. Predictions of eps or of the score are undefined at the last
    step of the result: use v, velocity or x0.
    """
    if not isinstance(table, Table):
        raise TypeError(
            f"zero_terminal_snr rescales tables, not {type(table).__name__}; the continuous "
            "schedules cosine and sigmoid have zero terminal SNR already."
        )
    end, alpha = table.alpha[0], table.alpha[1:]
    if not alpha[0] > alpha[-1]:
        raise ValueError(
            "zero_terminal_snr keeps the first step and makes the last one pure noise; "
            f"this table of {table.num_train_steps} step(s) has the same level at both."
        )
    # the first step is kept: rounding may not lift it above the end of the chain
    alpha = np.minimum((alpha - alpha[-1]) / (alpha[0] - alpha[-1]), 1.0) * alpha[0]
    return from_alphas_cumprod(alpha**2, final_alpha_cumprod=float(end**2))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "linear_betas": linear_betas,
    "scaled_linear_betas": scaled_linear_betas,
    "cosine_betas": cosine_betas,
    "sigmoid_betas": sigmoid_betas,
}


def _continuous_time(t: ArrayLike) -> Array:
    t = jnp.asarray(t)
    if jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"A continuous schedule takes float times in [0, 1], not {t.dtype} time steps. "
            "Was a table meant (linear_betas, cosine_betas, ...)?"
        )
    return _at_least_float32(t)


def _at_least_float32(t: Array) -> Array:
    """Levels are never computed in half precision, whatever the dtype of the times."""
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def _from_log_alpha(t: Array, log_alpha: Array) -> NoiseLevel:
    return NoiseLevel(t, jnp.exp(log_alpha), safe_sqrt(-jnp.expm1(2.0 * log_alpha)))


def _betas(name: str, start: float, end: float, num_steps: int) -> np.ndarray:
    _check_order(name, start=start, end=end)
    _check_num_steps(name, num_steps)
    return np.linspace(start, end, num_steps, dtype=np.float64)


def _check_num_steps(name: str, num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps is {num_steps}; a table needs at least one step.")


def _check_order(name: str, **ends: float) -> None:
    (low_name, low), (high_name, high) = ends.items()
    if not low < high:
        raise ValueError(f"{name}: {low_name} is {low}, {high_name} is {high}; it must be larger.")


def _check_positive(name: str, **values: float) -> None:
    for value_name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: {value_name} is {value}; it must be positive.")
