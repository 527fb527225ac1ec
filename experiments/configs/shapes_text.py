"""Captioned pictures of coloured shapes, 24x24: text to image on a small scale, no download.

python experiments/train.py shapes_text
python experiments/check_shapes.py --workdir runs/shapes_text

A text encoder is trained on the captions first. Patches of 4x4 leave 6x6 and 3x3 positions; the
tokens of the caption are attended to at the coarser ones.
"""

from config import (
    Config,
    DataConfig,
    DiffusionConfig,
    OptimizerConfig,
    SamplingConfig,
    TextConfig,
)
from diffjax.networks import UNetConfig
from diffjax.networks.unet_context import ContextConfig

shapes_text = Config(
    data=DataConfig(name="shapes"),
    text=TextConfig(),
    network=UNetConfig(
        sample_size=24,
        patch_size=4,
        block_out_channels=(64, 96),
        layers_per_block=1,
        attention=(False, "transformer"),
        mid_attention="transformer",
        scale_shift=True,
        downsample="plain",
        upsample="plain",
        num_groups=16,
        context=ContextConfig(features=64, num_heads=4, linear_projection=True),
    ),
    diffusion=DiffusionConfig(
        schedule="cosine_betas", prediction="v", weight="snr_plus_one", times="stratified"
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200, decay="cosine", b2=0.99),
    sampling=SamplingConfig(previews=("ddim",), guidance_scale=2.0),
    batch_size=64,
    num_steps=8000,
    ema_decay=(0.998,),
)
