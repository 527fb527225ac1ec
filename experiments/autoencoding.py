"""Autoencoders: from a configuration to networks and losses, and from a run to a saved folder.

    runs/NAME/autoencoder/       as diffusers writes it (AutoencoderKL)

The discriminator is trained beside the autoencoder and thrown away with the run.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from choices import load_function
from config import AutoencodingConfig
from diffjax import data
from diffjax.core.latents import Posterior
from diffjax.core.losses import Loss
from diffjax.data.sources import as_x0
from diffjax.networks import Functional
from diffjax.networks.autoencoder_kl import autoencoder_kl
from diffjax.networks.patch_discriminator import patch_discriminator
from diffjax.networks.vq import VQConfig
from diffjax.pretrained import Model, load_model, save_model
from diffjax.training import batch_sharding, make_mesh, replicated
from diffjax.training.autoencoder import Discriminator, autoencoder_loss, psnr

FOLDER = "autoencoder"
MEASURED = 4096  # images at most by which latents are brought to variance 1
# images in a batch at most, and their pixels
MOST_IMAGES, MOST_PIXELS = 256, 2**22


def autoencoder_network(config: AutoencodingConfig) -> Functional:
    """An autoencoder, with its discriminator if it has one, as `init` and reconstruction.

        init(key) -> {"autoencoder": ..., "discriminator": ...}
        apply(params, images) -> images, through the mean of the latents

    Its params are those that `autoencoder_losses` train.
    """
    autoencoder = autoencoder_kl(config.network)
    critic = config.discriminator and patch_discriminator(config.discriminator)

    def init(key: Array) -> dict[str, Any]:
        own, its = jax.random.split(key)
        params = {"autoencoder": autoencoder.init(own)}
        return params if critic is None else {**params, "discriminator": critic.init(its)}

    def apply(params: Any, images: Array) -> Array:
        own = params["autoencoder"]
        return autoencoder.decode(own, autoencoder.encode(own, images).mean)

    return Functional(init, apply)


def autoencoder_losses(config: AutoencodingConfig) -> dict[int, Loss]:
    """The losses of an autoencoder, by the step behind which each begins.

    The discriminator joins later, when there is something to tell from images. Until then its
    gradient is zero, and it stays as it began.
    """
    autoencoder = autoencoder_kl(config.network)
    parts: dict[str, Any] = {
        "error": config.error,
        "kl_weight": config.kl_weight,
        "features": None if config.features is None else load_function("features", config.features),
        "perceptual_weight": config.perceptual_weight,
    }
    make = lambda **more: autoencoder_loss(autoencoder.encode, autoencoder.decode, **parts, **more)
    if config.discriminator is None:
        return {0: make()}
    apply = patch_discriminator(config.discriminator).apply
    critic = Discriminator(apply, config.discriminator_weight)
    return {0: make(), config.discriminator_start: make(discriminator=critic)}


def save_autoencoder(
    workdir: Path, config: AutoencodingConfig, params: Any, source: data.Source, mesh: Mesh
) -> Model:
    """Leave the autoencoder of a run in its folder, its scaling factor measured on the images.

    The factor is 1 / std over all elements of latents as drawn: the data of a diffusion run on
    them then has variance 1.
    """
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    model = Model(config.network, autoencoder_kl(config.network), jax.device_get(gather(params)))
    encode = make_encoder(model, source.shape)
    moments = [encode(images) for images in read_images(source, min(len(source), MEASURED))]
    mean, logvar = (np.concatenate(each).astype(np.float64) for each in zip(*moments))
    std = np.sqrt(np.mean(mean**2 + np.exp(logvar)) - np.mean(mean) ** 2)
    measured = dataclasses.replace(config.network, scaling_factor=float(1 / std))
    if jax.process_index() == 0:
        # whole or not at all: others may be reading the one before
        draft = workdir / f"{FOLDER}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        save_model(draft, measured, model.params)
        shutil.rmtree(workdir / FOLDER, ignore_errors=True)
        os.rename(draft, workdir / FOLDER)
    return model._replace(config=measured)


def find_autoencoder(folder: str | Path) -> Path:
    """The saved autoencoder of a run, or the folder itself.

    Raises:
      FileNotFoundError: it holds neither.
    """
    folder = Path(folder)
    for path in (folder / FOLDER, folder / "vae", folder / "vqvae", folder):
        if (path / "config.json").is_file() and list(path.glob("*.safetensors*")):
            return path
    raise FileNotFoundError(
        f"{folder} holds no autoencoder: expected the folder of a finished run such as "
        "digits_autoencoder, or one that diffusers saved."
    )


def load_autoencoder(folder: str | Path) -> Model:
    """Read an autoencoder, with or without a codebook.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the folder holds another network.
    """
    model = load_model(find_autoencoder(folder))
    if not hasattr(model.network, "encode"):
        raise ValueError(f"{folder} holds a {type(model.config).__name__}, not an autoencoder.")
    return model


def make_encoder(model: Model, shape: tuple[int, ...]) -> data.Encode:
    """Compile the encoder of an autoencoder, from images [n, *shape] to mean and logvar.

    Latents of a codebook are those in front of it, and certain; the decoder rounds.
    """
    certain = isinstance(model.config, VQConfig)

    def encode(params: Any, images: Array) -> Posterior:
        found = model.network.encode(params, images)
        # exp(-30 / 2) is nothing beside a latent
        return Posterior(found, jnp.full_like(found, -30.0)) if certain else found

    return in_batches(encode, model.params, shape[0] * shape[1])


def in_batches(
    function: Callable[[Any, Array], Any], params: Any, pixels: int
) -> Callable[[np.ndarray], Any]:
    """Compile `function(params, rows)` for rows in the memory of the host, and results there.

    Every process uses its own devices alone, on rows of its own. Rows are cut into batches of one
    size and the last one is filled up, so that little is compiled and memory is bounded.

    Args:
      function: of params and rows [b, ...]; its results are arrays [b, ...].
      params: of the function.
      pixels: of the image of a row, which decides on the size of a batch.
    """
    mesh = make_mesh(devices=jax.local_devices())
    devices = mesh.shape["data"]
    size = -(-max(1, min(MOST_IMAGES, MOST_PIXELS // pixels)) // devices) * devices
    split, whole = batch_sharding(mesh), replicated(mesh)
    run = jax.jit(function, in_shardings=(whole, split), out_shardings=split)
    params = jax.device_put(params, whole)

    def call(rows: np.ndarray) -> Any:
        parts = []
        for start in range(0, len(rows), size):
            part = np.asarray(rows[start : start + size])
            filled = np.pad(part, ((0, size - len(part)), *[(0, 0)] * (part.ndim - 1)))
            parts.append(jax.device_get(run(params, filled)))
        return jax.tree.map(lambda *each: np.concatenate(each)[: len(rows)], *parts)

    return call


def read_images(source: data.Source, count: int) -> Iterator[np.ndarray]:
    """The first images of a source in [-1, 1], some at a time."""
    for start in range(0, count, MOST_IMAGES):
        rows = range(start, min(start + MOST_IMAGES, count))
        yield as_x0(np.stack([source[i]["image"] for i in rows]))


def reconstruct_all(model: Model, source: data.Source, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions through the mean of the latents, and their PSNR: [count, ...], [count]."""
    encode, pixels = make_encoder(model, source.shape), source.shape[0] * source.shape[1]
    decode = in_batches(model.network.decode, model.params, pixels)
    found = []
    for images in read_images(source, count):
        seen = decode(encode(images)[0])
        found.append((seen, np.asarray(psnr(jnp.asarray(images), jnp.asarray(seen)))))
    seen, decibels = (np.concatenate(each) for each in zip(*found))
    return seen, decibels
