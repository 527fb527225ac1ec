"""The folders of diffusion transformers, as diffusers writes them."""

from typing import Any

from diffjax.networks.dit import DiTConfig, dit
from diffjax.networks.flux import FluxConfig, flux
from diffjax.networks.mmdit import MMDiTConfig, mmdit
from diffjax.networks.pixart import PixArtConfig, pixart
from diffjax.networks.prior import PriorConfig, prior
from diffjax.pretrained.architecture import ACTS, FEED_FORWARD, Architecture, Key

# activation_fn of diffusers' feed-forward networks; geglu-approximate has no gate
_FEED_FORWARD_ACT = ("gelu", "gelu-approximate", "geglu", "swiglu")


def _switch(default: str | None, field: str, on: str) -> Key:
    """A key that names one kind or nothing, as whether there is one."""
    return Key(
        default,
        field,
        only=(on, None),
        read=lambda kind: kind is not None,
        write=lambda there: on if there else None,
    )


_ADA_NORM_ZERO: dict[str, Any] = {
    "num_attention_heads": Key(16, "num_heads"),
    "attention_head_dim": Key(72, "head_dim"),
    "in_channels": Key(4, "in_channels"),
    "out_channels": Key(None, "out_channels"),
    "num_layers": Key(28, "num_layers"),
    "attention_bias": Key(True, "attention_bias"),
    "sample_size": Key(32, "sample_size"),
    "patch_size": Key(2, "patch_size"),
    "activation_fn": Key("gelu-approximate", "act", only=_FEED_FORWARD_ACT),
    "num_embeds_ada_norm": Key(1000, "num_classes"),
    "norm_type": Key("ada_norm_zero", only=("ada_norm_zero",)),
    "norm_elementwise_affine": Key(False, "norm_affine"),
    "norm_eps": Key(1e-5, "norm_eps"),
}

_DIT = Architecture(
    class_name="DiTTransformer2DModel",
    make=DiTConfig,
    build=dit,
    keys=_ADA_NORM_ZERO,
    names={
        **FEED_FORWARD,
        "norm1.emb": "emb",
        "class_embedder.embedding_table": "class_embedder",
    },
    fixed={"shared_embedding": False},
)

# the class of DiT's and PixArt's published files; its other uses are inside UNets
_TRANSFORMER_2D = {
    "attention_head_dim": Key(88, "head_dim"),
    "num_layers": Key(1, "num_layers"),
    "attention_bias": Key(False, "attention_bias"),
    "sample_size": Key(None, "sample_size"),
    "patch_size": Key(None, "patch_size"),
    "activation_fn": Key("geglu", "act", only=_FEED_FORWARD_ACT),
    "norm_elementwise_affine": Key(True, "norm_affine"),
    "interpolation_scale": Key(None, "interpolation_scale"),
    "attention_type": Key("default", only=("default",)),
}

_OLD_DIT = _DIT._replace(
    class_name="Transformer2DModel",
    keys={
        **_ADA_NORM_ZERO,
        **_TRANSFORMER_2D,
        "norm_type": Key("layer_norm", only=("ada_norm_zero",)),
        "cross_attention_dim": Key(None, only=(None,)),
        "double_self_attention": Key(False, only=(False,)),
    },
)

_PIXART = Architecture(
    class_name="PixArtTransformer2DModel",
    make=PixArtConfig,
    build=pixart,
    keys={
        "num_attention_heads": Key(16, "num_heads"),
        "attention_head_dim": Key(72, "head_dim"),
        "in_channels": Key(4, "in_channels"),
        "out_channels": Key(8, "out_channels"),
        "num_layers": Key(28, "num_layers"),
        "cross_attention_dim": Key(1152, "context_dim"),
        "attention_bias": Key(True, "attention_bias"),
        "sample_size": Key(128, "sample_size"),
        "patch_size": Key(2, "patch_size"),
        "activation_fn": Key("gelu-approximate", "act", only=_FEED_FORWARD_ACT),
        "norm_type": Key("ada_norm_single", only=("ada_norm_single",)),
        "norm_elementwise_affine": Key(False, "norm_affine"),
        "norm_eps": Key(1e-6, "norm_eps"),
        "interpolation_scale": Key(None, "interpolation_scale"),
        "use_additional_conditions": Key(None, "size_conditions"),
        "caption_channels": Key(None, "caption_channels"),
        "attention_type": Key("default", only=("default",)),
    },
    names={**FEED_FORWARD, "adaln_single.emb": "emb"},
    # a caption that only training saw, in the published files
    present=lambda name: None if name == "caption_projection.y_embedding" else name,
)

_OLD_PIXART = _PIXART._replace(
    class_name="Transformer2DModel",
    keys={
        **_PIXART.keys,
        **_TRANSFORMER_2D,
        "out_channels": Key(None, "out_channels"),
        "cross_attention_dim": Key(None, "context_dim"),
        "norm_type": Key("layer_norm", only=("ada_norm_single",)),
        "norm_eps": Key(1e-5, "norm_eps"),
        "double_self_attention": Key(False, only=(False,)),
        "only_cross_attention": Key(False, only=(False,)),
    },
)

# diffusers has one attention with a second set of projections for the text; here there are two
_JOINT_BLOCK = {
    **FEED_FORWARD,
    "attn.add_q_proj": "attn_context.to_q",
    "attn.add_k_proj": "attn_context.to_k",
    "attn.add_v_proj": "attn_context.to_v",
    "attn.norm_added_q": "attn_context.norm_q",
    "attn.norm_added_k": "attn_context.norm_k",
    "attn.to_add_out": "attn_context.to_out.0",
}

_SD3 = Architecture(
    class_name="SD3Transformer2DModel",
    make=MMDiTConfig,
    build=mmdit,
    keys={
        "sample_size": Key(128, "sample_size"),
        "patch_size": Key(2, "patch_size"),
        "in_channels": Key(16, "in_channels"),
        "num_layers": Key(18, "num_layers"),
        "attention_head_dim": Key(64, "head_dim"),
        "num_attention_heads": Key(18, "num_heads"),
        "joint_attention_dim": Key(4096, "context_dim"),
        "pooled_projection_dim": Key(2048, "pooled_dim"),
        "out_channels": Key(16, "out_channels"),
        "pos_embed_max_size": Key(96, "max_positions"),
        "dual_attention_layers": Key((), "dual_attention_layers"),
        "qk_norm": _switch(None, "qk_norm", "rms_norm"),
        "caption_projection_dim": Key(1152, "features", derived=True),
    },
    names=_JOINT_BLOCK,
)

_FLUX = Architecture(
    class_name="FluxTransformer2DModel",
    make=FluxConfig,
    build=flux,
    keys={
        "patch_size": Key(1, "patch_size"),
        "in_channels": Key(64, "in_channels"),
        "out_channels": Key(None, "out_channels"),
        "num_layers": Key(19, "num_layers"),
        "num_single_layers": Key(38, "num_single_layers"),
        "attention_head_dim": Key(128, "head_dim"),
        "num_attention_heads": Key(24, "num_heads"),
        "joint_attention_dim": Key(4096, "context_dim"),
        "pooled_projection_dim": Key(768, "pooled_dim"),
        "guidance_embeds": Key(False, "guidance"),
        "axes_dims_rope": Key((16, 56, 56), "axes_dims"),
    },
    names=_JOINT_BLOCK,
)


_PRIOR = Architecture(
    class_name="PriorTransformer",
    make=PriorConfig,
    build=prior,
    keys={
        "num_attention_heads": Key(32, "num_heads"),
        "attention_head_dim": Key(64, "head_dim"),
        "num_layers": Key(20, "num_layers"),
        "embedding_dim": Key(768, "embedding_dim"),
        "num_embeddings": Key(77, "num_embeddings"),
        "additional_embeddings": Key(4, "additional_embeddings"),
        "time_embed_act_fn": Key("silu", "time_act", only=ACTS),
        "norm_in_type": _switch(None, "norm_in", "layer"),
        "embedding_proj_norm_type": _switch(None, "cond_norm", "layer"),
        "encoder_hid_proj_type": _switch("linear", "text", "linear"),
        "added_emb_type": _switch("prd", "query", "prd"),
        "time_embed_dim": Key(None, "time_dim"),
        "embedding_proj_dim": Key(None, "cond_dim"),
        "clip_embed_dim": Key(None, "out_dim"),
    },
    names=FEED_FORWARD,
)

DIFFUSION_TRANSFORMERS = [_DIT, _OLD_DIT, _PIXART, _OLD_PIXART, _SD3, _FLUX, _PRIOR]
