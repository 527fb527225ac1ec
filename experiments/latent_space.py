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
from jax.sharding import Mesh
from tqdm import tqdm

from autoencoding import FOLDER, find_autoencoder, load_autoencoder, make_encoder
from config import DataConfig, LatentsConfig
from diffjax import data
from diffjax.networks.vq import VQConfig
from diffjax.pipelines.system import latent_scale
from diffjax.pretrained import Model
from diffjax.training import batch_sharding, replicated

CACHE = "latents"
USUAL_STD = (0.5, 2.0)


@dataclass(frozen=True)
class LatentSpace:
    """What a run needs of its autoencoder.

    Attributes:
      model: the autoencoder.
      shift, scale: the run's data are (z - shift) scale.
      decode: the run's data [..., h, w, c], split over the devices, -> images [..., H, W, C].
    """

    model: Model
    shift: np.ndarray
    scale: np.ndarray
    decode: Callable[[Any], Array]


def load_latent_space(workdir: Path, mesh: Mesh) -> LatentSpace:
    """The latent space of a run, from its own copy of the autoencoder."""
    model = load_autoencoder(workdir / FOLDER, mesh)
    shift, scale = scale_of(model.config)
    whole = replicated(mesh)
    split = whole if mesh.shape["data"] == 1 else batch_sharding(mesh)

    def decode(params: Any, x: Array) -> Array:
        return model.network.decode(params, x / scale + shift)

    run = jax.jit(decode, in_shardings=(whole, split), out_shardings=whole)

    def decode_all(x: Any) -> Array:
        x = np.asarray(x)
        if x.ndim == 4:
            return run(model.params, x)
        return np.stack([np.asarray(decode_all(part)) for part in x])  # type: ignore

    return LatentSpace(model, shift, scale, decode_all)


def decoded(generate: Callable[..., Array], space: LatentSpace) -> Callable[..., Array]:
    """A function that makes latents as one that makes images."""
    return lambda *given: space.decode(generate(*given))


def scale_of(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale) of an autoencoder's latents."""
    if isinstance(config, VQConfig):
        return np.float32(0.0), np.float32(config.scaling_factor)  # type: ignore
    return latent_scale(config)


def prepare_latents(
    config: LatentsConfig, images: DataConfig, source: data.Source, workdir: Path, mesh: Mesh
) -> tuple[LatentSpace, data.Latents]:
    """Copy the autoencoder into the run folder, and encode the images where that is not done.

    Raises:
      FileNotFoundError: there is no such autoencoder.
      ValueError: the encoded images are others, or of another autoencoder.
    """
    copy_autoencoder(config.autoencoder, workdir)
    space = load_latent_space(workdir, mesh)
    folder = Path(config.path or workdir / CACHE)
    identity = identity_of(images, workdir)
    if not folder.exists():
        source = data.Mirrored(source) if images.flip else source
        print(f"Encoding {len(source)} images into {folder} first", file=sys.stderr)
        with tqdm(total=len(source), unit="image", disable=jax.process_index() != 0) as bar:
            data.write_latents(
                folder, source, make_encoder(space.model, mesh),
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
    if (workdir / FOLDER).is_dir():
        return
    if not folder:
        raise ValueError("This run diffuses latents: give --autoencoder FOLDER.")
    found = find_autoencoder(folder)
    if jax.process_index() == 0:
        draft = workdir / f"{FOLDER}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in (found / "config.json", *found.glob("*.safetensors*")):
            shutil.copyfile(path, draft / path.name)
        draft.rename(workdir / FOLDER)


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
