"""Latent Diffusion at 256x256 with the settings of its authors, arXiv:2112.10752, appendix E.1.

python experiments/train.py ldm4_celebahq --data.path IMAGES --autoencoder VQ_F4
python experiments/train.py ldm8_churches --data.path IMAGES --autoencoder KL_F8
python experiments/train.py ldm4_imagenet --data.path TFDS_DIR --autoencoder VQ_F4
python experiments/train.py ldm8_imagenet --data.path TFDS_DIR --autoencoder VQ_F8

VQ_F4, KL_F8 and VQ_F8 are folders of the autoencoders with factors 4 and 8 that they were published
with, or of one of your own with latents of the same shape (autoencoder_kl_f8). Parameters, those of
the table of classes included, and the authors' FID by DDIM:

    ldm4_celebahq    274,056,163    5.11 by 200 steps
    ldm8_churches    294,966,916    4.02 by 400 steps
    ldm4_imagenet    401,433,091    3.60 by 250 steps under a guidance scale of 1.5
    ldm8_imagenet    395,496,708    15.51 by 200 steps, without guidance

Hardware in the paper: one A100 for each of the first two. Measured: not measured.

Different here: the error of ldm8_churches is squared, where its authors took the absolute one; the
labels of both models of ImageNet are dropped one time in ten, for guidance.
"""

from dataclasses import replace

from config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LatentsConfig,
    OptimizerConfig,
    SamplingConfig,
)
from diffjax.networks import UNetConfig
from diffjax.networks.unet_context import ContextConfig

NOISE = "scaled_linear_betas(beta_start=0.0015, beta_end={end})"
# the implementation of the clock's waves and norms that all of them share
UNET = UNetConfig(sample_size=64, norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0.0)

ldm4_celebahq = Config(
    data=DataConfig(name="folder", image_size=256, flip=True),
    latents=LatentsConfig(dtype="float16"),
    network=replace(
        UNET,
        block_out_channels=(224, 448, 672, 896),
        attention=(False, True, True, True),
        head_dim=32,
        downsample_padding=1,
    ),
    diffusion=DiffusionConfig(schedule=NOISE.format(end=0.0195)),
    optimizer=OptimizerConfig(
        name="adamw", learning_rate=9.6e-5, weight_decay=0.01, warmup_steps=0, clip_norm=None
    ),
    sampling=SamplingConfig(num_steps=200, previews=("ddim",), clip=False),
    batch_size=48,
    num_steps=410_000,
    ema_decay=(0.9999,),
)
ldm8_churches = replace(
    ldm4_celebahq,
    network=replace(
        UNET,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(192, 384, 384, 768, 768),
        attention=(True, True, True, True, False),
        head_dim=(24, 48, 48, 96, 96),  # eight heads
        scale_shift=True,
        downsample="resnet",
        upsample="resnet",
    ),
    diffusion=DiffusionConfig(schedule=NOISE.format(end=0.0155)),
    optimizer=replace(ldm4_celebahq.optimizer, learning_rate=5e-5, warmup_steps=10_000),
    sampling=SamplingConfig(num_steps=400, previews=("ddim",), clip=False),
    batch_size=96,
    num_steps=500_000,
)
ldm4_imagenet = replace(
    ldm4_celebahq,
    data=DataConfig(name="imagenet2012", image_size=256, flip=True),
    network=replace(
        UNET,
        block_out_channels=(192, 384, 576, 960),
        attention=(False, "transformer", "transformer", "transformer"),
        mid_attention="transformer",
        context=ContextConfig(features=512, num_heads=1),
        downsample_padding=1,
        num_classes=1000,
        cond_drop_prob=0.1,
    ),
    optimizer=replace(ldm4_celebahq.optimizer, learning_rate=1e-4),
    sampling=SamplingConfig(num_steps=250, previews=("ddim",), guidance_scale=1.5, clip=False),
    batch_size=1200,
    num_steps=178_000,
)
ldm8_imagenet = replace(
    ldm4_imagenet,
    network=replace(
        ldm4_imagenet.network,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(256, 512, 1024),
        attention=("transformer",) * 3,
        context=ContextConfig(features=512, num_heads=(8, 16, 32)),
    ),
    optimizer=replace(ldm4_celebahq.optimizer, learning_rate=6.4e-5),
    sampling=replace(ldm4_imagenet.sampling, num_steps=200, guidance_scale=1.0),
    batch_size=64,
    num_steps=4_800_000,
)
