"""The folders of diffusers' ControlNetModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffjax.networks.controlnet import ControlNetConfig, controlnet
from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.pretrained.architecture import Architecture, Key, read_settings, write_settings
from diffjax.pretrained.unet2d import same_unet
from diffjax.pretrained.unet_condition import ENCODER_KEYS, NAMES, read_encoder, write_encoder
from diffjax.pretrained.weights import UnsupportedError

_KEYS = {
    **ENCODER_KEYS,
    # diffusers makes the projection, and leaves it unused
    "encoder_hid_dim": Key(None, only=(None,)),
    "mid_block_type": Key(
        "UNetMidBlock2DCrossAttn", only=("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
    ),
    "addition_embed_type": Key(None, only=(None, "text", "text_time")),
    "class_embed_type": Key(None, only=(None, "timestep", "identity", "projection")),
}


def _read_encoder(saved: Mapping[str, Any]) -> dict[str, Any]:
    if saved["class_embed_type"] == "timestep" and saved["act_fn"] not in ("silu", "swish"):
        # diffusers embeds such a label with SiLU, unlike the time, and unlike its UNets
        raise UnsupportedError(
            f"config.json: act_fn is {saved['act_fn']!r} beside class_embed_type 'timestep'; "
            "supported: 'silu', 'swish'"
        )
    return read_encoder(saved)


# the part that is a UNet's
_ENCODER = Architecture(
    class_name="ControlNetModel",
    make=UNetConfig,
    build=unet,
    keys=_KEYS,
    read=_read_encoder,
    write=write_encoder,
)


def _same(config: ControlNetConfig) -> ControlNetConfig:
    """A configuration as folders are read, without what only the way up of its UNet has."""
    encoder = same_unet(config.encoder)
    context = encoder.context and replace(encoder.context, up_depth=None)
    way_up = {"up_attention": encoder.attention, "upsample": encoder.downsample}
    dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    notes = {"sample_size": None, "out_channels": encoder.in_channels}
    return replace(config, encoder=replace(encoder, context=context, **way_up, **dtypes, **notes))


CONTROLNET = Architecture(
    class_name="ControlNetModel",
    make=ControlNetConfig,
    build=controlnet,
    keys={
        **{name: Key(key.default) for name, key in _KEYS.items()},
        "conditioning_channels": Key(3, "condition_channels"),
        "conditioning_embedding_out_channels": Key((16, 32, 96, 256), "condition_widths"),
        "controlnet_conditioning_channel_order": Key(
            "rgb",
            "bgr",
            only=("rgb", "bgr"),
            read=lambda order: order == "bgr",
            write=lambda bgr: "bgr" if bgr else "rgb",
        ),
        "global_pool_conditions": Key(False, "pooled"),
    },
    names=NAMES,
    read=lambda saved: {"encoder": read_settings(_ENCODER, saved)},
    write=lambda config: write_settings(_ENCODER, config.encoder),
    same=_same,
)


def controlnet_of_unet(config: UNetConfig, **changes: Any) -> ControlNetConfig:
    """The ControlNet of a UNet, as a folder can hold it: what only the way up has is left out.

    Args:
      config: of the UNet.
      **changes: fields of `ControlNetConfig`, such as condition_widths.

    Raises:
      UnsupportedError: no folder of a ControlNet can hold the UNet's way down.

    >>> from diffjax.networks.unet_latent_presets import sd1_unet
    >>> controlnet_of_unet(sd1_unet()).encoder.block_out_channels
    (320, 640, 1280, 1280)
    """
    saved = write_settings(CONTROLNET, ControlNetConfig(config))
    options = {"dtype": "float32", "param_dtype": "float32"}
    return replace(read_settings(CONTROLNET, saved, **options), **changes)
