"""The models beside text_to_image.py that look at pictures: image prompts, ControlNets, the safety
checker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffjax.networks.controlnet import ControlNetConfig
from diffjax.networks.image_tokens import ImageTokensConfig
from diffjax.networks.t2i_adapter import T2IAdapterConfig
from diffjax.pipelines import Inputs, with_control
from diffjax.pipelines.image_prompt import clip_pixels, image_prompt
from diffjax.pretrained import Components, Model, find_folder, load_model
from diffjax.pretrained.ip_adapter import IMAGE_TOKENS
from diffjax.pretrained.safety import load_safety_checker, unsafe


def read_rgb(path: Path) -> Image.Image:
    """A picture in colours."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    return Image.open(path).convert("RGB")


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture as [H, W, 3] float32 in [-1, 1], at the size of the images to be made."""
    picture = read_rgb(path).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 127.5 - 1.0


def seen_in(picture: Path, encoder: Path, parts: Components) -> tuple[np.ndarray, np.ndarray]:
    """What an IP-Adapter is told of a picture, and what of none.

    Args:
      picture: a file; FILE.npy holds the embedding itself, as adapters of faces need it.
      encoder: folder of CLIP's image encoder.
      parts: with the adapter.
    """
    config = parts.models[IMAGE_TOKENS].config
    if picture.suffix == ".npy":
        embedding = read_embedding(picture, config)
        return embedding, np.zeros_like(embedding)
    if isinstance(config, ImageTokensConfig) and config.hidden is not None:
        raise ValueError(
            f"this IP-Adapter sees faces: --image-prompt needs a FILE.npy with an embedding of "
            f"{config.embedding_features} numbers, as a face recogniser makes it"
        )
    if not encoder.is_dir():
        raise FileNotFoundError(
            f"{encoder} is not a folder; --image-encoder needs one with CLIP's image encoder"
        )
    model = load_model(encoder)
    pixels = np.asarray(read_rgb(picture), np.float32)[None] / 127.5 - 1.0

    def run(params: Any, pixels: Any) -> Any:
        seen = clip_pixels(pixels, model.config.image_size)
        return image_prompt(parts, model, params, seen)

    return jax.device_get(jax.jit(run)(model.params, pixels))


def read_embedding(file: Path, config: Any) -> np.ndarray:
    """The embedding of a picture that a file holds, [1, D]."""
    if not isinstance(config, ImageTokensConfig):
        raise ValueError(f"--image-prompt {file}: this IP-Adapter needs the picture itself")
    embedding = np.load(file, allow_pickle=False).astype(np.float32)
    if embedding.size != config.embedding_features:
        given = f"{embedding.shape}; this IP-Adapter sees {config.embedding_features} numbers"
        raise ValueError(f"--image-prompt {file} has the shape {given}")
    return embedding.reshape(1, -1)


def with_steering(parts: Components, folders: Sequence[str], **options: Any) -> Components:
    """Parts with the ControlNets and T2I-Adapters of some folders, in the place of their own.

    Args:
      folders: or names of repositories.
      **options: of `load_model`.
    """
    others = {name: each for name, each in parts.models.items() if not _steers(each.config)}
    load = lambda folder: load_model(find_folder(folder), **options)
    found = {f"control_{i}": load(folder) for i, folder in enumerate(folders)}
    for model, folder in zip(found.values(), folders):
        if not _steers(model.config):
            raise ValueError(f"--controlnet {folder} is neither a ControlNet nor a T2I-Adapter")
        here, there = _told(parts.models.get("unet")), _told(model)
        if isinstance(model.config, ControlNetConfig) and here != there:
            raise ValueError(
                f"--controlnet {folder} was made for another model: it is told {there}, the UNet "
                f"{here}"
            )
    return parts._replace(models={**others, **found})


def steering_of(parts: Components) -> dict[str, Model]:
    """The ControlNets and T2I-Adapters among the parts, by their names."""
    if getattr(getattr(parts.models.get("unet"), "config", None), "context", None) is None:
        raise ValueError(f"{parts.name} has no UNet; ControlNets and T2I-Adapters steer UNets")
    return {name: each for name, each in parts.models.items() if _steers(each.config)}


def show_control(
    parts: Components,
    conditions: list[Inputs],
    pictures: Sequence[Path],
    scales: Sequence[float],
    *,
    count: int,
    size: tuple[int, int],
) -> list[Inputs]:
    """Conditions with the pictures that steer.

    Args:
      parts: with a network for each of the pictures.
      pictures: files.
      scales: how much they count, one number for all or one for each.
      count: of the images.
      size: their height and width.
    """
    steering = steering_of(parts)
    if len(pictures) != len(steering):
        given = f"{len(pictures)} pictures for {len(steering)} ControlNets and T2I-Adapters"
        raise ValueError(f"--control-image has {given}")
    height, width = size
    each_scale = np.broadcast_to(scales, len(steering))
    for (name, model), file, scale in zip(steering.items(), pictures, each_scale):
        control = isinstance(model.config, ControlNetConfig)
        channels = model.config.condition_channels if control else model.config.in_channels
        picture = read_rgb(file).convert("L" if channels == 1 else "RGB")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture, np.float32).reshape(1, height, width, channels) / 255.0
        pixels = jnp.tile(pixels, (count, 1, 1, 1))
        conditions = with_control(conditions, name, pixels, scales=scale)
    return conditions


def _told(model: Model | None) -> str:
    """What a UNet or ControlNet is told beside the noisy input, in words."""
    config = None if model is None else getattr(model.config, "encoder", model.config)
    context = getattr(config, "context", None)
    if context is None:
        return "nothing of a text"
    return f"{context.features} features of each token and {context.added or 'nothing'} beside them"


def _steers(config: Any) -> bool:
    return isinstance(config, ControlNetConfig | T2IAdapterConfig)


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
