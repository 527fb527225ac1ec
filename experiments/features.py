"""What two sets of images are compared by: the numbers that a network, or the pixels, make of each.

pixels                       the images themselves
FILE.safetensors             Inception V3 (FID, KID, inception score); see load_inception
FOLDER                       an image encoder of CLIP, such as RUN/image_encoder (CMMD)
RUN                          a classifier that train.py made, such as that of digits_classifier
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from diffjax.core.samples import unit_length
from diffjax.data.sources import Source, as_x0
from diffjax.metrics import cubic, gaussian
from diffjax.metrics.kernel import Kernel
from diffjax.networks.inception import SIZE
from diffjax.pretrained import load_inception
from diffjax.training import make_mesh
from diffjax.training.manifest import whole_file
from embeddings import load_embedding
from runs import CHECKPOINTS, image_shape, load_run


class Features(NamedTuple):
    """Numbers for each image.

    Attributes:
      name: what they are, such as the file of a network.
      params: of the network.
      see: (params, images [B, H, W, C] in [-1, 1]) -> features [B, D], and the probabilities of
        classes [B, K] where the network tells classes apart.
      kernel: by which such features are compared.
    """

    name: str
    params: Any
    see: Callable[[Any, Array], tuple[Array, Array | None]]
    kernel: Kernel = cubic


class Seen(NamedTuple):
    """What is known of a set.

    Attributes:
      features: [N, D].
      probabilities: [N, K] of classes, or None.
      duplicates: images that equal an earlier one.
    """

    features: np.ndarray
    probabilities: np.ndarray | None
    duplicates: int


def load_features(text: str) -> Features:
    """The features that `--features` names.

    Raises:
      FileNotFoundError, ValueError: there is no such network, or it is for other images.
    """
    path = Path(text)
    if text == "pixels":
        return Features(text, None, lambda _, images: (images.reshape(len(images), -1), None))
    if not path.exists():
        raise FileNotFoundError(f"--features is {text}; it must be pixels, or a file or folder.")
    if path.is_file():
        return _inception(path)
    return _classifier(path) if (path / CHECKPOINTS).is_dir() else _clip(path)


def see_all(features: Features, source: Source, batch_size: int) -> Seen:
    """The features of every image of a source."""
    see = jax.jit(features.see)
    take = lambda tree, count: jax.tree.map(lambda leaf: np.asarray(leaf)[:count], tree)
    parts, digests = [], set()
    for first in tqdm(range(0, len(source), batch_size), desc="features"):
        rows = range(first, min(first + batch_size, len(source)))
        images = np.stack([source[row]["image"] for row in rows])
        digests |= {hashlib.sha256(image.tobytes()).digest() for image in images}
        # one shape, one compilation
        padding = [(0, batch_size - len(images)), *[(0, 0)] * 3]
        found = see(features.params, as_x0(np.pad(images, padding)))
        parts.append(take(found, len(images)))
    numbers, chances = zip(*parts)
    probabilities = None if chances[0] is None else np.concatenate(chances)
    return Seen(np.concatenate(numbers), probabilities, len(source) - len(digests))


def save_features(path: Path, features: Features, seen: Seen) -> None:
    """Write the features of a reference, so that it need not be seen again."""
    with whole_file(path) as draft:
        np.savez_compressed(draft, features=seen.features, of=features.name)


def read_features(path: Path, features: Features) -> np.ndarray | None:
    """What `save_features` wrote; None where the file is something else.

    Raises:
      ValueError: they are features of another kind.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        if "of" not in archive:
            return None
        if str(archive["of"]) != features.name:
            raise ValueError(f"{path} holds features of {archive['of']}, not of {features.name}.")
        return archive["features"]


def _inception(path: Path) -> Features:
    model = load_inception(path)

    def see(params: Any, images: Array) -> tuple[Array, Array]:
        # without antialiasing, as the published figures have it
        shape = (len(images), SIZE, SIZE, 3)
        resized = jax.image.resize(_coloured(images), shape, "bilinear", antialias=False)
        output = model.network.apply(params, resized)
        return output.features, jax.nn.softmax(output.logits)

    return Features(path.name, model.params, see)


def _clip(path: Path) -> Features:
    embedding = load_embedding(path, flag="--features")

    def see(params: Any, images: Array) -> tuple[Array, None]:
        return unit_length(embedding.embed(params, images)), None

    return Features(path.name, embedding.params, see, gaussian(10.0))


def _classifier(path: Path) -> Features:
    run = load_run(path, make_mesh(), task="classify")
    shape = image_shape(run.config)

    def see(params: Any, images: Array) -> tuple[Array, Array]:
        if images.shape[1:] != shape:
            raise ValueError(f"{path} classifies images {shape}; these are {images.shape[1:]}.")
        logits = run.network.apply(params, images, jnp.zeros(len(images)))
        return logits, jax.nn.softmax(logits)

    return Features(path.name, run.params, see)


def _coloured(images: Array) -> Array:
    """Grey images with three equal channels."""
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))
