"""The folders of diffusion transformers, as diffusers writes them."""

from typing import Any

from diffjax.networks.dit import DiTConfig, dit
from diffjax.pretrained.architecture import Architecture, Key

# the two layers of diffusers' feed-forward networks, with a dropout between them
_FEED_FORWARD = {"net.0.proj": "linear_1", "net.2": "linear_2"}

# activation_fn of diffusers' feed-forward networks; geglu-approximate has no gate
_FEED_FORWARD_ACT = ("gelu", "gelu-approximate", "geglu", "swiglu")

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
        **_FEED_FORWARD,
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

DIFFUSION_TRANSFORMERS = [_DIT, _OLD_DIT]
