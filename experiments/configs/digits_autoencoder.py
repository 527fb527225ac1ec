"""An autoencoder of the handwritten digits: 8x8 to 4x4 with 2 channels, half as many numbers.

python experiments/train.py digits_autoencoder
python experiments/reconstruct.py --workdir runs/digits_autoencoder

Measured after 800 of the 2000 steps: PSNR 26.58 dB (docs/latent_diffusion.md).
"""

from config import AutoencodingConfig, Config, DataConfig, OptimizerConfig
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig

digits_autoencoder = Config(
    task="autoencode",
    data=DataConfig(name="digits", num_bins=17),
    autoencoding=AutoencodingConfig(
        network=AutoencoderKLConfig(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(32, 64),
            layers_per_block=1,
            attention=(False, False),
            up_attention=(False, False),
            mid_attention=False,
            num_groups=8,
            latent_channels=2,
            force_upcast=False,
        ),
        kl_weight=1e-3,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine", b2=0.99),
    batch_size=64,
    num_steps=2000,
    ema_decay=(0.998,),
)
