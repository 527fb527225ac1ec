"""CIFAR-10 by rectified flow, arXiv:2209.03003, appendix D: DDPM++, 61.8 M parameters.

python experiments/train.py cifar10_flow --data.path TFDS_DATA_DIR

Expected: FID 2.58 for the first flow, by an adaptive solver with 127 network calls on average.
Measured: not measured.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.cifar10 import cifar10
from diffjax.networks import ddpmpp_cifar10

cifar10_flow = replace(
    cifar10,
    network=ddpmpp_cifar10(dropout=0.15),
    diffusion=DiffusionConfig(schedule="flow", prediction="velocity", weight="velocity"),
    # 64 steps of two calls each, but for the last
    sampling=SamplingConfig(solver="heun", num_steps=64, previews=("heun",), clip=False),
    num_steps=1_300_000,
    ema_decay=(0.999999,),
)
