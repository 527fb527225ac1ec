"""The autoencoders of Latent Diffusion, arXiv:2112.10752: 256x256 to 32x32x4 (f8), 64x64x3 (f4).

python experiments/train.py autoencoder_kl_f8 --data.path IMAGES --autoencoding.features MINE:LPIPS
python experiments/train.py autoencoder_kl_f4 --data.path IMAGES --autoencoding.features MINE:LPIPS

83,653,863 and 55,312,063 parameters, and a discriminator of 2,765,633. As published: batches of 12,
accumulated twice, and a learning rate of 4.5e-6 for each image of both; Adam with b1 0.5 and b2
0.9; a discriminator from step 50,001 on. The features are LPIPS, which you bring along: no weights
are bundled. Expected of ImageNet's validation images after training on OpenImages: PSNR 24.19 and
rFID 0.90 (f8), 27.53 and 0.27 (f4). Measured: not measured.

Different here: the autoencoder and its discriminator take their steps at once and not in turn; the
norms of the discriminator are of groups and not of batches.
"""

from dataclasses import replace

from config import AutoencodingConfig, Config, DataConfig, OptimizerConfig
from diffjax.networks.autoencoder_kl import sd1_autoencoder
from diffjax.networks.patch_discriminator import PatchDiscriminatorConfig

_autoencoding = AutoencodingConfig(
    network=sd1_autoencoder(sample_size=256),
    kl_weight=1e-6,
    discriminator=PatchDiscriminatorConfig(),
    discriminator_weight=0.5,
    discriminator_start=50_001,
)
autoencoder_kl_f8 = Config(
    task="autoencode",
    data=DataConfig(name="folder", image_size=256, flip=True),
    autoencoding=_autoencoding,
    optimizer=OptimizerConfig(
        learning_rate=4.5e-6 * 24, warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None
    ),
    batch_size=24,
    accumulate=2,
    num_steps=246_803,
    ema_decay=(),
)
f4 = {"block_out_channels": (128, 256, 512), "attention": (False,) * 3, "latent_channels": 3}
autoencoder_kl_f4 = replace(
    autoencoder_kl_f8,
    autoencoding=replace(
        _autoencoding,
        network=sd1_autoencoder(sample_size=256, up_attention=(False,) * 3, **f4),
    ),
    num_steps=176_991,
)
