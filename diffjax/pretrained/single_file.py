"""One file with a whole system in the layout of latent diffusion's first releases.

    model.diffusion_model.                      the UNet
    first_stage_model.                          the autoencoder
    cond_stage_model.transformer. or .model.    the text encoder of Stable Diffusion 1 or 2
    conditioner.embedders.0. and .1.            those of SDXL; the refiner has the second as 0

The names are those of the first code, in which blocks are counted through all levels, and of
OpenCLIP. They become the names of diffusers' folders, from which the tables of `load_model` go on.
A file holds neither configurations nor tokenizers: those come from a folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.clip import CLIPTextConfig
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import at_level
from diffjax.pretrained.tensor_files import StoredTensor, read_tensor_file
from diffjax.pretrained.weights import UnsupportedError, renamer

# part of a system -> what its names may begin with, the most particular first
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
}

# parts of names inside the blocks of the UNet -> diffusers'
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

# the same of the autoencoder
_AUTOENCODER = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
}

# parts of OpenCLIP's names -> those of transformers
_OPEN_CLIP = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class TurnedTensor:
    """The transpose of a stored matrix, read when it is asked for."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.stored.__array__(dtype, copy).T


class SingleFile:
    """A whole system in one file.

        tensors = SingleFile(path).tensors("unet", config)

    Attributes:
      path: a safetensors file.
      stored: all of its tensors, none of them read yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.stored = read_tensor_file(self.path)
        known = [each for several in PREFIXES.values() for each in several]
        if not any(name.startswith(tuple(known)) for name in self.stored):
            raise UnsupportedError(
                f"{path} is no checkpoint in the layout of latent diffusion: no name begins with "
                f"{' or '.join(known)}"
            )

    def tensors(self, part: str, config: Any) -> dict[str, Any]:
        """The tensors of a part by the names that a folder's file would have.

        Args:
          part: "unet", "vae", "text_encoder" or "text_encoder_2".
          config: of its network.

        Raises:
          UnsupportedError: the file does not hold the part, or there are no names for its class.
        """
        for prefix in PREFIXES.get(part, ()):
            found = {
                name.removeprefix(prefix): tensor
                for name, tensor in self.stored.items()
                if name.startswith(prefix)
            }
            if found:
                return _renamed(found, config)
        raise UnsupportedError(f"{self.path} holds no part {part!r}")


def unet_names(config: UNetConfig) -> dict[str, str]:
    """Parts of the first release's names of a UNet -> those of diffusers.

    >>> names = unet_names(UNetConfig(block_out_channels=(32, 64), attention=(False, True)))
    >>> names["input_blocks.4.1"], names["output_blocks.2.2"]
    ('down_blocks.1.attentions.0', 'up_blocks.0.upsamplers.0')
    """
    names, levels = dict(_UNET), len(config.block_out_channels)
    labels = "add_embedding" if config.context and config.context.added else "class_embedding"
    names |= {f"label_emb.0.{2 * i}": f"{labels}.linear_{i + 1}" for i in range(2)}
    block = 0
    for level in range(levels):
        for i in range(at_level(config.layers_per_block, level)):
            block += 1
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.resnets.{i}"
            names[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{i}"
        block += 1
        names[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    attention = config.up_attention or config.attention
    block = 0
    for up, level in enumerate(reversed(range(levels))):
        for i in range(at_level(config.layers_per_block, level) + 1):
            names[f"output_blocks.{block}.0"] = f"up_blocks.{up}.resnets.{i}"
            if attention[level]:
                names[f"output_blocks.{block}.1"] = f"up_blocks.{up}.attentions.{i}"
            block += 1
        # the last place in the last block of the level
        place = 2 if attention[level] else 1
        names[f"output_blocks.{block - 1}.{place}"] = f"up_blocks.{up}.upsamplers.0"
    return names


def autoencoder_names(config: AutoencoderKLConfig) -> dict[str, str]:
    """The same of an autoencoder, whose levels on the way up are counted from the finest."""
    names, levels = dict(_AUTOENCODER), len(config.block_out_channels)
    for level in range(levels):
        up = levels - 1 - level
        names[f"down.{level}.downsample"] = f"down_blocks.{level}.downsamplers.0"
        names[f"up.{level}.upsample"] = f"up_blocks.{up}.upsamplers.0"
        for i in range(config.layers_per_block + 1):
            names[f"down.{level}.block.{i}"] = f"down_blocks.{level}.resnets.{i}"
            names[f"up.{level}.block.{i}"] = f"up_blocks.{up}.resnets.{i}"
    return names


def _renamed(found: Mapping[str, StoredTensor], config: Any) -> dict[str, Any]:
    if isinstance(config, CLIPTextConfig):
        open_clip = any(name.startswith("transformer.resblocks.") for name in found)
        return _from_open_clip(found, config) if open_clip else dict(found)
    tables: dict[type, Callable[[Any], dict[str, str]]] = {
        UNetConfig: unet_names,
        AutoencoderKLConfig: autoencoder_names,
    }
    if type(config) not in tables:
        raise UnsupportedError(f"single files hold no network of {type(config).__name__}")
    rename = renamer(tables[type(config)](config))
    return {rename(name): tensor for name, tensor in found.items()}


def _from_open_clip(found: Mapping[str, StoredTensor], config: CLIPTextConfig) -> dict[str, Any]:
    """OpenCLIP's names and shapes as those of transformers: three projections lie in one matrix."""
    rename, tensors = renamer(_OPEN_CLIP), {}
    for name, tensor in found.items():
        layer = name.removeprefix("transformer.resblocks.").split(".")[0]
        if layer.isdecimal() and int(layer) >= config.num_layers:
            continue  # models keep fewer layers than the files have
        if ".in_proj_" in name:
            stem, kind = name.split("attn.in_proj_")
            for i, each in enumerate("qkv"):
                tensors[f"{rename(stem[:-1])}.self_attn.{each}_proj.{kind}"] = _third(tensor, i)
        elif name == "text_projection":
            if config.projection_dim is not None:
                tensors[rename(name)] = TurnedTensor(tensor)
        elif name != "logit_scale":
            tensors[rename(name)] = tensor
    return tensors


def _third(tensor: StoredTensor, i: int) -> StoredTensor:
    """Rows of a stored tensor, which are its neighbours in the file too."""
    shape = (tensor.shape[0] // 3, *tensor.shape[1:])
    size = int(np.prod(shape)) * tensor.dtype.itemsize
    return replace(tensor, shape=shape, start=tensor.start + i * size)
