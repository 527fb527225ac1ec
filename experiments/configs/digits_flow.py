"""The digits by rectified flow, arXiv:2209.03003: straight lines from noise to data.

python experiments/train.py digits_flow

Measured: docs/likelihood.md.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.digits import digits

digits_flow = replace(
    digits,
    network=replace(digits.network, time_scale=1000.0),
    diffusion=DiffusionConfig(
        schedule="flow", prediction="velocity", weight="velocity", times="stratified"
    ),
    sampling=SamplingConfig(solver="euler", previews=("euler",)),
)
