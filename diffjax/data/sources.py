"""What a source of images is, and the one that lives in memory.

A source is random-access: it has a length, and `source[i]` is a dict

    {"image": uint8 [H, W, C], "label": int, "caption": str, "long_caption": str}

with the label and the captions only where the set has them. All its images have the same `shape`,
and `num_classes` is None where there are no labels. Whatever has these four members can be fed to
`diffjax.data.batches`.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Source(Protocol):
    """The interface of every source of images."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Arrays:
    """Images in memory; `arrays` makes one of what a user gives, with checks.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int32 in 0..num_classes-1, or None.
      num_classes: how many classes there are, or None without labels.
      captions, long_captions: N strings, or None.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int | None = None
    captions: Sequence[str] | None = None
    long_captions: Sequence[str] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_example(
            self.images[index],
            index,
            label=self.labels,
            caption=self.captions,
            long_caption=self.long_captions,
        )


def make_example(
    image: np.ndarray, index: int, **columns: np.ndarray | Sequence[Any] | None
) -> dict[str, Any]:
    """What a source gives for row `index`: the image, and that row of all columns but None.

    >>> make_example(np.zeros((1, 1, 1), np.uint8), 1, label=[7, 8], caption=None)["label"]
    8
    """
    known = {name: column[index] for name, column in columns.items() if column is not None}
    return {"image": image, **known}


def arrays(images: np.ndarray, labels: np.ndarray | None = None, *, name: str = "arrays") -> Arrays:
    """Make a source of NumPy arrays.

    Args:
      images: [N, H, W, C] uint8, or [N, H, W] for grey images.
      labels: [N] integers from 0, or None. The classes are 0..max(labels).
      name: what the errors call the arrays, such as the file that they came from.

    Raises:
      ValueError: wrong dtype, shape, number or range.

    >>> source = arrays(np.zeros([3, 8, 8], np.uint8), np.array([0, 1, 1]))
    >>> len(source), source.shape, source.num_classes
    (3, (8, 8, 1), 2)
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"{name}: images are {images.dtype}; expected uint8, levels 0..255.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name}: images have shape {images.shape}; expected [N, H, W], or [N, H, W, C] with "
            "1, 3 or 4 channels."
        )
    if not images.size:
        raise ValueError(f"{name}: images have shape {images.shape}, which holds no pixels.")
    if labels is None:
        return Arrays(images)
    labels = checked_labels(np.asarray(labels), len(images), name)
    return Arrays(images, labels, int(labels.max()) + 1)


def checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Labels as [count] int32, or a ValueError that names their source."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: labels are {labels.dtype}; expected integers 0, 1, 2, ...")
    if labels.shape != (count,):
        raise ValueError(
            f"{name}: labels have shape {labels.shape}; expected ({count},), one for each image."
        )
    if labels.min() < 0:
        raise ValueError(f"{name}: the smallest label is {labels.min()}; labels count from 0.")
    return labels.astype(np.int32)


def npz(path: str | Path) -> Arrays:
    """Read a source from a NumPy archive with the arrays `images` and, if there, `labels`.

    Args:
      path: an .npz file with `images` [N, H, W, C] or [N, H, W] uint8 and optionally `labels`
        [N] integers; the files that experiments/sample.py writes are such archives.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such an archive; the message says what is wrong with it.
    """
    members = read_archive(path)
    return arrays(members["images"], members.get("labels"), name=str(path))


def read_archive(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, `images` among them; no pickle is opened.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no archive, is damaged, or has no array called images.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected an .npz archive of images.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} could not be read as an .npz archive: it is none.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            members = dict(archive)
    except Exception as error:
        raise ValueError(f"{path} could not be read as an .npz archive: {error}") from error
    if "images" not in members:
        names = ", ".join(members) or "no arrays"
        raise ValueError(f"{path} holds {names}; expected an array called images.")
    return members


def in_memory(source: Source) -> Arrays:
    """Decode every image of a source once and keep them all: for sets that fit into memory."""
    examples = [source[row] for row in range(len(source))]
    column = lambda name: [each[name] for each in examples] if name in examples[0] else None
    labels = None if source.num_classes is None else np.array(column("label"), np.int32)
    images = np.stack([example["image"] for example in examples])
    captions = (column("caption"), column("long_caption"))
    return Arrays(images, labels, source.num_classes, *captions)


def as_x0(images: np.ndarray) -> np.ndarray:
    """Bytes 0..255 as float32 in [-1, 1].

    >>> as_x0(np.array([0, 255], np.uint8)).tolist()
    [-1.0, 1.0]
    """
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Bring an image to size x size: its largest centred square, resized (bicubic, antialiased).

    >>> fit(Image.new("RGB", (40, 30)), 16).size
    (16, 16)
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
