"""The latent space of a run that diffuses latents: its autoencoder and the encoded images.

runs/NAME/autoencoder/       a copy of the autoencoder, so that the run stands by itself
runs/NAME/latents/           the encoded images, see diffjax/data/latents.py
"""

import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from tqdm import tqdm

from autoencoding import (
    FOLDER,
    find_autoencoder,
    in_batches,
    load_autoencoder,
    make_encoder,
)
from config import DataConfig, LatentsConfig
from diffjax import data
from diffjax.networks.vq import VQConfig
from diffjax.pipelines.system import latent_scale
from diffjax.pretrained import Model

CACHE = "latents"
USUAL_STD = (0.5, 2.0)


@dataclass(frozen=True)
class LatentSpace:
    """What a run needs of its autoencoder.

    Attributes:
      model: the autoencoder.
      factor: pixels a side of an image for one of its latents.
      shift, scale: the run's data are (z - shift) scale.
      decode: the run's data [..., h, w, c] -> images [..., H, W, C], in the memory of the host.
    """

    model: Model
    factor: int
    shift: np.ndarray
    scale: np.ndarray
    decode: Callable[[Any], np.ndarray]


def load_latent_space(workdir: Path, shape: tuple[int, int, int]) -> LatentSpace:
    """The latent space of a run, from its own copy of the autoencoder.

    Args:
      workdir: the run folder.
      shape: (h, w, c) of the run's data.
    """
    model = load_autoencoder(workdir / FOLDER)
    shift, scale = scale_of(model.config)
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    run = in_batches(
        lambda params, x: model.network.decode(params, x / scale + shift),
        model.params, shape[0] * shape[1] * factor**2,
    )  # fmt: skip

    def decode(x: Any) -> np.ndarray:
        *leading, height, width, channels = np.shape(x)
        images = run(np.reshape(x, (-1, height, width, channels)))
        return images.reshape(*leading, *images.shape[1:])

    return LatentSpace(model, factor, shift, scale, decode)


def decoded(generate: Callable[..., Array], space: LatentSpace) -> Callable[..., np.ndarray]:
    """A function that makes latents as one that makes images."""
    return lambda *given: space.decode(generate(*given))


def scale_of(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale) of an autoencoder's latents."""
    if isinstance(config, VQConfig):
        return np.float32(0.0), np.float32(config.scaling_factor)  # type: ignore
    return latent_scale(config)


def prepare_latents(
    config: LatentsConfig,
    images: DataConfig,
    source: data.Source,
    workdir: Path,
    shape: tuple[int, int, int],
) -> tuple[LatentSpace, data.Latents]:
    """Copy the autoencoder into the run folder, and encode the images where that is not done.

    Args:
      config: of the latents.
      images: says which images; `source` holds them.
      source: of the images.
      workdir: the run folder.
      shape: (h, w, c) of the latents that the run's network is made for.

    Raises:
      FileNotFoundError: there is no such autoencoder.
      ValueError: the encoded images are others, or of another autoencoder.
    """
    copy_autoencoder(config.autoencoder, workdir)
    space = load_latent_space(workdir, shape)
    folder = Path(config.path or workdir / CACHE)
    identity = identity_of(images, workdir)
    if not folder.exists():
        source = data.Mirrored(source) if images.flip else source
        print(f"Encoding {len(source)} images into {folder} first", file=sys.stderr)
        with tqdm(total=len(source), unit="image", disable=jax.process_index() != 0) as bar:
            data.write_latents(
                folder, source, make_encoder(space.model, source.shape),
                identity=identity, dtype=config.dtype, on_image=bar.update,
            )  # fmt: skip
    latents = data.read_latents(folder)
    if latents.identity != identity:
        changed = sorted(name for name in identity if latents.identity.get(name) != identity[name])
        raise ValueError(
            f"{folder} holds latents of another {' and '.join(changed)}. Delete it, or give "
            "another --latents.path."
        )
    check_scale(latents, space)
    return space, latents


def copy_autoencoder(folder: str, workdir: Path) -> None:
    """Copy the autoencoder into the run folder, if it is not there."""
    target = workdir / FOLDER
    if jax.process_index() == 0 and not target.is_dir():
        if not folder:
            raise ValueError("This run diffuses latents: give --autoencoder FOLDER.")
        found, draft = find_autoencoder(folder), workdir / f"{FOLDER}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in (found / "config.json", *found.glob("*.safetensors*")):
            shutil.copyfile(path, draft / path.name)
        draft.rename(target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the autoencoder is copied")


def identity_of(images: DataConfig, workdir: Path) -> dict[str, Any]:
    """What decides on the latents: the images, and the files of the autoencoder."""
    names = ("name", "split", "path", "image_size", "flip")
    told = {name: getattr(images, name) for name in names}
    digest = hashlib.sha256()
    for path in sorted((workdir / FOLDER).iterdir()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"data": told, "autoencoder": digest.hexdigest()}


def check_scale(latents: data.Latents, space: LatentSpace) -> None:
    """Warn where the latents of these images are far from variance 1 under the scale."""
    spread = float(np.sqrt(np.mean(np.square(latents.std * space.scale))))
    if not USUAL_STD[0] < spread < USUAL_STD[1]:
        warnings.warn(
            f"The scaled latents of these images have a standard deviation of {spread:.3g}, far "
            f"from 1; a scaling_factor of {float(np.mean(space.scale)) / spread:.4g} in "
            "autoencoder/config.json would mend that.",
            stacklevel=2,
        )
