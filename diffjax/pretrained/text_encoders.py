"""The folders of text and image encoders, as transformers writes them."""

from diffjax.networks.clap import CLAPTextConfig, clap_text
from diffjax.networks.clip import CLIPTextConfig, CLIPVisionConfig, clip_text, clip_vision
from diffjax.networks.ldmbert import LDMBertConfig, ldmbert
from diffjax.networks.t5 import T5Config, t5_encoder
from diffjax.pretrained.architecture import ACTS, Architecture, Key
from diffjax.pretrained.weights import UnsupportedError

# a layer of CLIP -> a TransformerBlock
_CLIP_LAYER = {
    "layer_norm1": "norm1",
    "self_attn.q_proj": "attn1.to_q",
    "self_attn.k_proj": "attn1.to_k",
    "self_attn.v_proj": "attn1.to_v",
    "self_attn.out_proj": "attn1.to_out.0",
    "layer_norm2": "norm3",
    "mlp.fc1": "ff.linear_1",
    "mlp.fc2": "ff.linear_2",
}


def _with_prefix(prefix: str, projection: str):
    """Names with the prefix that published files have and newer ones lack, without buffers."""

    def present(name: str) -> str | None:
        if name.endswith("position_ids"):
            return None
        return name if name.startswith((prefix, projection)) else prefix + name

    return present


_CLIP_TEXT = Architecture(
    class_name="CLIPTextModel",
    make=CLIPTextConfig,
    build=clip_text,
    stem="model",
    keys={
        "vocab_size": Key(49408, "vocab_size"),
        "hidden_size": Key(512, "hidden_size"),
        "intermediate_size": Key(2048, "intermediate_size"),
        "num_hidden_layers": Key(12, "num_layers"),
        "num_attention_heads": Key(8, "num_heads"),
        "max_position_embeddings": Key(77, "max_positions"),
        "hidden_act": Key("quick_gelu", "act", only=ACTS),
        "layer_norm_eps": Key(1e-5, "norm_eps"),
        "eos_token_id": Key(49407, "eos_token"),
        "model_type": Key("clip_text_model", only=("clip_text_model", "clip")),
    },
    names={
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding": "position_embedding",
        "text_model.encoder.layers": "layers",
        "text_model.final_layer_norm": "final_layer_norm",
        **_CLIP_LAYER,
    },
    present=_with_prefix("text_model.", "text_projection."),
)

_CLIP_VISION = Architecture(
    class_name="CLIPVisionModel",
    make=CLIPVisionConfig,
    build=clip_vision,
    stem="model",
    keys={
        "hidden_size": Key(768, "hidden_size"),
        "intermediate_size": Key(3072, "intermediate_size"),
        "num_hidden_layers": Key(12, "num_layers"),
        "num_attention_heads": Key(12, "num_heads"),
        "num_channels": Key(3, "in_channels"),
        "image_size": Key(224, "image_size"),
        "patch_size": Key(32, "patch_size"),
        "hidden_act": Key("quick_gelu", "act", only=ACTS),
        "layer_norm_eps": Key(1e-5, "norm_eps"),
        "model_type": Key("clip_vision_model", only=("clip_vision_model", "clip")),
    },
    names={
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding": "patch_embedding",
        "vision_model.embeddings.position_embedding": "position_embedding",
        # the misspelling is OpenAI's
        "vision_model.pre_layrnorm": "pre_norm",
        "vision_model.encoder.layers": "layers",
        "vision_model.post_layernorm": "post_norm",
        **_CLIP_LAYER,
    },
    present=_with_prefix("vision_model.", "visual_projection."),
)


_CLAP_TEXT = Architecture(
    class_name="ClapTextModelWithProjection",
    make=CLAPTextConfig,
    build=clap_text,
    stem="model",
    keys={
        "vocab_size": Key(50265, "vocab_size"),
        "type_vocab_size": Key(1, "token_types"),
        "hidden_size": Key(768, "hidden_size"),
        "intermediate_size": Key(3072, "intermediate_size"),
        "num_hidden_layers": Key(12, "num_layers"),
        "num_attention_heads": Key(12, "num_heads"),
        "max_position_embeddings": Key(514, "max_positions"),
        "pad_token_id": Key(1, "pad_token"),
        "hidden_act": Key("gelu", "act", only=ACTS),
        "projection_hidden_act": Key("relu", "projection_act", only=ACTS),
        "layer_norm_eps": Key(1e-12, "norm_eps"),
        "projection_dim": Key(512, "projection_dim"),
        "model_type": Key("clap_text_model", only=("clap_text_model",)),
    },
    names={
        "text_model.embeddings.word_embeddings": "word_embeddings",
        "text_model.embeddings.token_type_embeddings": "token_type_embeddings",
        "text_model.embeddings.position_embeddings": "position_embeddings",
        "text_model.embeddings.LayerNorm": "embedding_norm",
        "text_model.encoder.layer": "layers",
        "attention.self.query": "attn1.to_q",
        "attention.self.key": "attn1.to_k",
        "attention.self.value": "attn1.to_v",
        "attention.output.dense": "attn1.to_out.0",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "ff.linear_1",
        "output.dense": "ff.linear_2",
        "output.LayerNorm": "norm3",
        "text_model.pooler.dense": "pooler",
        "text_projection.linear1": "text_projection.linear_1",
        "text_projection.linear2": "text_projection.linear_2",
    },
    present=lambda name: None if name.endswith(("position_ids", "token_type_ids")) else name,
)


_LDMBERT = Architecture(
    class_name="LDMBertModel",
    make=LDMBertConfig,
    build=ldmbert,
    stem="model",
    keys={
        "vocab_size": Key(30522, "vocab_size"),
        "d_model": Key(1280, "features"),
        "encoder_ffn_dim": Key(5120, "hidden"),
        "encoder_layers": Key(32, "num_layers"),
        "encoder_attention_heads": Key(8, "num_heads"),
        "head_dim": Key(64, "head_dim"),
        "max_position_embeddings": Key(77, "max_positions"),
        "activation_function": Key("gelu", "act", only=ACTS),
        "model_type": Key("ldmbert", only=("ldmbert",)),
    },
    names={
        "model.embed_tokens": "embed_tokens",
        "model.embed_positions": "embed_positions",
        "model.layers": "layers",
        "model.layer_norm": "layer_norm",
        "self_attn_layer_norm": "norm1",
        "self_attn.q_proj": "attn1.to_q",
        "self_attn.k_proj": "attn1.to_k",
        "self_attn.v_proj": "attn1.to_v",
        "self_attn.out_proj": "attn1.to_out.0",
        "final_layer_norm": "norm3",
        "fc1": "ff.linear_1",
        "fc2": "ff.linear_2",
    },
    # logits of tokens served its training alone
    present=lambda name: None if name.startswith("to_logits.") else name,
)


def _projected(architecture: Architecture) -> Architecture:
    keys = {**architecture.keys, "projection_dim": Key(512, "projection_dim")}
    name = f"{architecture.class_name}WithProjection"
    return architecture._replace(class_name=name, keys=keys)


def _t5_present(name: str) -> str | None:
    """One name for the tied table of tokens; no decoder, of which whole T5 files have one."""
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return name.replace("encoder.embed_tokens.", "shared.")


_T5_LAYER = {
    "layer.0.SelfAttention.q": "attn1.to_q",
    "layer.0.SelfAttention.k": "attn1.to_k",
    "layer.0.SelfAttention.v": "attn1.to_v",
    "layer.0.SelfAttention.o": "attn1.to_out.0",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm3",
}


def _t5(*, gated: bool) -> Architecture:
    """T5 with or without gates, whose first layers have different names."""
    first = (
        {"layer.1.DenseReluDense.wi_0": "ff.linear_1", "layer.1.DenseReluDense.wi_1": "ff.gate"}
        if gated
        else {"layer.1.DenseReluDense.wi": "ff.linear_1"}
    )

    def read(kind: str) -> str:
        if kind.startswith("gated-") != gated or kind.removeprefix("gated-") not in ACTS:
            raise UnsupportedError(
                f"config.json: feed_forward_proj is {kind!r}; supported: {', '.join(ACTS)}, each "
                "with gated- before it or without"
            )
        return kind

    return Architecture(
        class_name="T5EncoderModel",
        make=T5Config,
        build=t5_encoder,
        stem="model",
        keys={
            "vocab_size": Key(32128, "vocab_size"),
            "d_model": Key(512, "features"),
            "d_kv": Key(64, "head_dim"),
            "d_ff": Key(2048, "hidden"),
            "num_layers": Key(6, "num_layers"),
            "num_heads": Key(8, "num_heads"),
            "relative_attention_num_buckets": Key(32, "num_buckets"),
            "relative_attention_max_distance": Key(128, "max_distance"),
            "layer_norm_epsilon": Key(1e-6, "norm_eps"),
            "feed_forward_proj": Key("relu", "feed_forward", read=read),
            "model_type": Key("t5", only=("t5",)),
        },
        names={
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": (
                "relative_attention_bias"
            ),
            "encoder.final_layer_norm": "final_layer_norm",
            **_T5_LAYER,
            **first,
            "layer.1.DenseReluDense.wo": "ff.linear_2",
            "encoder.block": "block",
        },
        present=_t5_present,
        overflows=lambda config: True,
    )


TEXT_ENCODERS = [
    _CLIP_TEXT,
    _projected(_CLIP_TEXT),
    _CLIP_VISION,
    _projected(_CLIP_VISION),
    _t5(gated=True),
    _t5(gated=False),
    _CLAP_TEXT,
    _LDMBERT,
]
