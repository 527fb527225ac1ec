"""Images as prompts: what CLIP sees in a picture, beside the words.

    parts = load_ip_adapter(file, parts)
    system = image_prompted(make_system(parts), parts)
    pixels = clip_pixels(pictures, encoder.config.image_size)
    seen, nothing = image_prompt(parts, encoder, encoder.params, pixels)
    conditions = with_image_prompt(conditions, seen, nothing)
    images = txt2img(system, params, keys, conditions, ...)

A ControlNet beside it sees the words alone: `steered(..., image_tokens=...)`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.networks.functional import Params
from diffjax.networks.image_tokens import ImageTokensConfig, ResamplerConfig
from diffjax.pipelines.system import Inputs, System
from diffjax.pretrained import Components, Model
from diffjax.pretrained.ip_adapter import IMAGE_TOKENS

# of the pictures that CLIP was trained on, in [0, 1]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(
    pictures: Array,
    size: int,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Array:
    """What an image encoder of CLIP takes: the middle of pictures at its size, normalised.

    Source: arXiv:2103.00020; the shorter side is resized by cubic interpolation, as there.

    Args:
      pictures: [B, H, W, 3] in [-1, 1].
      size: side of the encoder's images.
      mean, std: of each channel in [0, 1], if the encoder was not trained on CLIP's.

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
    return (middle - jnp.array(mean)) / jnp.array(std)


def image_embedding(model: Model, params: Params, pixels: Array) -> Array:
    """The embedding of images by an image encoder of CLIP with a projection, [B, D].

    Args:
      model: the encoder.
      params: its params.
      pixels: [B, S, S, 3], see `clip_pixels`.
    """
    return model.network.apply(params, pixels).pooled


def image_prompt(
    parts: Components, model: Model, params: Params, pixels: Array
) -> tuple[Array, Array]:
    """What the IP-Adapter of the parts is told of images, and what of no image.

    That is the embedding and zeros, or, for an adapter that resamples (Plus), the states in front
    of the encoder's last layer, of the images and of zeros in their place.

    Args:
      parts: from `load_ip_adapter`.
      model: the image encoder of CLIP that the adapter was trained with.
      params: its params.
      pixels: [B, S, S, 3], see `clip_pixels`.

    Raises:
      ValueError: the adapter was trained with an encoder of another size, or sees faces: then their
        embeddings are what `with_image_prompt` takes.
    """
    config = parts.models[IMAGE_TOKENS].config
    if isinstance(config, ImageTokensConfig) and config.hidden is not None:
        raise ValueError("the IP-Adapter sees embeddings of faces, which CLIP does not make")
    resamples = isinstance(config, ResamplerConfig)
    needed = config.state_features if resamples else config.embedding_features
    given = model.config.hidden_size if resamples else model.config.projection_dim
    if given != needed:
        kind = "states" if resamples else "an embedding"
        raise ValueError(
            f"the IP-Adapter sees {kind} of {needed} features, and this image encoder makes {given}"
        )
    if not resamples:
        embedding = image_embedding(model, params, pixels)
        return embedding, jnp.zeros_like(embedding)
    states = lambda pixels: model.network.apply(params, pixels).hidden[-2]
    return states(pixels), states(jnp.zeros_like(pixels))


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


def with_image_prompt(
    conditions: Sequence[Inputs], seen: Array, nothing: Array | None = None
) -> list[Inputs]:
    """Conditions of which the first sees an image, and the others none.

    Args:
      conditions: of the prompts, then of what to keep away from.
      seen, nothing: [B, ...], see `image_prompt`; nothing is zeros by default.
    """
    first, *others = conditions
    nothing = jnp.zeros_like(seen) if nothing is None else nothing
    return [
        {**first, "image_prompt": seen},
        *({**each, "image_prompt": nothing} for each in others),
    ]
