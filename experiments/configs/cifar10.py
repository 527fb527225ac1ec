"""CIFAR-10 as in DDPM, arXiv:2006.11239, Appendix B: 35.7 M parameters.

python experiments/train.py cifar10 --data.path TFDS_DATA_DIR

Hardware in the paper: TPU v3-8, 10.6 hours for 800,000 steps of 128. Expected: FID 3.17 (with
fixed_small variance and EMA). Measured: not measured.
"""

from config import Config, DataConfig, DiffusionConfig, OptimizerConfig
from diffjax.networks import ddpm_cifar10

cifar10 = Config(
    data=DataConfig(name="cifar10", flip=True),
    network=ddpm_cifar10(),
    diffusion=DiffusionConfig(schedule="linear_betas"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
    batch_size=128,
    num_steps=800_000,
    ema_decay=(0.9999,),
)
