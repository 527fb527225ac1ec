"""The safety checker of Stable Diffusion: which pictures show what they should not.

    unsafe  if  cos(embedding, concept) > threshold   for any of its concepts,

with thresholds that are lower by 0.01 for pictures that are near one of its special concepts. The
embedding is that of CLIP; the concepts are embeddings of words that the authors keep to themselves.
Source: Red-Teaming the Stable Diffusion Safety Filter, arXiv:2210.04610, section 3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.networks.functional import Params
from diffjax.pretrained.folders import read_config, read_tensors
from diffjax.pretrained.models import Model, load_model

CLASS_NAME = "StableDiffusionSafetyChecker"

# tensors beside those of the encoder: name in files -> in params
_CONCEPTS = {
    "concept_embeds": "concepts",
    "concept_embeds_weights": "thresholds",
    "special_care_embeds": "special_concepts",
    "special_care_embeds_weights": "special_thresholds",
}
_LOWER = 0.01


def load_safety_checker(folder: str | Path) -> Model:
    """Read a safety checker; its params are those of the encoder and `concepts`.

        checker = load_safety_checker(folder)
        unsafe(checker, checker.params, clip_pixels(pictures, checker.config.image_size))

    Args:
      folder: holds config.json and *.safetensors.

    Raises:
      UnsupportedError, FileNotFoundError, ValueError: as in `load_model`.
    """
    tensors = dict(read_tensors(folder))
    settings = read_config(folder)
    vision = settings.get("vision_config")
    missing = sorted(_CONCEPTS.keys() - tensors.keys())
    if missing or not isinstance(vision, Mapping):
        what = f"{', '.join(missing)} in its files" if missing else "vision_config in config.json"
        raise ValueError(f"{folder} holds no {CLASS_NAME}: there is no {what}")
    taken = {name: jnp.asarray(np.asarray(tensors.pop(name))) for name in _CONCEPTS}
    # the encoder is a module of that name in a module of that name
    encoder = {name.replace("vision_model.", "", 1): each for name, each in tensors.items()}
    settings = {**vision, "projection_dim": settings.get("projection_dim", 512)}
    model = load_model(
        folder,
        class_name="CLIPVisionModelWithProjection",
        settings=settings,
        tensors=lambda config: encoder,
    )
    concepts = {_CONCEPTS[name]: array.astype(jnp.float32) for name, array in taken.items()}
    return model._replace(params={"encoder": model.params, "concepts": concepts})


def unsafe(checker: Model, params: Params, pixels: Array) -> Array:
    """Which pictures are not safe, [B] bool; pure, for use under `jit`.

    Args:
      checker: from `load_safety_checker`.
      params: its params.
      pixels: [B, S, S, 3], see `diffjax.pipelines.image_prompt.clip_pixels`.
    """
    embedding = checker.network.apply(params["encoder"], pixels).pooled
    there: dict[str, Any] = params["concepts"]

    def beyond(concepts: Array, thresholds: Array, lower: Array | float = 0.0) -> Array:
        scores = _cosine(embedding, concepts) - thresholds + lower
        # rounded as the authors round them
        return (jnp.round(scores, 3) > 0).any(axis=1)

    special = beyond(there["special_concepts"], there["special_thresholds"])
    return beyond(there["concepts"], there["thresholds"], _LOWER * special[:, None])


def _cosine(a: Array, b: Array) -> Array:
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    with jax.default_matmul_precision("highest"):
        return unit(a.astype(jnp.float32)) @ unit(b).T
