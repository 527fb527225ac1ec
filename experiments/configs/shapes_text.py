"""Captioned pictures of coloured shapes, 24x24: text to image on a small scale, no download.

python experiments/train.py shapes_text
python experiments/check_shapes.py --workdir runs/shapes_text

A text encoder is trained on the captions first. Patches of 4x4 leave 6x6 and 3x3 positions; the
tokens of the caption are attended to at the coarser ones. The network predicts x0: v still left
noise over the pictures after 750 steps, x0 none after 200.

Two CPU cores, about 25 minutes by the processor time of its steps, 0.42 s each. Aimed at: 90 % of
the prompts met in colour and in shape. Measured: not to its end, but after a run of 1000 steps in
the place of 6000, which reaches the colours and not yet the shapes (docs/shapes_text.md).
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
        positions=True,
        block_out_channels=(64, 96),
        layers_per_block=1,
        attention=("transformer", "transformer"),
        mid_attention="transformer",
        scale_shift=True,
        downsample="plain",
        upsample="plain",
        num_groups=16,
        context=ContextConfig(features=64, num_heads=4, linear_projection=True, added="text"),
    ),
    diffusion=DiffusionConfig(
        schedule="cosine_betas", prediction="x0", weight="constant", times="stratified"
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200, decay="cosine", b2=0.99),
    sampling=SamplingConfig(previews=("ddim",), num_steps=25, guidance_scale=3.0),
    batch_size=64,
    num_steps=5000,
    ema_decay=(0.998,),
)
