"""CIFAR-10 by a variational diffusion model with its learned schedule, arXiv:2107.00630.

python experiments/train.py cifar10_vdm --data.path TFDS_DATA_DIR

Network, schedule and optimizer of the paper's appendix; the images are not mirrored. 10 million
steps. Expected: 2.65 bits/dim on the test split. Measured: not measured.
"""

from dataclasses import replace

from config import DataConfig, DiffusionConfig, OptimizerConfig, SamplingConfig
from configs.cifar10 import cifar10
from diffjax.networks import vdm_cifar10

cifar10_vdm = replace(
    cifar10,
    data=DataConfig(name="cifar10"),
    network=vdm_cifar10(),
    diffusion=DiffusionConfig(
        schedule="learned_logsnr(start=13.3, end=-5.0)",
        prediction="eps",
        weight="likelihood",
        times="low_discrepancy",
    ),
    optimizer=OptimizerConfig(
        name="adamw",
        learning_rate=2e-4,
        warmup_steps=0,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=None,
    ),
    sampling=SamplingConfig(solver="ddpm", num_steps=1000, previews=("ddpm", "ddim")),
    num_steps=10_000_000,
)
