"""diffusers' UNet2DModel folders as a UNetConfig and params."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffjax.networks.functional import Params
from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.pretrained.folders import read_config, read_tensors
from diffjax.pretrained.weights import UnsupportedError, to_params

# what a key means that is absent from config.json
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

TIME_EMBEDDINGS = {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"}

# the values that the UNet here can follow, for keys that it cannot follow everywhere
SUPPORTED: dict[str, tuple] = {
    "time_embedding_type": tuple(TIME_EMBEDDINGS),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}

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


def load_unet2d(
    folder: str | Path, *, dtype: str = "float32", param_dtype: str = "float32"
) -> tuple[UNetConfig, Params]:
    """Read a saved UNet2DModel: its configuration and its params.

        config, params = load_unet2d(folder)
        apply = unet(config).apply

    Args:
      folder: holds config.json and one or more *.safetensors.
      dtype: of the computation in the network.
      param_dtype: to which the stored floating tensors are cast.

    Raises:
      UnsupportedError: names the key and the value of config.json that the UNet cannot follow.
      FileNotFoundError, ValueError: files are missing, damaged, or do not fit each other.
    """
    config = unet2d_config(read_config(folder), dtype=dtype, param_dtype=param_dtype)
    shapes = jax.eval_shape(unet(config).init, jax.random.key(0))
    return config, to_params(read_tensors(folder), shapes, rename=present_name)


def unet2d_config(
    settings: dict[str, Any], *, dtype: str = "float32", param_dtype: str = "float32"
) -> UNetConfig:
    """The UNetConfig of a UNet2DModel's config.json.

    Missing keys have diffusers' defaults; keys that UNet2DModel does not have are ignored, as
    diffusers does.

    Raises:
      UnsupportedError: names the key and the value that the UNet cannot follow.
      ValueError: the values do not fit each other.

    >>> settings = {"block_out_channels": [32, 64], "down_block_types": ["DownBlock2D"] * 2,
    ...             "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    >>> unet2d_config(settings).up_attention
    (False, True)
    """
    saved = {**DEFAULTS, **settings}
    _require_supported(saved)
    down = block_kinds(saved, "down_block_types", DOWN_BLOCKS, saved["downsample_type"])
    up = block_kinds(saved, "up_block_types", UP_BLOCKS, saved["upsample_type"])[::-1]
    learned = saved["time_embedding_type"] == "learned"
    size = saved["sample_size"]
    return UNetConfig(
        sample_size=tuple(size) if isinstance(size, list) else size,
        in_channels=saved["in_channels"],
        out_channels=saved["out_channels"],
        block_out_channels=tuple(saved["block_out_channels"]),
        layers_per_block=saved["layers_per_block"],
        attention=tuple(bool(attention) for attention, _ in down),
        up_attention=tuple(attention for attention, _ in up),
        mid_block=saved["mid_block_type"] is not None,
        mid_attention=saved["add_attention"],
        head_dim=saved["attention_head_dim"],
        norm_eps=saved["norm_eps"],
        activation=saved["act_fn"],
        scale_shift=saved["resnet_time_scale_shift"] == "scale_shift",
        mid_residual_scale=1 / saved["mid_block_scale_factor"],
        downsample=tuple(resize for _, resize in down),
        upsample=tuple(resize for _, resize in up),
        downsample_padding=saved["downsample_padding"],
        dropout=saved["dropout"],
        time_features=saved["time_embedding_dim"],
        time_embedding=TIME_EMBEDDINGS[saved["time_embedding_type"]],
        sigma_clock=saved["time_embedding_type"] == "fourier",
        num_times=saved["num_train_timesteps"] if learned else None,
        # random frequencies are in one order there, whatever this key says
        flip_sin_to_cos=saved["flip_sin_to_cos"] and saved["time_embedding_type"] != "fourier",
        freq_shift=saved["freq_shift"],
        num_classes=None if saved["class_embed_type"] else saved["num_class_embeds"],
        class_embedding=saved["class_embed_type"] or "table",
        center_input=saved["center_input_sample"],
        dtype=dtype,
        param_dtype=param_dtype,
        **_norms(saved),
    )


def present_name(name: str) -> str:
    """The name in our UNet of a tensor in a Skip block, or in attention as older files name it.

    >>> present_name("mid_block.attentions.0.proj_attn.weight")
    'mid_block.attentions.0.to_out.0.weight'
    >>> present_name("up_blocks.0.skip_norm.bias")
    'up_blocks.0.pyramid.norm.bias'
    """
    skip, old = "|".join(SKIP_NAMES), "|".join(OLD_ATTENTION_NAMES)
    name = re.sub(
        rf"^((?:down|up)_blocks\.\d+)\.({skip})(?=\.)",
        lambda found: f"{found[1]}.{SKIP_NAMES[found[2]]}",
        name,
    )
    pattern = rf"(?<=\.)(attentions\.\d+)\.({old})(?=\.)"
    return re.sub(pattern, lambda found: f"{found[1]}.{OLD_ATTENTION_NAMES[found[2]]}", name)


def _norms(saved: dict[str, Any]) -> dict[str, Any]:
    """The groups of the norms, and what else the Skip blocks of NCSN++ have of their own."""
    kinds = [*saved["down_block_types"], *saved["up_block_types"]]
    skips = ["Skip" in kind for kind in kinds]
    groups = saved["norm_num_groups"]
    # without a number of its own, the middle attention has no norm in scale_shift networks
    silent = saved["resnet_time_scale_shift"] == "scale_shift"
    middle = {"mid_attention_groups": saved["attn_norm_num_groups"] or (0 if silent else None)}
    if not any(skips):
        if groups is None:
            raise UnsupportedError(
                f"config.json: norm_num_groups is None; {kinds[0]} needs an integer"
            )
        return {"num_groups": groups, **middle}
    if not all(skips):
        raise UnsupportedError(
            "config.json: down_block_types and up_block_types mix Skip blocks with others: "
            f"{', '.join(kinds)}; supported: all of them Skip blocks, or none"
        )
    _require_joined_groups(saved)
    return {
        **middle,
        "num_groups": None,
        "end_groups": groups,
        # 32 in the levels with attention, whatever their channels
        "attention_groups": 32,
        "joined_groups": 32,
        "residual_scale": 0.5**0.5,
        "progressive_input": "sum",
        "progressive_output": True,
    }


def _require_joined_groups(saved: dict[str, Any]) -> None:
    """AttnSkipUpBlock2D gives its first norm min(h + skip / 4, 32) groups: 32 almost always."""
    channels = saved["block_out_channels"]
    entering = [channels[-1], *channels[:0:-1]]
    for kind, h, skip in zip(saved["up_block_types"], entering, channels[::-1]):
        if kind.endswith("AttnSkipUpBlock2D") and h + skip // 4 < 32:
            raise UnsupportedError(
                f"config.json: up_block_types has 'AttnSkipUpBlock2D' behind a level of {h} "
                "channels; supported: at least 24"
            )


def _require_supported(saved: dict[str, Any]) -> None:
    for key, values in SUPPORTED.items():
        if saved[key] not in values:
            raise UnsupportedError(
                f"config.json: {key} is {saved[key]!r}; supported: {', '.join(map(repr, values))}"
            )
    if not isinstance(saved["layers_per_block"], int):
        raise UnsupportedError(
            f"config.json: layers_per_block is {saved['layers_per_block']!r}; "
            "supported: one integer"
        )


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
