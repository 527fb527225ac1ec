"""The folders of autoencoders, as diffusers writes them."""

from collections.abc import Sequence
from typing import Any

from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.autoencoder_tiny import AutoencoderTinyConfig, autoencoder_tiny
from diffjax.networks.vq import VQConfig, vq_autoencoder
from diffjax.pretrained.architecture import ACTS, Architecture, Key
from diffjax.pretrained.unet2d import present_name
from diffjax.pretrained.weights import UnsupportedError


def _levels(name: str, plain: str, field: str, *, finest_first: bool) -> Key:
    """The key of this name: block types as one flag for each level, whether it has attention."""
    attentive = f"Attn{plain}"
    order = slice(None) if finest_first else slice(None, None, -1)

    def read(kinds: Sequence[str]) -> tuple[bool, ...]:
        unknown = sorted(set(kinds) - {plain, attentive})
        if unknown:
            raise UnsupportedError(
                f"config.json: {name} has {', '.join(map(repr, unknown))}; supported: {plain!r}, "
                f"{attentive!r}"
            )
        return tuple(kind == attentive for kind in kinds)[order]

    def write(flags: Sequence[bool]) -> list[str]:
        return [attentive if flag else plain for flag in flags[order]]

    return Key((plain,), field, read=read, write=write)


# what all of them share
_BACKBONE: dict[str, Any] = {
    "in_channels": Key(3, "in_channels"),
    "out_channels": Key(3, "out_channels"),
    "down_block_types": _levels(
        "down_block_types", "DownEncoderBlock2D", "attention", finest_first=True
    ),
    "up_block_types": _levels(
        "up_block_types", "UpDecoderBlock2D", "up_attention", finest_first=False
    ),
    "block_out_channels": Key((64,), "block_out_channels"),
    "layers_per_block": Key(1, "layers_per_block"),
    "act_fn": Key("silu", "act", only=ACTS),
    "norm_num_groups": Key(32, "num_groups"),
    "sample_size": Key(32, "sample_size"),
    "scaling_factor": Key(0.18215, "scaling_factor"),
    "mid_block_add_attention": Key(True, "mid_attention"),
}

_AUTOENCODER_KL = Architecture(
    class_name="AutoencoderKL",
    make=AutoencoderKLConfig,
    build=autoencoder_kl,
    keys={
        **_BACKBONE,
        "latent_channels": Key(4, "latent_channels"),
        "shift_factor": Key(None, "shift_factor"),
        "latents_mean": Key(None, "latents_mean"),
        "latents_std": Key(None, "latents_std"),
        "force_upcast": Key(True, "force_upcast"),
        "use_quant_conv": Key(True, "quant_conv"),
        "use_post_quant_conv": Key(True, "post_quant_conv"),
    },
    present=present_name,
    overflows=lambda config: config.force_upcast,
)

_VQ_MODEL = Architecture(
    class_name="VQModel",
    make=VQConfig,
    build=vq_autoencoder,
    keys={
        **_BACKBONE,
        "latent_channels": Key(3, "latent_channels"),
        "num_vq_embeddings": Key(256, "codebook_size"),
        "vq_embed_dim": Key(None, "codebook_dim"),
        "lookup_from_codebook": Key(False, only=(False,)),
        "norm_type": Key(
            "group",
            "spatial_norm",
            only=("group", "spatial"),
            read=lambda kind: kind == "spatial",
            write=lambda spatial: "spatial" if spatial else "group",
        ),
    },
    names={"quantize.embedding": "quantize"},
    present=present_name,
)

_AUTOENCODER_TINY = Architecture(
    class_name="AutoencoderTiny",
    make=AutoencoderTinyConfig,
    build=autoencoder_tiny,
    keys={
        "in_channels": Key(3, "in_channels"),
        "out_channels": Key(3, "out_channels"),
        "encoder_block_out_channels": Key((64,) * 4, "encoder_channels"),
        "decoder_block_out_channels": Key((64,) * 4, "decoder_channels"),
        "act_fn": Key("relu", "act", only=ACTS),
        "upsample_fn": Key("nearest", only=("nearest",)),
        "latent_channels": Key(4, "latent_channels"),
        "upsampling_scaling_factor": Key(2, "upsampling"),
        "num_encoder_blocks": Key((1, 3, 3, 3), "encoder_blocks"),
        "num_decoder_blocks": Key((3, 3, 3, 1), "decoder_blocks"),
        "latent_magnitude": Key(3, "latent_magnitude"),
        "latent_shift": Key(0.5, "latent_shift"),
        "scaling_factor": Key(1.0, "scaling_factor"),
        "shift_factor": Key(0.0, "shift_factor"),
    },
)

AUTOENCODERS = [_AUTOENCODER_KL, _VQ_MODEL, _AUTOENCODER_TINY]
