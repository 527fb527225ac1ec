"""The folders of diffusers' UNets of videos: UNet3DConditionModel and UNetMotionModel."""

from collections.abc import Mapping
from typing import Any

from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import ContextConfig, at_level
from diffjax.networks.unet_frames import FramesConfig
from diffjax.pretrained.architecture import Architecture, Key
from diffjax.pretrained.unet2d import block_kinds, named_blocks, same_unet
from diffjax.pretrained.unet_condition import ENCODER_KEYS, NAMES
from diffjax.pretrained.weights import UnsupportedError

# the blocks of both classes, less the ending of their names
DOWN_BLOCKS = {"DownBlock": (False, "conv"), "CrossAttnDownBlock": ("transformer", "conv")}
UP_BLOCKS = {"UpBlock": (False, "conv"), "CrossAttnUpBlock": ("transformer", "conv")}

_KEYS = {
    **{
        name: ENCODER_KEYS[name]
        for name in (
            "in_channels",
            "block_out_channels",
            "layers_per_block",
            "downsample_padding",
            "mid_block_scale_factor",
            "norm_num_groups",
            "norm_eps",
        )
    },
    # another one would be that of the blocks and of the time alone, not that of the output
    "act_fn": Key("silu", "activation", only=("silu", "swish")),
    "sample_size": Key(None, "sample_size"),
    "out_channels": Key(4, "out_channels"),
    "time_cond_proj_dim": Key(None),
}


def _default_blocks(ending: str) -> dict[str, Key]:
    return {
        "down_block_types": Key((*[f"CrossAttnDownBlock{ending}"] * 3, f"DownBlock{ending}")),
        "up_block_types": Key((f"UpBlock{ending}", *[f"CrossAttnUpBlock{ending}"] * 3)),
    }


def _read_blocks(saved: Mapping[str, Any], ending: str) -> dict[str, Any]:
    if saved["norm_num_groups"] is None:
        raise UnsupportedError("config.json: norm_num_groups is None; supported: an integer")
    named = lambda blocks: {f"{name}{ending}": pair for name, pair in blocks.items()}
    down = block_kinds(saved, "down_block_types", named(DOWN_BLOCKS))
    up = block_kinds(saved, "up_block_types", named(UP_BLOCKS))[::-1]
    return {
        "attention": tuple(attention for attention, _ in down),
        "up_attention": tuple(attention for attention, _ in up),
        "mid_attention": "transformer",
    }


def _write_blocks(config: UNetConfig, ending: str) -> dict[str, Any]:
    up = config.attention if config.up_attention is None else config.up_attention
    down = named_blocks(DOWN_BLOCKS, config.attention, config.downsample)
    return {
        "down_block_types": [f"{name}{ending}" for name in down],
        "up_block_types": [
            f"{name}{ending}" for name in named_blocks(UP_BLOCKS, up[::-1], config.upsample)
        ],
    }


def _read_3d(saved: Mapping[str, Any]) -> dict[str, Any]:
    head_dim, channels = saved["attention_head_dim"], saved["block_out_channels"]
    if not isinstance(head_dim, int):
        raise UnsupportedError(
            f"config.json: attention_head_dim is {head_dim}; supported: an integer"
        )
    heads = tuple(width // head_dim for width in channels)
    context = ContextConfig(
        features=saved["cross_attention_dim"],
        num_heads=heads,
        linear_projection=True,
        time_cond_features=saved["time_cond_proj_dim"],
    )
    frames = FramesConfig("convolution", num_heads=heads, first_head_dim=head_dim)
    return {
        **_read_blocks(saved, "3D"),
        "context": context,
        "frames": frames,
    }


def _write_3d(config: UNetConfig) -> dict[str, Any]:
    context, frames = config.context or ContextConfig(), config.frames or FramesConfig()
    return {
        **_write_blocks(config, "3D"),
        "attention_head_dim": frames.first_head_dim,
        "cross_attention_dim": context.features,
        "time_cond_proj_dim": context.time_cond_features,
    }


_WAVES = {"flip_sin_to_cos": True, "freq_shift": 0}

UNET_3D = Architecture(
    class_name="UNet3DConditionModel",
    make=UNetConfig,
    build=unet,
    keys={
        **_KEYS,
        **_default_blocks("3D"),
        "layers_per_block": Key(2, "layers_per_block"),
        "cross_attention_dim": Key(1024),
        "attention_head_dim": Key(64),
        "num_attention_heads": Key(None, only=(None,)),
    },
    names={
        **NAMES,
        # the activations and dropouts between norm and convolution count
        **{f"conv{i}.0": f"conv{i}.norm" for i in range(1, 5)},
        "conv1.2": "conv1.conv",
        **{f"conv{i}.3": f"conv{i}.conv" for i in range(2, 5)},
    },
    fixed=_WAVES,
    read=_read_3d,
    write=_write_3d,
    same=same_unet,
)


def _read_motion(saved: Mapping[str, Any]) -> dict[str, Any]:
    depth = saved["transformer_layers_per_block"]
    last = at_level(depth, -1)
    middle = saved["transformer_layers_per_mid_block"]
    if middle not in (None, last if isinstance(last, int) else 1):
        raise UnsupportedError(
            f"config.json: transformer_layers_per_mid_block is {middle}; supported: as many as the "
            f"last level has ({last}), or None"
        )
    told_sizes = saved["addition_embed_type"] == "text_time"
    context = ContextConfig(
        features=saved["cross_attention_dim"],
        num_heads=saved["num_attention_heads"],
        depth=depth,
        up_depth=_reversed(saved["reverse_transformer_layers_per_block"]),
        linear_projection=saved["use_linear_projection"],
        added=saved["addition_embed_type"],
        added_features=saved["projection_class_embeddings_input_dim"] if told_sizes else None,
        time_id_features=saved["addition_time_embed_dim"],
        time_cond_features=saved["time_cond_proj_dim"],
    )
    frames = FramesConfig(
        "motion",
        num_heads=saved["motion_num_attention_heads"],
        depth=saved["temporal_transformer_layers_per_block"],
        up_depth=_reversed(saved["reverse_temporal_transformer_layers_per_block"]),
        mid_depth=(
            saved["temporal_transformer_layers_per_mid_block"]
            if saved["use_motion_mid_block"]
            else 0
        ),
        max_frames=saved["motion_max_seq_length"],
    )
    return {**_read_blocks(saved, "Motion"), "context": context, "frames": frames}


def _write_motion(config: UNetConfig) -> dict[str, Any]:
    context, frames = config.context or ContextConfig(), config.frames or FramesConfig()
    return {
        **_write_blocks(config, "Motion"),
        "cross_attention_dim": context.features,
        "num_attention_heads": context.num_heads,
        "transformer_layers_per_block": context.depth,
        "reverse_transformer_layers_per_block": _reversed(context.up_depth),
        "use_linear_projection": context.linear_projection,
        "addition_embed_type": context.added,
        "projection_class_embeddings_input_dim": context.added_features,
        "addition_time_embed_dim": context.time_id_features,
        "time_cond_proj_dim": context.time_cond_features,
        "motion_num_attention_heads": frames.num_heads,
        "motion_max_seq_length": frames.max_frames,
        "temporal_transformer_layers_per_block": frames.depth,
        "reverse_temporal_transformer_layers_per_block": _reversed(frames.up_depth),
        "temporal_transformer_layers_per_mid_block": frames.mid_depth or 1,
        "use_motion_mid_block": frames.mid_depth > 0,
    }


def _reversed(depths: Any) -> Any:
    return depths[::-1] if isinstance(depths, tuple) else depths


UNET_MOTION = Architecture(
    class_name="UNetMotionModel",
    make=UNetConfig,
    build=unet,
    keys={
        **_KEYS,
        **_default_blocks("Motion"),
        "cross_attention_dim": Key(1280),
        "transformer_layers_per_block": Key(1),
        "reverse_transformer_layers_per_block": Key(None),
        "temporal_transformer_layers_per_block": Key(1),
        "reverse_temporal_transformer_layers_per_block": Key(None),
        "transformer_layers_per_mid_block": Key(None),
        "temporal_transformer_layers_per_mid_block": Key(1),
        "use_linear_projection": Key(False),
        "num_attention_heads": Key(8),
        "motion_max_seq_length": Key(32),
        "motion_num_attention_heads": Key(8),
        "reverse_motion_num_attention_heads": Key(None, only=(None,)),
        "use_motion_mid_block": Key(True),
        "mid_block_layers": Key(1, "mid_layers"),
        "encoder_hid_dim": Key(None, only=(None,)),
        "encoder_hid_dim_type": Key(None, only=(None,)),
        "addition_embed_type": Key(None, only=(None, "text_time")),
        "addition_time_embed_dim": Key(None),
        "projection_class_embeddings_input_dim": Key(None),
    },
    names=NAMES,
    fixed=_WAVES,
    read=_read_motion,
    write=_write_motion,
    same=same_unet,
)
