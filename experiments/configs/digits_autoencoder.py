"""An autoencoder of the handwritten digits: 8x8 to 4x4 with 3 channels, 3/4 as many numbers.

python experiments/train.py digits_autoencoder
python experiments/reconstruct.py --workdir runs/digits_autoencoder

One CPU core, about 6 minutes. Measured: PSNR 36.37 dB, and digits so well kept that their Fréchet
ratio is 0.27, with 2 channels 1.02 (docs/latent_diffusion.md).
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
            latent_channels=3,
            force_upcast=False,
        ),
        kl_weight=1e-3,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine", b2=0.99),
    batch_size=64,
    num_steps=2000,
    ema_decay=(0.998,),
)
