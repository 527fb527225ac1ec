"""The folders of text and image encoders, as transformers writes them."""

from diffjax.networks.clip import CLIPTextConfig, CLIPVisionConfig, clip_text, clip_vision
from diffjax.pretrained.architecture import Architecture, Key

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
        "hidden_act": Key("quick_gelu", "act"),
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
        "hidden_act": Key("quick_gelu", "act"),
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


def _projected(architecture: Architecture) -> Architecture:
    keys = {**architecture.keys, "projection_dim": Key(512, "projection_dim")}
    name = f"{architecture.class_name}WithProjection"
    return architecture._replace(class_name=name, keys=keys)


TEXT_ENCODERS = [_CLIP_TEXT, _projected(_CLIP_TEXT), _CLIP_VISION, _projected(_CLIP_VISION)]
