"""The tables of noise levels and the grids of time steps that diffusers' configs describe."""

import jax.numpy as jnp
import numpy as np

from diffjax.core import schedules
from diffjax.core.grids import from_times
from diffjax.core.levels import NoiseLevel
from diffjax.core.schedules import Table
from diffjax.pretrained.weights import UnsupportedError


def betas(config) -> np.ndarray:
    """The variances beta_t of the forward chain, [T] float64."""
    num_steps, name = config["num_train_timesteps"], config["beta_schedule"]
    start, end = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        return np.asarray(config["trained_betas"], np.float64)
    if name == "linear":
        return np.linspace(start, end, num_steps)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, num_steps) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_steps)))
    if name in ALPHA_BARS:
        signal = ALPHA_BARS[name](np.arange(num_steps + 1) / num_steps)
        return np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)
    raise UnsupportedError(
        f"beta_schedule is {name!r}; supported: linear, scaled_linear, sigmoid, "
        f"{', '.join(ALPHA_BARS)}."
    )


# alpha(t)^2 in continuous time, t in [0, 1]
ALPHA_BARS = {
    "squaredcos_cap_v2": lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2,
    "exp": lambda t: np.exp(-12.0 * t),
}


def table(config) -> Table:
    """The config's table of T levels."""
    made = schedules.from_betas(betas(config))
    if config.get("rescale_betas_zero_snr"):
        made = schedules.zero_terminal_snr(made)
    if config.get("set_alpha_to_one", True):
        return made
    signal = made.alpha[1:] ** 2
    return schedules.from_alphas_cumprod(signal, final_alpha_cumprod=signal[0])


def spaced_steps(spacing: str, num_steps: int, num_train_steps: int, offset: int) -> np.ndarray:
    """Time steps in sampling order, without the clean end; "linspace" is not rounded.

    Float rounding in `arange` decides ties of "trailing", so it is called as diffusers calls it;
    for some num_steps it yields one entry too many, which is left out.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(
            f"num_steps is {num_steps}; with {num_train_steps} training steps it must be in "
            f"[1, {num_train_steps}]."
        )
    if spacing == "linspace":
        return np.linspace(0, num_train_steps - 1, num_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_steps)[::-1] * (num_train_steps // num_steps) + float(offset)
    if spacing == "trailing":
        stride = num_train_steps / num_steps
        return np.arange(num_train_steps, 0, -stride).round()[:num_steps] - 1
    raise UnsupportedError(
        f"timestep_spacing is {spacing!r}; supported: linspace, leading, trailing."
    )


def integer_levels(config, schedule: Table, num_steps=None, *, timesteps=None) -> NoiseLevel:
    """Whole time steps of a table and the clean end; or a list of one's own, noise first."""
    total = config["num_train_timesteps"]
    if timesteps is None:
        spacing, offset = config["timestep_spacing"], config["steps_offset"]
        timesteps = spaced_steps(spacing, num_steps, total, offset).round().astype(np.int64)
    return schedule(jnp.asarray(from_times(timesteps, total)))


def inverse_integer_levels(config, schedule: Table, num_steps) -> NoiseLevel:
    """The levels of `integer_levels`, clean end first."""
    levels = integer_levels(config, schedule, num_steps)
    return NoiseLevel(*(leaf[::-1] for leaf in levels))
