"""What an image encoder sees in images: the embedding by which edit.py matches a style, and by
which evaluate.py compares sets.

FOLDER/config.json, *.safetensors       an image encoder of CLIP, in the format of transformers
FOLDER/preprocessor_config.json         image_mean and image_std; CLIP's where there is none

train.py leaves that of a run with captions in RUN/image_encoder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffjax.networks.clip import CLIPVisionConfig
from diffjax.pipelines.image_prompt import CLIP_MEAN, CLIP_STD, clip_pixels
from diffjax.pretrained import load_model
from text import PREPROCESSOR


class Embedding(NamedTuple):
    """An image encoder: `embed(params, images)`, [B, H, W, 1 or 3] in [-1, 1] to [B, D].

    The D numbers have the mean square 1, so that the mean square of a difference of two embeddings
    is 2 - 2 cos of the angle between them.
    """

    params: Any
    embed: Callable[[Any, Array], Array]


def load_embedding(folder: Path, *, flag: str = "--embedding") -> Embedding:
    """Read an image encoder, from the folder that a flag of the command line names.

    Raises:
      ValueError: the folder holds another network, or one for other images than in colour.
      FileNotFoundError: it holds none.
    """
    encoder = load_model(folder)
    config = encoder.config
    if not isinstance(config, CLIPVisionConfig) or config.in_channels != 3:
        raise ValueError(
            f"{flag} is {folder}, which holds a {type(config).__name__}; needed is an image "
            "encoder of CLIP for images in colour."
        )
    file = folder / PREPROCESSOR
    settings = json.loads(file.read_text()) if file.is_file() else {}
    scaling = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)

    def embed(params: Any, images: Array) -> Array:
        # grey images have three equal channels
        coloured = jnp.broadcast_to(images, (*images.shape[:-1], 3))
        mean, std = scaling
        pixels = clip_pixels(coloured, config.image_size, mean=mean, std=std)
        pooled = encoder.network.apply(params, pixels).pooled
        return pooled / jnp.sqrt(jnp.mean(pooled**2, axis=-1, keepdims=True))

    return Embedding(encoder.params, embed)
