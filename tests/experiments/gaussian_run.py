"""A run whose network is the denoiser of a Gaussian, so that its flow is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from configs import CONFIGS
from diffjax.core import exact, schedules
from diffjax.networks import Functional
from runs import Run

SPREAD = 0.5
GAUSSIAN = exact.gaussian(np.zeros(64), SPREAD**2)
START, END = 13.3, -10.0


def perfect(params, x, t, *, labels):
    """The mean of x0 given x, for numbers that are N(0, SPREAD^2)."""
    level = schedules.log_linear(START, END)(t)
    return params * exact.denoiser(GAUSSIAN)(x.reshape(len(x), 64), level).reshape(x.shape)


def gaussian_run() -> Run:
    """That of the digits, in log SNR from START to END, with `perfect` for its network."""
    diffusion = dataclasses.replace(
        CONFIGS["digits_vp"].diffusion,
        schedule=f"log_linear(start={START}, end={END})",
        prediction="x0",
    )
    config = dataclasses.replace(CONFIGS["digits_vp"], diffusion=diffusion)
    return Run(config, Functional(lambda key: jnp.array(1.0), perfect), jnp.array(1.0), 1)
