"""The tables of noise levels that diffusers' configs describe."""

import numpy as np

from diffjax.core import schedules
from diffjax.core.schedules import Table
from diffjax.pretrained.weights import UnsupportedError


def betas(config) -> np.ndarray:
    """The variances beta_t of the forward chain, [T] float32."""
    num_steps, name = config["num_train_timesteps"], config["beta_schedule"]
    start, end = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        values = np.asarray(config["trained_betas"])
    elif name == "linear":
        values = np.linspace(start, end, num_steps)
    elif name == "scaled_linear":
        roots = np.linspace(np.sqrt(start), np.sqrt(end), num_steps)
        values = roots.astype(np.float32) ** 2
    elif name == "sigmoid":
        values = start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_steps)))
    elif name in ALPHA_BARS:
        signal = ALPHA_BARS[name](np.arange(num_steps + 1) / num_steps)
        values = np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)
    else:
        raise UnsupportedError(
            f"beta_schedule is {name!r}; supported: linear, scaled_linear, sigmoid, "
            f"{', '.join(ALPHA_BARS)}."
        )
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        given = "trained_betas" if config["trained_betas"] is not None else f"{start} .. {end}"
        raise ValueError(f"The scheduler config: betas must be in [0, 1], and are not ({given})")
    return values.astype(np.float32)


# alpha(t)^2 in continuous time, t in [0, 1]
ALPHA_BARS = {
    "squaredcos_cap_v2": lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2,
    "exp": lambda t: np.exp(-12.0 * t),
}


def table(config) -> Table:
    """The config's table of T levels.

    1 - beta and the cumulative product are rounded to float32, as in the tables that the networks
    were trained with: near the clean end this changes sigma by 1e-5 of itself.
    """
    signal = np.cumprod((np.float32(1.0) - betas(config)).astype(np.float64)).astype(np.float32)
    made = schedules.from_alphas_cumprod(signal)
    if config.get("rescale_betas_zero_snr"):
        made = schedules.zero_terminal_snr(made)
    if config.get("set_alpha_to_one", True):
        return made
    signal = made.alpha[1:] ** 2
    return schedules.from_alphas_cumprod(signal, final_alpha_cumprod=signal[0])


def floored_table(config) -> Table:
    """The config's table, with the least signal that diffusers keeps at zero terminal SNR.

    diffusers gives it to the last step alone. Where a few steps before that one have less, as with
    DDPM's betas, they get it too: signal must not grow with the time.
    """
    made = table(config)
    if not config.get("rescale_betas_zero_snr"):
        return made
    return schedules.from_alphas_cumprod(np.maximum(made.alpha[1:] ** 2, 2.0**-24))
