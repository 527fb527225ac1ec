"""Sources made of TFDS data sets, without TensorFlow.

TFDS reads a prepared set without TensorFlow if it is stored as array_record, the format that also
gives random access. Preparing most stock sets does need TensorFlow; the digits here do not.
"""

import contextlib
import difflib
import hashlib
import io
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffjax.data.sources import Arrays, fit


@dataclass(frozen=True)
class Records:
    """The images, and class labels if there are any, of one split of a prepared TFDS set.

    Attributes:
      records: the random-access data source of TFDS; decodes on access.
      shape: of every image, after resizing.
      num_classes: how many classes there are, or None without labels.
      image_size: resize to this many pixels a side; None leaves the images as they are.
    """

    records: Any
    shape: tuple[int, int, int]
    num_classes: int | None
    image_size: int | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = record["image"]
        if self.image_size is not None:
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            image = np.asarray(fit(Image.fromarray(pixels), self.image_size)).reshape(self.shape)
        if self.num_classes is None:
            return {"image": image}
        return {"image": image, "label": int(record["label"])}


def tfds_set(
    name: str,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
) -> Records:
    """Read any prepared TFDS set of images by its name.

    Args:
      name: as TFDS knows it, such as `cifar10`, `celeb_a` or `imagenet_resized/64x64`.
      split: such as `train`, `test` or `train[:90%]`.
      data_dir: where it was prepared; by default where TFDS looks, ~/tensorflow_datasets or
        the variable TFDS_DATA_DIR.
      image_size: resize to this many pixels a side, after cutting out the centred square.

    Returns:
      A source. It has labels if the set has class labels under the name `label`.

    Raises:
      ValueError: no such set or split, not a set of images, sizes differ and no image_size is
        given, or prepared in a format without random access.
      FileNotFoundError: the set is not prepared; the message says where it was looked for.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    data_dir = Path(data_dir).expanduser() if data_dir is not None else None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"TFDS knows no data set called {name!r}.{hint}") from None
    shape, num_classes = _layout(builder, image_size)
    return Records(_open(builder, split), shape, num_classes, image_size)


def _layout(builder, image_size: int | None) -> tuple[tuple[int, int, int], int | None]:
    """The shape of the images of a set, and the number of its classes."""
    features = builder.info.features
    if "image" not in features:
        names = ", ".join(features)
        raise ValueError(f"{builder.name} has {names}; a set with the feature image is needed.")
    height, width, channels = features["image"].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ValueError(f"The images of {builder.name} differ in size; give an image_size.")
    has_classes = "label" in features and hasattr(features["label"], "num_classes")
    num_classes = features["label"].num_classes if has_classes else None
    return (height, width, channels), num_classes


def _open(builder, split: str):
    """The random-access records of a split, or an error that says what is in the way."""
    try:
        records = builder.as_data_source(split=split)
        if not len(records):
            raise ValueError("there are no images in it.")
        _read_one_quietly(records)
        return records
    except Exception as error:
        if not (Path(builder.data_dir) / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{builder.name} is not prepared: there is nothing in {builder.data_dir}. Give the "
                f"data_dir where it is, or call diffjax.data.prepare({builder.name!r}), which for "
                "most sets needs TensorFlow, once."
            ) from None
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise ValueError(
                f"{builder.data_dir} is stored as {file_format}, which has no random access; "
                f"prepare {builder.name} again elsewhere with diffjax.data.prepare."
            ) from None
        raise ValueError(f"{builder.name}, split {split!r}, cannot be read: {error}") from error


def _read_one_quietly(records) -> None:
    """Read the first record, past the advice to install OpenCV that TFDS logs once: Pillow does."""

    def keep(message: logging.LogRecord) -> bool:
        return "OpenCV" not in message.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        records[0]
    finally:
        logger.removeFilter(keep)


def prepare(name: str, *, data_dir: str | Path | None = None) -> Path:
    """Download a stock TFDS set and store it as array_record, so that `tfds_set` can read it.

    Args:
      name: as TFDS knows it, such as `cifar10`.
      data_dir: where to; by default where TFDS looks.

    Returns:
      The folder of the prepared set.

    Raises:
      ImportError: the set needs TensorFlow for this, and it is not installed.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ImportError(
            f"Preparing {name} needs TensorFlow, once: `pip install tensorflow`, then call this "
            "again; reading the prepared set does not need it."
        ) from error
    return Path(builder.data_dir)


def cache_dir() -> Path:
    """Where data that this package makes is kept.

    The variable DIFFJAX_DATA_DIR if it is set, else `diffjax` in the user's cache folder.
    """
    chosen = os.environ.get("DIFFJAX_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffjax"


def digits(split: str | None = None, *, data_dir: str | Path | None = None) -> Arrays:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, ten classes, decoded into memory.

    Prepared as a TFDS set on first use, which takes a few seconds. A grey level 0..16 is the byte
    round(level * 255 / 16). Images of all splits stand in one fixed shuffled order.

    Args:
      split: `train` (the first 1,437 of scikit-learn's order), `test` (the last 360, most of them
        by other writers), or what TFDS makes of them, such as `train[:90%]`; by default
        `train+test`, all.
      data_dir: where the prepared set is kept; by default `cache_dir()`.

    Raises:
      OSError: the folder cannot be written.
      ValueError: no such split, or the prepared set is damaged.
    """
    from diffjax.data.digits8x8.builder import SPLIT_SIZES, Digits8x8

    split = "train+test" if split is None else split
    data_dir = cache_dir() if data_dir is None else Path(data_dir).expanduser()
    folder = data_dir / Digits8x8.name / str(Digits8x8.VERSION)
    if not (folder / "dataset_info.json").exists():
        _prepare_digits(data_dir, folder)
    try:
        builder = Digits8x8(data_dir=data_dir)
        records = _open(builder, split)
        examples = sorted((records[i] for i in range(len(records))), key=_shuffled_place)
    except Exception as error:
        raise ValueError(f"{error} {_remedy(folder)}") from error
    expected = [SPLIT_SIZES.get(part) for part in split.split("+")]
    if None not in expected and len(examples) != sum(size or 0 for size in expected):
        raise ValueError(f"There are {len(examples)} digits in {split}. {_remedy(folder)}")
    labels = np.array([example["label"] for example in examples], np.int32)
    return Arrays(np.stack([example["image"] for example in examples]), labels, num_classes=10)


def _shuffled_place(example: dict[str, Any]) -> str:
    """What the digits are sorted by: the hash by which TFDS would shuffle them in one split."""
    return hashlib.md5(f"train{example['row']}".encode()).hexdigest()


def _remedy(folder: Path) -> str:
    return f"(If {folder} is damaged, delete it: it will be made again.)"


def _prepare_digits(data_dir: Path, target: Path) -> None:
    """Make the set in a folder of our own, then move it into place in one step.

    Two processes may do this at once: the set is the same whoever moves first.
    """
    from diffjax.data.digits8x8.builder import Digits8x8

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="preparing-", dir=data_dir) as folder:
            builder = Digits8x8(data_dir=folder, file_format="array_record")
            with _silence():
                builder.download_and_prepare()
            os.rename(builder.data_dir, target)
    except OSError as error:
        if (target / "dataset_info.json").exists():
            return
        raise OSError(
            f"The digits could not be prepared in {data_dir}: {error}. Give another data_dir, or "
            f"set DIFFJAX_DATA_DIR. {_remedy(target)}"
        ) from error


@contextlib.contextmanager
def _silence():
    """Drop what TFDS prints about its progress, which is over before it can be read."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
