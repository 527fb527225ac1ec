"""Noise schedules: functions from time to a noise level.

A schedule is called with times and returns `NoiseLevel(t, alpha, sigma)`. There are two kinds.

Continuous schedules take float times in [0, 1]: 0 is data, 1 is noise. Tables take the integer
time steps 0 .. T - 1 of a discrete chain, as a network was trained on them, and -1 for the clean
end of the chain; with float times they interpolate log-SNR between the steps.

This module is the index of them all:

| module                | schedules                                                              |
| --------------------- | ---------------------------------------------------------------------- |
| `vp_schedules`        | linear (the VP SDE), sub-VP, scaled linear, cosine, sigmoid            |
| `logsnr_schedules`    | any curve of log-SNR; Laplace, log-linear                              |
| `sigma_schedules`     | variance exploding (the VE SDE), EDM, straight flow                    |
| `tables`              | DDPM's, latent diffusion's and other tables; geometric sigmas (NCSN)   |
| `schedule_transforms` | schedule to schedule: shifted, resampled to train on, a part           |
| `inverse`             | from sigma / alpha back to the level and the time                      |
"""

from collections.abc import Callable

from diffjax.core.inverse import level_at, levels_at, time_of
from diffjax.core.levels import Schedule
from diffjax.core.logsnr_schedules import from_logsnr, laplace, log_linear
from diffjax.core.schedule_transforms import between, resampled, shifted
from diffjax.core.sigma_schedules import edm_sigmas, flow, variance_exploding
from diffjax.core.tables import (
    Table,
    cosine_betas,
    from_alphas_cumprod,
    from_betas,
    from_sigmas,
    geometric_sigmas,
    linear_betas,
    num_train_steps,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from diffjax.core.vp_schedules import cosine, linear, scaled_linear, sigmoid, sub_vp

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "sub_vp": sub_vp,
    "laplace": laplace,
    "log_linear": log_linear,
    "variance_exploding": variance_exploding,
    "edm_sigmas": edm_sigmas,
    "flow": flow,
    "linear_betas": linear_betas,
    "scaled_linear_betas": scaled_linear_betas,
    "cosine_betas": cosine_betas,
    "sigmoid_betas": sigmoid_betas,
    "geometric_sigmas": geometric_sigmas,
}

__all__ = [
    "SCHEDULES",
    "Schedule",
    "Table",
    "between",
    "cosine",
    "cosine_betas",
    "edm_sigmas",
    "flow",
    "from_alphas_cumprod",
    "from_betas",
    "from_logsnr",
    "from_sigmas",
    "geometric_sigmas",
    "laplace",
    "level_at",
    "levels_at",
    "linear",
    "linear_betas",
    "log_linear",
    "num_train_steps",
    "resampled",
    "scaled_linear",
    "scaled_linear_betas",
    "shifted",
    "sigmoid",
    "sigmoid_betas",
    "sub_vp",
    "time_of",
    "variance_exploding",
    "zero_terminal_snr",
]
