"""CelebA faces at 64x64, as in DDIM, arXiv:2010.02502, Appendix D.1: 78.7 M parameters.

python experiments/train.py celeba64 --data.path TFDS_DATA_DIR

Expected: FID 3.26 with 1000 ancestral steps, 6.53 with 50 DDIM steps. Measured: not measured.
"""

from config import Config, DataConfig, DiffusionConfig, OptimizerConfig
from diffjax.networks import ddpm_celeba64

celeba64 = Config(
    data=DataConfig(name="celeb_a", image_size=64, flip=True),
    network=ddpm_celeba64(),
    diffusion=DiffusionConfig(schedule="linear_betas"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
    batch_size=128,
    num_steps=500_000,
    ema_decay=(0.9999,),
)
