"""Images as prompts: what CLIP sees in a picture, beside the words.

    parts = load_ip_adapter(file, parts)
    system = image_prompted(make_system(parts), parts)
    pixels = clip_pixels(pictures, encoder.config.image_size)
    seen = image_embedding(encoder, encoder.params, pixels)
    images = txt2img(system, params, keys, with_image_prompt(conditions, seen), ...)

A ControlNet beside it takes the tokens of the image for words.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.networks.functional import Params
from diffjax.pipelines.system import Inputs, System
from diffjax.pretrained import Components, Model
from diffjax.pretrained.ip_adapter import IMAGE_TOKENS

# of the pictures that CLIP was trained on, in [0, 1]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(pictures: Array, size: int) -> Array:
    """What an image encoder of CLIP takes: the middle of pictures at its size, normalised.

    Source: arXiv:2103.00020; the shorter side is resized by cubic interpolation, as there.

    Args:
      pictures: [B, H, W, 3] in [-1, 1].
      size: side of the encoder's images.

    Returns:
      [B, size, size, 3].

    >>> clip_pixels(jnp.zeros((1, 32, 48, 3)), 16).shape
    (1, 16, 16, 3)
    """
    count, height, width, channels = pictures.shape
    scale = size / min(height, width)
    rows, columns = max(size, round(height * scale)), max(size, round(width * scale))
    small = jax.image.resize(pictures, (count, rows, columns, channels), "cubic")
    top, left = (rows - size) // 2, (columns - size) // 2
    middle = jnp.clip(small[:, top : top + size, left : left + size] / 2 + 0.5, 0.0, 1.0)
    return (middle - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)


def image_embedding(model: Model, params: Params, pixels: Array) -> Array:
    """The embedding of images by an image encoder of CLIP with a projection, [B, D].

    Args:
      model: the encoder.
      params: its params.
      pixels: [B, S, S, 3], see `clip_pixels`.
    """
    return model.network.apply(params, pixels).pooled


def image_prompted(system: System, parts: Components) -> System:
    """A system that sees an image beside the text; its inputs need the entry of
    `with_image_prompt`.

    Source: IP-Adapter, arXiv:2308.06721.

    Args:
      system: made of the same parts.
      parts: from `load_ip_adapter`.
    """
    network = parts.models[IMAGE_TOKENS].network

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        seen = inputs["image_prompt"]
        rest = {name: each for name, each in inputs.items() if name != "image_prompt"}
        told = system.condition(params, rest)
        tokens = network.apply(params[IMAGE_TOKENS], seen).astype(told["context"].dtype)
        return {**told, "context": jnp.concatenate([told["context"], tokens], axis=1)}

    return system._replace(condition=condition)


def with_image_prompt(conditions: Sequence[Inputs], embedding: Array) -> list[Inputs]:
    """Conditions of which the first sees an image, and the others an embedding of zeros.

    Args:
      conditions: of the prompts, then of what to keep away from.
      embedding: [B, D], see `image_embedding`.
    """
    first, *others = conditions
    nothing = jnp.zeros_like(embedding)
    return [
        {**first, "image_prompt": embedding},
        *({**each, "image_prompt": nothing} for each in others),
    ]
