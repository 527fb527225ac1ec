"""The digits under the VP SDE in continuous time, as in score SDEs, arXiv:2011.13456.

python experiments/train.py digits_vp

The network predicts the noise, which is the score times -sigma. Measured: docs/likelihood.md.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.digits import digits

digits_vp = replace(
    digits,
    network=replace(digits.network, time_scale=1000.0),
    diffusion=DiffusionConfig(schedule="linear", prediction="eps", times="stratified"),
    sampling=SamplingConfig(previews=("euler_maruyama", "ddim")),
)
