"""The folders of the projections in front of unCLIP's decoder."""

from diffjax.networks.unclip import ImageAndTextConfig, image_and_text
from diffjax.pretrained.architecture import Architecture, Key

UNCLIP_TEXT_PROJ = Architecture(
    class_name="UnCLIPTextProjModel",
    make=ImageAndTextConfig,
    build=image_and_text,
    keys={
        "clip_extra_context_tokens": Key(4, "num_tokens"),
        "clip_embeddings_dim": Key(768, "embedding_dim"),
        "time_embed_dim": Key(1536, "time_features"),
        "cross_attention_dim": Key(1536, "context_dim"),
    },
    names={
        "learned_classifier_free_guidance_embeddings": "no_image",
        "embedding_proj": "pooled_proj",
        "clip_image_embeddings_project_to_time_embeddings": "image_proj",
        "clip_extra_context_tokens_proj": "tokens_proj",
        "encoder_hidden_states_proj": "text_proj",
        "text_encoder_hidden_states_norm": "text_norm",
    },
)
