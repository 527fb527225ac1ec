"""Handwritten digits of scikit-learn, 8x8, class-conditional: the run that needs no download."""

from config import Config, DataConfig, DiffusionConfig, OptimizerConfig
from diffjax.networks import UNetConfig

digits = Config(
    data=DataConfig(name="digits"),
    network=UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        patch_size=2,
        block_out_channels=(48, 96),
        attention=(False, True),
        num_groups=8,
        num_classes=10,
        cond_drop_prob=0.1,
    ),
    diffusion=DiffusionConfig(schedule="cosine_betas", prediction="v", times="stratified"),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine", b2=0.99),
    batch_size=128,
    num_steps=1500,
    ema_decay=(0.998,),
)
