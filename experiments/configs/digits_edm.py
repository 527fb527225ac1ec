"""The digits with EDM's preconditioning, training levels, weight and sampler, arXiv:2206.00364.

python experiments/train.py digits_edm

Measured: docs/likelihood.md.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.digits import digits

digits_edm = replace(
    digits,
    # the clock is log(sigma) / 4; 0.75 is the standard deviation of the digits
    network=replace(digits.network, time_scale=250.0),
    diffusion=DiffusionConfig(
        schedule="edm_sigmas",
        density="log_normal",
        prediction="edm(sigma_data=0.75)",
        weight="edm(sigma_data=0.75)",
        times="stratified",
    ),
    sampling=SamplingConfig(solver="heun", num_steps=18, spacing="karras", previews=("heun",)),
)
