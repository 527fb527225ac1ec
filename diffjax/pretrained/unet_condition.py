"""The folders of diffusers' UNet2DConditionModel."""

from collections.abc import Mapping
from typing import Any

from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import ContextConfig
from diffjax.pretrained.architecture import FEED_FORWARD, Architecture, Key
from diffjax.pretrained.unet2d import (
    RESIDUAL_KEYS,
    block_kinds,
    inverse,
    name_of,
    named_blocks,
    present_name,
    same_unet,
    written_classes,
)
from diffjax.pretrained.weights import UnsupportedError

# block type -> (attention, how it resizes)
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "CrossAttnDownBlock2D": ("transformer", "conv"),
    "SimpleCrossAttnDownBlock2D": ("extended", "resnet"),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "CrossAttnUpBlock2D": ("transformer", "conv"),
    "SimpleCrossAttnUpBlock2D": ("extended", "resnet"),
}

# mid_block_type -> (mid_block, mid_attention, mid_layers)
MID_BLOCKS = {
    "UNetMidBlock2DCrossAttn": (True, "transformer", 1),
    "UNetMidBlock2DSimpleCrossAttn": (True, "extended", 1),
    "UNetMidBlock2D": (True, False, 0),
    None: (False, False, 0),
}

CLASS_EMBEDDINGS = {
    None: "table",
    "timestep": "timestep",
    "identity": "identity",
    "projection": "projection",
    "simple_projection": "linear",
}
PROJECTIONS = {
    None: None,
    "text_proj": "text",
    "image_proj": "image",
    "text_image_proj": "text_image",
}
CONTEXT_NORMS = {None: None, "layer_norm": "layer", "group_norm": "group"}

# keys of the way down, which a ControlNet has too
ENCODER_KEYS: dict[str, Key] = {
    **RESIDUAL_KEYS,
    "in_channels": Key(4, "in_channels"),
    "flip_sin_to_cos": Key(True, "flip_sin_to_cos"),
    "block_out_channels": Key((320, 640, 1280, 1280), "block_out_channels"),
    "layers_per_block": Key(2, "layers_per_block"),
    "norm_num_groups": Key(32, "num_groups"),
    "num_class_embeds": Key(None),
    "class_embed_type": Key(None, only=tuple(CLASS_EMBEDDINGS)),
    "down_block_types": Key((*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")),
    "mid_block_type": Key("UNetMidBlock2DCrossAttn", only=tuple(MID_BLOCKS)),
    "only_cross_attention": Key(False),
    "cross_attention_dim": Key(1280),
    "transformer_layers_per_block": Key(1),
    "encoder_hid_dim": Key(None),
    "encoder_hid_dim_type": Key(None, only=tuple(PROJECTIONS)),
    "attention_head_dim": Key(8),
    "num_attention_heads": Key(None, only=(None,)),
    "use_linear_projection": Key(False),
    "addition_embed_type": Key(
        None, only=(None, "text", "image", "text_image", "text_time", "image_hint")
    ),
    "addition_time_embed_dim": Key(None),
    "addition_embed_type_num_heads": Key(64),
    "projection_class_embeddings_input_dim": Key(None),
}

# whole parts of stored names -> ours
NAMES = {
    **FEED_FORWARD,
    # the activations between the convolutions count
    **{f"input_hint_block.{2 * i}": f"input_hint_block.{i}" for i in range(1, 8)},
}


def read_encoder(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a UNetConfig that follow from several of the ENCODER_KEYS."""
    if saved["norm_num_groups"] is None:
        raise UnsupportedError("config.json: norm_num_groups is None; supported: an integer")
    down = block_kinds(saved, "down_block_types", DOWN_BLOCKS)
    middle = MID_BLOCKS[saved["mid_block_type"]]
    labelled, classes = saved["class_embed_type"], saved["num_class_embeds"]
    projected = labelled in ("projection", "simple_projection")
    return {
        "attention": tuple(attention for attention, _ in down),
        "downsample": tuple(resize for _, resize in down),
        **dict(zip(("mid_block", "mid_attention", "mid_layers"), middle)),
        "head_dim": saved["attention_head_dim"],
        "outer_activation": saved["act_fn"],
        "num_classes": classes if labelled is None else None,
        "class_embedding": CLASS_EMBEDDINGS[labelled],
        "class_features": saved["projection_class_embeddings_input_dim"] if projected else None,
        "context": ContextConfig(**_read_context(saved)),
    }


def _read_context(saved: Mapping[str, Any]) -> dict[str, Any]:
    projected, projection = saved["encoder_hid_dim"], saved["encoder_hid_dim_type"]
    if projected is not None and projection is None:
        projection = "text_proj"
    only = saved["only_cross_attention"]
    only_middle = saved.get("mid_block_only_cross_attention")
    if only_middle is None:
        only_middle = only is True
    told_sizes = saved["addition_embed_type"] == "text_time"
    reverse = saved.get("reverse_transformer_layers_per_block")
    return {
        "features": saved["cross_attention_dim"],
        "num_heads": saved["attention_head_dim"],
        "depth": saved["transformer_layers_per_block"],
        "up_depth": None if reverse is None else reverse[::-1],
        "linear_projection": saved["use_linear_projection"],
        "only_context": only,
        "mid_only_context": only_middle,
        "norm": CONTEXT_NORMS[saved.get("cross_attention_norm")],
        "projection": PROJECTIONS[projection],
        "projected_features": projected,
        "added": saved["addition_embed_type"],
        "added_features": (saved["projection_class_embeddings_input_dim"] if told_sizes else None),
        "added_heads": saved["addition_embed_type_num_heads"],
        "time_id_features": saved["addition_time_embed_dim"],
        "time_cond_features": saved.get("time_cond_proj_dim"),
    }


def write_encoder(config: UNetConfig) -> dict[str, Any]:
    """The inverse of `read_encoder`, for a configuration with a context."""
    context = config.context or ContextConfig()
    middle = config.mid_block, config.mid_attention, config.mid_layers
    return {
        "down_block_types": named_blocks(DOWN_BLOCKS, config.attention, config.downsample),
        "mid_block_type": name_of(MID_BLOCKS, middle),
        "attention_head_dim": context.num_heads,
        "num_class_embeds": written_classes(config),
        "class_embed_type": name_of(CLASS_EMBEDDINGS, config.class_embedding),
        "projection_class_embeddings_input_dim": config.class_features or context.added_features,
        "cross_attention_dim": context.features,
        "transformer_layers_per_block": context.depth,
        "use_linear_projection": context.linear_projection,
        "only_cross_attention": context.only_context,
        "encoder_hid_dim": context.projected_features,
        "encoder_hid_dim_type": name_of(PROJECTIONS, context.projection),
        "addition_embed_type": context.added,
        "addition_embed_type_num_heads": context.added_heads,
        "addition_time_embed_dim": context.time_id_features,
    }


def _read(saved: Mapping[str, Any]) -> dict[str, Any]:
    up = block_kinds(saved, "up_block_types", UP_BLOCKS)[::-1]
    fields = read_encoder(saved)
    scale, plain = 1 / saved["resnet_out_scale_factor"], saved["resnet_skip_time_act"]
    kinds = {*saved["down_block_types"], *saved["up_block_types"]}
    others = sorted(kind for kind in kinds if "Resnet" not in kind and "Simple" not in kind)
    # in these blocks both are without effect
    if (scale != 1 or plain) and others:
        raise UnsupportedError(
            "config.json: resnet_out_scale_factor and resnet_skip_time_act beside "
            f"{', '.join(map(repr, others))}; supported: Resnet and SimpleCrossAttn blocks alone"
        )
    if plain and saved["mid_block_type"] not in ("UNetMidBlock2DSimpleCrossAttn", None):
        raise UnsupportedError(
            f"config.json: resnet_skip_time_act beside {saved['mid_block_type']!r}; supported: "
            "'UNetMidBlock2DSimpleCrossAttn', None"
        )
    heads = saved["attention_head_dim"]
    own = sorted({"AttnUpBlock2D", "SimpleCrossAttnUpBlock2D"} & kinds)
    if own and isinstance(heads, tuple) and heads != heads[::-1]:
        # diffusers takes the entries of these blocks in the order of the way down
        raise UnsupportedError(
            f"config.json: attention_head_dim is {heads} beside {', '.join(map(repr, own))}; "
            "supported: one integer, or the same in reverse"
        )
    return {
        **fields,
        **_read_time(saved),
        "up_attention": tuple(attention for attention, _ in up),
        "upsample": tuple(resize for _, resize in up),
        "residual_scale": scale,
        "plain_time": plain,
        "end_windows": (saved["conv_in_kernel"], saved["conv_out_kernel"]),
    }


def _read_time(saved: Mapping[str, Any]) -> dict[str, Any]:
    features = saved["time_embedding_dim"]
    if saved["time_embedding_type"] == "positional":
        return {"time_features": features}
    only = 2 * saved["block_out_channels"][0]
    if features not in (None, only):
        raise UnsupportedError(
            f"config.json: time_embedding_dim is {features} of 'fourier'; supported: {only}, None"
        )
    return {"time_embedding": "fourier", "time_features": only, "fourier_scale": 1.0}


def _write(config: UNetConfig) -> dict[str, Any]:
    context, up_attention = config.context or ContextConfig(), config.up_attention
    upsample = config.upsample if isinstance(config.upsample, str) else config.upsample[::-1]
    up = config.attention if up_attention is None else up_attention
    reverse = context.up_depth
    return {
        **write_encoder(config),
        "up_block_types": named_blocks(UP_BLOCKS, up[::-1], upsample),
        "reverse_transformer_layers_per_block": (
            reverse[::-1] if isinstance(reverse, tuple) else reverse
        ),
        "mid_block_only_cross_attention": context.mid_only_context,
        "cross_attention_norm": name_of(CONTEXT_NORMS, context.norm),
        "time_cond_proj_dim": context.time_cond_features,
        "time_embedding_type": "fourier" if config.time_embedding == "fourier" else "positional",
        "time_embedding_dim": config.time_features,
        "resnet_out_scale_factor": inverse(config.residual_scale),
        "resnet_skip_time_act": config.plain_time,
        "conv_in_kernel": config.end_windows[0],
        "conv_out_kernel": config.end_windows[1],
    }


UNET_CONDITION = Architecture(
    class_name="UNet2DConditionModel",
    make=UNetConfig,
    build=unet,
    keys={
        **ENCODER_KEYS,
        "sample_size": Key(None, "sample_size"),
        "out_channels": Key(4, "out_channels"),
        "center_input_sample": Key(False, "center_input"),
        "dropout": Key(0.0, "dropout"),
        "class_embeddings_concat": Key(False, "class_concat"),
        "up_block_types": Key(("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)),
        "reverse_transformer_layers_per_block": Key(None),
        "mid_block_only_cross_attention": Key(None),
        "cross_attention_norm": Key(None, only=tuple(CONTEXT_NORMS)),
        "time_cond_proj_dim": Key(None),
        "resnet_out_scale_factor": Key(1.0),
        "resnet_skip_time_act": Key(False),
        "conv_in_kernel": Key(3),
        "conv_out_kernel": Key(3),
        "time_embedding_type": Key("positional", only=("positional", "fourier")),
        "time_embedding_dim": Key(None),
        "time_embedding_act_fn": Key(None, only=(None,)),
        "timestep_post_act": Key(None, only=(None,)),
        "dual_cross_attention": Key(False, only=(False,)),
        "attention_type": Key("default", only=("default",)),
    },
    names=NAMES,
    present=present_name,
    read=_read,
    write=_write,
    same=same_unet,
)
