"""The folders of diffusers' UNet2DModel.

NCSN++ is of the same class, with Skip blocks, whose modules have other names and whose norms count
their groups in another way.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.pretrained.architecture import Architecture, Key
from diffjax.pretrained.weights import UnsupportedError

TIME_EMBEDDINGS = {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"}

# block type -> (attention, how it resizes; None as downsample_type or upsample_type says)
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "SkipDownBlock2D": (False, "fir"),
    "AttnSkipDownBlock2D": (True, "fir"),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "SkipUpBlock2D": (False, "fir"),
    "AttnSkipUpBlock2D": ("last", "fir"),
}

# names of modules in the Skip blocks -> ours
SKIP_NAMES = {
    "resnet_down": "downsamplers.0",
    "resnet_up": "upsamplers.0",
    "skip_conv": "pyramid.conv",
    "skip_norm": "pyramid.norm",
}

OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def inverse(scale: float) -> float:
    """1 / scale, without the error of rounding where that is what made the number unround."""
    rounded = round(1 / scale, 12)
    return rounded if 1 / rounded == scale else 1 / scale


# keys of residual blocks, with diffusers' values for absent ones, the same in all of its UNets
RESIDUAL_KEYS: dict[str, Key] = {
    "freq_shift": Key(0, "freq_shift"),
    "downsample_padding": Key(1, "downsample_padding", only=(0, 1)),
    "mid_block_scale_factor": Key(
        1,
        "mid_residual_scale",
        read=lambda factor: 1 / factor,
        write=lambda scale: 1 if scale is None else inverse(scale),
    ),
    "act_fn": Key("silu", "activation", only=("silu", "swish", "mish", "gelu", "relu")),
    "norm_eps": Key(1e-5, "norm_eps"),
    "resnet_time_scale_shift": Key(
        "default",
        "scale_shift",
        only=("default", "scale_shift"),
        read=lambda kind: kind == "scale_shift",
        write=lambda on: "scale_shift" if on else "default",
    ),
}


def _one_integer(layers: Any) -> int:
    if not isinstance(layers, int):
        raise UnsupportedError(
            f"config.json: layers_per_block is {layers!r}; supported: one integer"
        )
    return layers


def same_unet(config: UNetConfig) -> UNetConfig:
    """A configuration in the spelling in which folders are read, without what training alone needs.

    The null label is one more class there.
    """
    levels, up = len(config.block_out_channels), config.up_attention or config.attention
    each = lambda kinds: (kinds,) * levels if isinstance(kinds, str) else tuple(kinds)
    scale, groups = config.mid_residual_scale, config.mid_attention_groups
    beside = config.num_groups if config.end_groups is None else config.end_groups
    inside = {True, "last", "extended"} & {*config.attention, *up, config.mid_attention}
    return replace(
        config,
        up_attention=up,
        downsample=each(config.downsample),
        upsample=each(config.upsample),
        # the inverse of an inverse is a number to a last digit
        residual_scale=round(config.residual_scale, 12),
        mid_residual_scale=round(config.residual_scale if scale is None else scale, 12),
        mid_attention_groups=beside if groups is None else groups,
        # of transformers the context has the number of heads
        head_dim=config.head_dim if inside else None,
        num_classes=written_classes(config),
        cond_drop_prob=0.0,
        zero_init=True,
        remat=False,
    )


def written_classes(config: UNetConfig) -> int | None:
    """Rows of the table of labels, the null label among them."""
    if config.num_classes is None:
        return None
    return config.num_classes + (config.cond_drop_prob > 0)


def present_name(name: str) -> str:
    """The name of a tensor in attention, from that in older files.

    >>> present_name("mid_block.attentions.0.proj_attn.weight")
    'mid_block.attentions.0.to_out.0.weight'
    """
    pattern = rf"(?<=\.)(attentions\.\d+)\.({'|'.join(OLD_ATTENTION_NAMES)})(?=\.)"
    return re.sub(pattern, lambda found: f"{found[1]}.{OLD_ATTENTION_NAMES[found[2]]}", name)


def block_kinds(
    saved: Mapping[str, Any], key: str, known: Mapping[str, tuple], resize: str | None = None
) -> list[tuple[bool | str, str]]:
    """For each block type in saved[key]: its attention, and how it resizes."""
    kinds = [kind.removeprefix("UNetRes") for kind in saved[key]]
    for kind in kinds:
        if kind not in known:
            raise UnsupportedError(
                f"config.json: {key} has {kind!r}; supported: {', '.join(map(repr, known))}"
            )
    return [(known[kind][0], known[kind][1] or resize or "conv") for kind in kinds]


def named_blocks(known: Mapping[str, Any], attention: Any, resize: Any) -> list[str]:
    """The block types of all levels; "None" for one that there is none for."""
    resizes = (resize,) * len(attention) if isinstance(resize, str) else resize
    return [str(name_of(known, pair)) for pair in zip(attention, resizes)]


def name_of(table: Mapping[Any, Any], value: Any) -> Any:
    """The first name of a value in a table; None if there is none."""
    return next((name for name, each in table.items() if each == value), None)


def _read_blocks(saved: Mapping[str, Any]) -> dict[str, Any]:
    down = block_kinds(saved, "down_block_types", DOWN_BLOCKS, saved["downsample_type"])
    up = block_kinds(saved, "up_block_types", UP_BLOCKS, saved["upsample_type"])[::-1]
    kind = saved["time_embedding_type"]
    return {
        "attention": tuple(bool(attention) for attention, _ in down),
        "up_attention": tuple(attention for attention, _ in up),
        "mid_block": saved["mid_block_type"] is not None,
        "downsample": tuple(resize for _, resize in down),
        "upsample": tuple(resize for _, resize in up),
        "time_embedding": TIME_EMBEDDINGS[kind],
        "sigma_clock": kind == "fourier",
        "num_times": saved["num_train_timesteps"] if kind == "learned" else None,
        # random frequencies are in one order there, whatever this key says
        "flip_sin_to_cos": saved["flip_sin_to_cos"] and kind != "fourier",
        "num_classes": None if saved["class_embed_type"] else saved["num_class_embeds"],
        "class_embedding": saved["class_embed_type"] or "table",
    }


def _read_norms(saved: Mapping[str, Any]) -> dict[str, Any]:
    # without a number of its own, the middle attention has no norm in scale_shift networks
    silent = saved["resnet_time_scale_shift"] == "scale_shift"
    groups = saved["attn_norm_num_groups"] or (0 if silent else None)
    return {"mid_attention_groups": groups}


def _read(saved: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (*saved["down_block_types"], *saved["up_block_types"])
    groups = saved["norm_num_groups"]
    if groups is None:
        raise UnsupportedError(f"config.json: norm_num_groups is None; {kinds[0]} needs an integer")
    blocks = _read_blocks(saved)
    if any("Skip" in kind for kind in kinds):
        _read_skip(saved)
    return {**blocks, **_read_norms(saved), "num_groups": groups}


def _read_skip(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What the Skip blocks of NCSN++ have of their own."""
    kinds = (*saved["down_block_types"], *saved["up_block_types"])
    if not all("Skip" in kind for kind in kinds):
        raise UnsupportedError(
            "config.json: down_block_types and up_block_types mix Skip blocks with others: "
            f"{', '.join(kinds)}; supported: all of them Skip blocks, or none"
        )
    _require_joined_groups(saved)
    return {
        **_read_blocks(saved),
        **_read_norms(saved),
        "num_groups": None,
        "end_groups": saved["norm_num_groups"],
        # 32 in the levels with attention, whatever their channels
        "attention_groups": 32,
        "joined_groups": 32,
        "residual_scale": 0.5**0.5,
        "progressive_input": "sum",
        "progressive_output": True,
    }


def _require_joined_groups(saved: Mapping[str, Any]) -> None:
    """AttnSkipUpBlock2D gives its first norm min(h + skip / 4, 32) groups: 32 almost always."""
    channels = saved["block_out_channels"]
    entering = [channels[-1], *channels[:0:-1]]
    for kind, h, skip in zip(saved["up_block_types"], entering, channels[::-1]):
        if kind.endswith("AttnSkipUpBlock2D") and h + skip // 4 < 32:
            raise UnsupportedError(
                f"config.json: up_block_types has 'AttnSkipUpBlock2D' behind a level of {h} "
                "channels; supported: at least 24"
            )


def _write(config: UNetConfig) -> dict[str, Any]:
    implied = config.mid_attention_groups is None and not config.scale_shift
    config = same_unet(config)
    up = config.up_attention or config.attention
    # blocks with attention resize as one key says for all of them
    resize = {
        name: next((how for has, how in zip(attention, kinds) if has and how != "fir"), "conv")
        for name, attention, kinds in (
            ("downsample_type", config.attention, config.downsample),
            ("upsample_type", up, config.upsample),
        )
    }
    named = lambda known, attention, kinds, how: named_blocks(
        {name: (has, each or how) for name, (has, each) in known.items()}, attention, kinds
    )
    down = named(DOWN_BLOCKS, config.attention, config.downsample, resize["downsample_type"])
    up_blocks = named(UP_BLOCKS, up[::-1], config.upsample[::-1], resize["upsample_type"])
    return {
        **resize,
        "down_block_types": down,
        "up_block_types": up_blocks,
        "mid_block_type": "UNetMidBlock2D" if config.mid_block else None,
        "norm_num_groups": config.end_groups if config.num_groups is None else config.num_groups,
        "attn_norm_num_groups": None if implied else config.mid_attention_groups or None,
        "time_embedding_type": name_of(TIME_EMBEDDINGS, config.time_embedding),
        "flip_sin_to_cos": config.flip_sin_to_cos or config.time_embedding == "fourier",
        "num_train_timesteps": config.num_times,
        "num_class_embeds": config.num_classes,
        "class_embed_type": None if config.class_embedding == "table" else config.class_embedding,
    }


UNET_2D = Architecture(
    class_name="UNet2DModel",
    make=UNetConfig,
    build=unet,
    keys={
        **RESIDUAL_KEYS,
        "sample_size": Key(None, "sample_size"),
        "in_channels": Key(3, "in_channels"),
        "out_channels": Key(3, "out_channels"),
        "center_input_sample": Key(False, "center_input"),
        "time_embedding_type": Key("positional", only=tuple(TIME_EMBEDDINGS)),
        "time_embedding_dim": Key(None, "time_features"),
        "flip_sin_to_cos": Key(True),
        "down_block_types": Key(("DownBlock2D", *["AttnDownBlock2D"] * 3)),
        "mid_block_type": Key("UNetMidBlock2D", only=("UNetMidBlock2D", None)),
        "up_block_types": Key((*["AttnUpBlock2D"] * 3, "UpBlock2D")),
        "block_out_channels": Key((224, 448, 672, 896), "block_out_channels"),
        "layers_per_block": Key(2, "layers_per_block", read=_one_integer),
        "downsample_type": Key("conv", only=("conv", "resnet", None)),
        "upsample_type": Key("conv", only=("conv", "resnet", None)),
        "dropout": Key(0.0, "dropout"),
        "attention_head_dim": Key(8, "head_dim"),
        "norm_num_groups": Key(32),
        "attn_norm_num_groups": Key(None),
        "add_attention": Key(True, "mid_attention"),
        "class_embed_type": Key(None, only=(None, "timestep", "identity")),
        "num_class_embeds": Key(None),
        "num_train_timesteps": Key(None),
    },
    present=present_name,
    read=_read,
    write=_write,
    same=same_unet,
)

# the second says what is wrong with settings that neither can follow
UNETS_2D = (UNET_2D._replace(names=SKIP_NAMES, read=_read_skip), UNET_2D)
