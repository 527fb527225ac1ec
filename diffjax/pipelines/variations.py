"""Variations of pictures, by networks that attend to what CLIP sees in them instead of a text."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.networks.functional import Params
from diffjax.pipelines.image_prompt import clip_pixels, image_embedding
from diffjax.pipelines.stable_diffusion import unet_system
from diffjax.pipelines.system import Inputs, System, kl_codec
from diffjax.pretrained import Components


def image_variation(parts: Components) -> System:
    """Stable Diffusion told CLIP's embedding of a picture, as its only token.

    `prepare(pictures, negative=None, *, height, width)`: pictures [B, H, W, 3] in [-1, 1] take the
    places of prompts; negative is a list of None, of which each is a token of zeros. `txt2img`
    then makes variations of the pictures.
    Source: Stable Diffusion Image Variations, Lambda Labs 2022.
    """
    encoder = parts.models["image_encoder"]

    def prepare(
        pictures: Array, negative: Sequence[None] | None = None, **sizes: int
    ) -> list[Inputs]:
        if np.ndim(pictures) != 4 or (negative is not None and any(negative)):
            raise ValueError(
                "this model makes variations of pictures, [B, H, W, 3] in [-1, 1], away from "
                "nothing: it takes no texts, only None for each picture"
            )
        pixels = clip_pixels(jnp.asarray(pictures), encoder.config.image_size)
        kept = [1.0] if negative is None else [1.0, 0.0]
        return [{"pixels": pixels, "kept": np.full(len(pixels), each, "f4")} for each in kept]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        seen = image_embedding(encoder, params["image_encoder"], inputs["pixels"])
        return {"context": (seen * inputs["kept"][:, None])[:, None]}

    return unet_system(parts, kl_codec(parts), prepare=prepare, condition=condition)
