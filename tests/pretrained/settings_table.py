"""Settings of small networks that no reference case has, and what they are given."""

import numpy as np


def without(settings, *names):
    return {name: each for name, each in settings.items() if name not in names}


UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
SIMPLE = {
    **UNET,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}
CONTROL = {
    **without(UNET, "sample_size", "up_block_types"),
    "conditioning_embedding_out_channels": [6, 10],
}
PIXELS = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
MOTION = {
    **without(UNET, "attention_head_dim"),
    "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
    "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"],
    "motion_max_seq_length": 8,
}
CLOCK = {"timestep": np.array([3, 700])}
LATENTS = {**CLOCK, "sample": (2, 4, 8, 8), "encoder_hidden_states": (2, 7, 12)}
PATCHES = {"sample_size": 8, "num_layers": 2, "patch_size": 2, "in_channels": 4}
TEXT = {"vocab_size": 90, "hidden_size": 24, "intermediate_size": 30, "num_attention_heads": 2}
WORDS = np.array([[1, 7, 5, 9, 5, 3], [9, 8, 7, 6, 4, 5]])

# name -> class, settings, what it is given: shapes of what is drawn, and arrays
ROWS = {
    "unet: labels beside the time, guidance, wide ends": (
        "UNet2DConditionModel",
        {
            **UNET, "act_fn": "mish", "class_embed_type": "projection", "norm_eps": 1e-3,
            "projection_class_embeddings_input_dim": 13, "class_embeddings_concat": True,
            "time_cond_proj_dim": 10, "flip_sin_to_cos": False, "freq_shift": 1,
            "downsample_padding": 0, "mid_block_scale_factor": 1.7, "conv_in_kernel": 5,
            "conv_out_kernel": 1, "center_input_sample": True,
        },
        {**LATENTS, "class_labels": (2, 13), "timestep_cond": (2, 10)},
    ),
    "unet: random waves, a pooled text, no attention in the middle": (
        "UNet2DConditionModel",
        {
            **UNET, "time_embedding_type": "fourier", "flip_sin_to_cos": False, "act_fn": "gelu",
            "class_embed_type": "timestep", "addition_embed_type": "text", "encoder_hid_dim": 24,
            "addition_embed_type_num_heads": 4, "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [2, 1], "use_linear_projection": True,
        },
        {
            **LATENTS, "timestep": np.array([0.5, 3.0], np.float32),
            "class_labels": np.array([3, 1]), "encoder_hidden_states": (2, 7, 24),
        },
    ),
    "unet: text and image, the context alone on one level": (
        "UNet2DConditionModel",
        {
            **UNET, "addition_embed_type": "text_image", "encoder_hid_dim": 24,
            "encoder_hid_dim_type": "text_image_proj", "only_cross_attention": [True, False],
            "resnet_time_scale_shift": "scale_shift",
        },
        {
            **LATENTS, "encoder_hidden_states": (2, 7, 24), "text_embeds": (2, 12),
            "image_embeds": (2, 12),
        },
    ),
    "unet: depths of their own on the way up": (
        "UNet2DConditionModel",
        {
            **UNET, "layers_per_block": 2, "transformer_layers_per_block": [[2, 1], [1, 2]],
            "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1]],
        },
        LATENTS,
    ),
    "unet: the context alone in attention that extends": (
        "UNet2DConditionModel",
        {**SIMPLE, "only_cross_attention": True, "class_embed_type": "timestep"},
        {**LATENTS, "class_labels": np.array([3, 500])},
    ),
    "unet: other blocks on each of three levels": (
        "UNet2DConditionModel",
        {
            **UNET, "block_out_channels": [8, 12, 16], "layers_per_block": [2, 1, 1],
            "down_block_types": [
                "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D",
            ],
            "up_block_types": ["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"],
            "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 9,
            "attention_head_dim": 4,
        },
        {**LATENTS, "sample": (2, 4, 8, 12), "class_labels": (2, 9)},
    ),
    "unet: five sizes told, and a vector beside the time": (
        "UNet2DConditionModel",
        {
            **UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 6,
            "projection_class_embeddings_input_dim": 40, "class_embed_type": "identity",
            "flip_sin_to_cos": False,
        },
        {
            **LATENTS, "text_embeds": (2, 10), "class_labels": (2, 32),
            "time_ids": np.array([[8, 8, 0, 4, 6], [16, 8, 2, 1, 5]], np.float32),
        },
    ),
    "unet: tokens normalised in front of attention that extends, and masked": (
        "UNet2DConditionModel",
        {
            **SIMPLE, "block_out_channels": [8, 12], "cross_attention_norm": "layer_norm",
            "resnet_time_scale_shift": "scale_shift", "resnet_out_scale_factor": 1.3,
        },
        {**LATENTS, "encoder_attention_mask": np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7])},
    ),
    "pixels: random waves, no attention in the middle": (
        "UNet2DModel",
        {
            **PIXELS, "time_embedding_type": "fourier", "add_attention": False,
            "time_embedding_dim": 20, "class_embed_type": "identity", "act_fn": "mish",
        },
        {
            "sample": (2, 3, 8, 8), "timestep": np.array([0.5, 3.0], np.float32),
            "class_labels": (2, 20),
        },
    ),
    "pixels: Skip blocks with attention on all levels and classes": (
        "UNet2DModel",
        {
            **PIXELS, "block_out_channels": [32, 32],
            "down_block_types": ["AttnSkipDownBlock2D"] * 2,
            "up_block_types": ["AttnSkipUpBlock2D"] * 2, "num_class_embeds": 5, "act_fn": "gelu",
            "resnet_time_scale_shift": "scale_shift",
        },
        {"sample": (2, 3, 8, 8), **CLOCK, "class_labels": np.array([3, 4])},
    ),
    "autoencoder: attention on a level, one of the outer convolutions": (
        "AutoencoderKL",
        {
            "act_fn": "mish", "block_out_channels": [12, 24], "norm_num_groups": 6,
            "in_channels": 1, "out_channels": 4, "latent_channels": 5, "use_quant_conv": False,
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        },
        {"image": (2, 1, 8, 8), "latents": (2, 5, 4, 4)},
    ),
    "tiny autoencoder: two levels, other channels": (
        "AutoencoderTiny",
        {
            "in_channels": 4, "out_channels": 5, "latent_channels": 6, "act_fn": "gelu",
            "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 2], "num_decoder_blocks": [2, 1], "latent_magnitude": 2,
        },
        {"image": (2, 4, 8, 8), "latents": (2, 6, 4, 4)},
    ),
    "codebook: of other features than the latents": (
        "VQModel",
        {
            "block_out_channels": [8, 8], "norm_num_groups": 4, "vq_embed_dim": 5,
            "num_vq_embeddings": 17, "mid_block_add_attention": False, "act_fn": "gelu",
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        },
        {"image": (2, 3, 8, 8), "latents": (2, 5, 4, 4)},
    ),
    "text: pooled at an end that occurs twice": (
        "CLIPTextModelWithProjection",
        {
            **TEXT, "num_hidden_layers": 2, "projection_dim": 17, "hidden_act": "gelu_new",
            "eos_token_id": 5,
        },
        {"input_ids": WORDS},
    ),
    "vision: patches of another size": (
        "CLIPVisionModelWithProjection",
        {
            "hidden_size": 24, "intermediate_size": 30, "num_hidden_layers": 2, "num_channels": 4,
            "num_attention_heads": 2, "image_size": 30, "patch_size": 6, "projection_dim": 7,
            "hidden_act": "gelu_pytorch_tanh",
        },
        {"pixel_values": (2, 4, 30, 30)},
    ),
    "T5: gates of SiLU, few buckets": (
        "T5EncoderModel",
        {
            "vocab_size": 90, "d_model": 16, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3,
            "feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 4, "layer_norm_epsilon": 1e-3,
        },
        {"input_ids": WORDS, "attention_mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])},
    ),
    "DiT: gates, norms that learn, patches of 4": (
        "DiTTransformer2DModel",
        {
            **PATCHES, "patch_size": 4, "sample_size": 64, "num_attention_heads": 3,
            "attention_head_dim": 12, "num_embeds_ada_norm": 7, "attention_bias": False,
            "activation_fn": "geglu", "norm_elementwise_affine": True, "norm_eps": 1e-3,
        },
        {
            "hidden_states": (2, 4, 16, 16), **CLOCK,
            "class_labels": np.array([7, 0]),
        },
    ),
    "PixArt: told sizes, positions stretched": (
        "PixArtTransformer2DModel",
        {
            **PATCHES, "num_attention_heads": 3, "attention_head_dim": 8, "caption_channels": 10,
            "cross_attention_dim": 24, "use_additional_conditions": True, "out_channels": None,
            "interpolation_scale": 2,
        },
        {
            "hidden_states": (2, 4, 6, 10), **CLOCK,
            "encoder_hidden_states": (2, 6, 10),
            "resolution": np.array([[512, 512], [300, 700]], np.float32),
            "aspect_ratio": np.array([[1.0], [0.4]], np.float32),
        },
    ),
    "SD3: two attentions in the last block, norms of none": (
        "SD3Transformer2DModel",
        {
            **PATCHES, "num_attention_heads": 3, "attention_head_dim": 8, "out_channels": None,
            "joint_attention_dim": 10, "pooled_projection_dim": 9, "caption_projection_dim": 24,
            "pos_embed_max_size": 8, "dual_attention_layers": [1],
        },
        {
            "hidden_states": (2, 4, 8, 12), "timestep": np.array([3.0, 700.0], np.float32),
            "encoder_hidden_states": (2, 5, 10), "pooled_projections": (2, 9),
        },
    ),
    "Flux: odd heads, other channels out, guidance": (
        "FluxTransformer2DModel",
        {
            "in_channels": 8, "out_channels": 6, "num_layers": 2, "num_single_layers": 1,
            "num_attention_heads": 3, "attention_head_dim": 14, "axes_dims_rope": [2, 4, 8],
            "joint_attention_dim": 10, "pooled_projection_dim": 9, "guidance_embeds": True,
        },
        {
            "hidden_states": (2, 6, 8), "timestep": np.array([0.1, 0.7], np.float32),
            "encoder_hidden_states": (2, 5, 10), "pooled_projections": (2, 9),
            "guidance": np.array([3.5, 1.0], np.float32), "txt_ids": np.zeros((5, 3), np.float32),
            "img_ids": np.array([[0, i // 3, i % 3] for i in range(6)], np.float32),
        },
    ),
    "prior: of other features, all norms": (
        "PriorTransformer",
        {
            "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 20,
            "num_embeddings": 7, "time_embed_dim": 40, "embedding_proj_dim": 13,
            "embedding_proj_norm_type": "layer", "norm_in_type": "layer", "clip_embed_dim": 16,
            "time_embed_act_fn": "gelu",
        },
        {
            "hidden_states": (2, 20), **CLOCK, "proj_embedding": (2, 13),
            "encoder_hidden_states": (2, 7, 20), "attention_mask": np.ones((2, 7), bool),
        },
    ),
    "ControlNet: one channel seen, classes, no attention in the middle": (
        "ControlNetModel",
        {
            **CONTROL, "conditioning_channels": 1, "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 5, "act_fn": "mish", "mid_block_type": "UNetMidBlock2D",
            "layers_per_block": 2, "transformer_layers_per_block": 2, "attention_head_dim": [1, 4],
        },
        {**LATENTS, "class_labels": np.array([3, 4]), "controlnet_cond": (2, 1, 16, 16)},
    ),
    "ControlNet: blue first, pooled": (
        "ControlNetModel",
        {
            **CONTROL, "controlnet_conditioning_channel_order": "bgr",
            "global_pool_conditions": True, "only_cross_attention": True,
        },
        {**LATENTS, "controlnet_cond": (2, 3, 16, 16)},
    ),
    "vocoder: odd windows, not normalised": (
        "SpeechT5HifiGan",
        {
            "model_in_dim": 6, "upsample_initial_channel": 16, "upsample_rates": [3, 2],
            "upsample_kernel_sizes": [7, 4], "resblock_kernel_sizes": [3, 5],
            "resblock_dilation_sizes": [[1, 2], [1, 3]], "normalize_before": False,
        },
        {"spectrogram": (2, 9, 6)},
    ),
    "T2I-Adapter: one channel, another factor": (
        "T2IAdapter",
        {"in_channels": 1, "channels": [8, 12], "num_res_blocks": 3, "downscale_factor": 4},
        {"image": (2, 1, 32, 32)},
    ),
    "motion: depths and heads of their own": (
        "UNetMotionModel",
        {
            **MOTION, "num_attention_heads": [2, 4], "motion_num_attention_heads": [1, 4],
            "temporal_transformer_layers_per_block": [2, 1], "use_motion_mid_block": False,
            "layers_per_block": [1, 2], "time_cond_proj_dim": 10,
        },
        {**LATENTS, "sample": (2, 4, 3, 8, 8), "timestep_cond": (2, 10)},
    ),
    "trajectories: three levels, another activation": (
        "UNet1DModel",
        {
            "sample_size": 16, "in_channels": 5, "out_channels": 3,
            "block_out_channels": [16, 24, 32], "down_block_types": ["DownResnetBlock1D"] * 3,
            "up_block_types": ["UpResnetBlock1D"] * 2, "act_fn": "silu", "layers_per_block": 2,
            "mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock",
            "time_embedding_type": "positional", "use_timestep_embedding": True,
            "norm_num_groups": 4,
        },
        {"sample": (2, 5, 16), **CLOCK},
    ),
    "waveforms: attention on two levels down and one up, sines first, other channels": (
        "UNet1DModel",
        {
            "sample_size": 48, "in_channels": 3, "out_channels": 5, "extra_in_channels": 6,
            "time_embedding_dim": 6, "flip_sin_to_cos": False, "block_out_channels": [32, 64, 96],
            "down_block_types": ["DownBlock1DNoSkip", "AttnDownBlock1D", "AttnDownBlock1D"],
            "up_block_types": ["UpBlock1D", "AttnUpBlock1D", "UpBlock1DNoSkip"],
            "mid_block_type": "UNetMidBlock1D", "out_block_type": None,
        },
        {"sample": (2, 3, 48), "timestep": np.array([0.1, 0.9], np.float32)},
    ),
    "LDMBert: more features in the heads than outside, another activation": (
        "LDMBertModel",
        {
            "vocab_size": 90, "max_position_embeddings": 9, "d_model": 12, "encoder_layers": 2,
            "encoder_ffn_dim": 20, "encoder_attention_heads": 5, "head_dim": 6,
            "activation_function": "relu", "scale_embedding": True, "pad_token_id": 3,
        },
        {"input_ids": WORDS},
    ),
    "unCLIP: three tokens of other features": (
        "UnCLIPTextProjModel",
        {
            "clip_extra_context_tokens": 3, "clip_embeddings_dim": 10, "time_embed_dim": 14,
            "cross_attention_dim": 12,
        },
        {
            "image_embeddings": (2, 10), "prompt_embeds": (4, 10),
            "text_encoder_hidden_states": (4, 7, 10),
        },
    ),
}  # fmt: skip
