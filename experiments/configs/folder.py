"""Any folder of images, one subfolder for each class, at 64x64.

python experiments/train.py folder --data.path PICTURES --network.num-classes 3

A starting point in the manner of ADM (arXiv:2105.05233): a cosine schedule and v-prediction, which
learn from few images faster than eps-prediction. Measured: not measured.
"""

from config import Config, DataConfig, DiffusionConfig, OptimizerConfig
from diffjax.networks import UNetConfig

folder = Config(
    data=DataConfig(name="folder", image_size=64, flip=True),
    network=UNetConfig(
        sample_size=64,
        block_out_channels=(64, 128, 256, 256),
        attention=(False, False, True, True),
        head_dim=64,
        dropout=0.1,
    ),
    diffusion=DiffusionConfig(schedule="cosine_betas", prediction="v", times="low_discrepancy"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000, decay="cosine"),
    batch_size=64,
    num_steps=100_000,
    ema_decay=(0.9999,),
)
