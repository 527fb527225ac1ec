"""The shapes of published UNets for the latents of an autoencoder, told a text."""

from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import ContextConfig


def sd1_unet(**changes) -> UNetConfig:
    """The UNet of Stable Diffusion 1, 859,520,964 parameters (arXiv:2112.10752, appendix E.2).

    >>> sd1_unet(in_channels=9).block_out_channels
    (320, 640, 1280, 1280)
    """
    shape = {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention": ("transformer", "transformer", "transformer", False),
        "mid_attention": "transformer",
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "context": ContextConfig(),
    }
    return UNetConfig(**{**shape, **changes})


def sd2_unet(**changes) -> UNetConfig:
    """The UNet of Stable Diffusion 2, 865,910,724 parameters: 64 channels a head, another text.

    >>> sd2_unet().context.num_heads
    (5, 10, 20, 20)
    """
    context = ContextConfig(features=1024, num_heads=(5, 10, 20, 20), linear_projection=True)
    return sd1_unet(**{"sample_size": 96, "context": context, **changes})


def sdxl_unet(**changes) -> UNetConfig:
    """The UNet of SDXL, 2,567,463,684 parameters (arXiv:2307.01952, section 2.1 and table 1).

    >>> sdxl_unet().context.takes
    ('context', 'pooled', 'time_ids')
    """
    context = ContextConfig(
        features=2048,
        num_heads=(5, 10, 20),
        depth=(1, 2, 10),
        linear_projection=True,
        added="text_time",
        added_features=2816,
        time_id_features=256,
    )
    shape = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "attention": (False, "transformer", "transformer"),
        "context": context,
    }
    return sd1_unet(**{**shape, **changes})
