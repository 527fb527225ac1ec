"""The models beside text_to_image.py that look at pictures: image prompts, the safety checker."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffjax.pipelines.image_prompt import clip_pixels, image_embedding
from diffjax.pretrained import load_model
from diffjax.pretrained.safety import load_safety_checker, unsafe


def read_rgb(path: Path) -> Image.Image:
    """A picture in colours."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    return Image.open(path).convert("RGB")


def seen_in(picture: Path, encoder: Path) -> np.ndarray:
    """The embedding [D] of a picture by the CLIP image encoder in a folder."""
    if not encoder.is_dir():
        raise FileNotFoundError(
            f"{encoder} is not a folder; --image-encoder needs one with CLIP's image encoder"
        )
    model = load_model(encoder)
    pixels = np.asarray(read_rgb(picture), np.float32)[None] / 127.5 - 1.0

    def run(params: Any, pixels: Any) -> Any:
        return image_embedding(model, params, clip_pixels(pixels, model.config.image_size))

    return np.asarray(jax.jit(run)(model.params, pixels)[0])


class Watch:
    """A safety checker: which pictures [B, H, W, 3] uint8 show what they should not."""

    def __init__(self, folder: Path):
        checker = load_safety_checker(folder)
        self.params = checker.params

        def run(params: Any, pictures: Any) -> Any:
            scaled = pictures.astype(jnp.float32) / 127.5 - 1.0
            return unsafe(checker, params, clip_pixels(scaled, checker.config.image_size))

        self.run = jax.jit(run)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return np.asarray(self.run(self.params, pictures))
