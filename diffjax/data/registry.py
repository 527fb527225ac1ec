"""Data sets by name."""

import difflib
from pathlib import Path

from diffjax.data.folder import image_folder
from diffjax.data.photos import photos
from diffjax.data.shapes import SIDE, shapes
from diffjax.data.sources import Source, npz
from diffjax.data.tfds_sets import digits, tfds_set


def load(
    name: str,
    *,
    split: str | None = None,
    path: str | Path | None = None,
    image_size: int | None = None,
) -> Source:
    """Open a data set by its name.

    Args:
      name: `digits`, `photos`, `shapes`, `folder`, `npz`, or any prepared TFDS set: `cifar10`,
        `celeb_a`, ... (a prefix `tfds:` is allowed).
      split: for digits and TFDS sets, such as `train` or `train[:90%]`; for photos `train` or
        `test`; for shapes `train`, `seen` or `held_out`; by default `train`, and `train+test` for
        the digits.
      path: the folder of images, the .npz file, or the data_dir of a TFDS set or the digits.
      image_size: pixels a side; needed for folders and for TFDS sets whose images differ in size.

    Raises:
      ValueError: an argument is missing or does not apply, or no set has this name.
    """
    if name in SETS:
        return SETS[name](split, path, image_size)
    stock = name.removeprefix("tfds:")
    near = difflib.get_close_matches(name, SETS, cutoff=0.8)
    if near and stock == name:
        raise ValueError(f"There is no data set called {name!r}. Did you mean {near[0]}?")
    return tfds_set(stock, split or "train", data_dir=path, image_size=image_size)


def _digits(split: str | None, path: str | Path | None, image_size: int | None) -> Source:
    if image_size not in (None, 8):
        raise ValueError(f"image_size is {image_size}; the digits are 8x8 and are not resized.")
    return digits(split, data_dir=path)


def _photos(split: str | None, path: str | Path | None, image_size: int | None) -> Source:
    if path is not None:
        raise ValueError(f"path is {path}; the photographs are scikit-learn's, from no other file.")
    return photos(split or "train", **({} if image_size is None else {"size": image_size}))


def _shapes(split: str | None, path: str | Path | None, image_size: int | None) -> Source:
    if path is not None:
        raise ValueError(f"path is {path}; the shapes are made as they are read, from no file.")
    if image_size not in (None, SIDE):
        raise ValueError(f"image_size is {image_size}; the shapes are {SIDE}x{SIDE}.")
    return shapes(split or "train")


def _folder(split: str | None, path: str | Path | None, image_size: int | None) -> Source:
    if path is None or image_size is None:
        raise ValueError("A folder of images needs its path and an image_size.")
    _refuse_split("folder", split)
    return image_folder(path, image_size)


def _npz(split: str | None, path: str | Path | None, image_size: int | None) -> Source:
    if path is None:
        raise ValueError("An npz archive needs its path.")
    if image_size is not None:
        raise ValueError(f"image_size is {image_size}; images of an npz archive are not resized.")
    _refuse_split("npz", split)
    return npz(path)


def _refuse_split(name: str, split: str | None) -> None:
    if split is not None:
        raise ValueError(f"split is {split!r}; {name} has no splits, it is read as a whole.")


# name -> function of (split, path, image_size); other names are those of prepared TFDS sets
SETS = {"digits": _digits, "folder": _folder, "npz": _npz, "photos": _photos, "shapes": _shapes}
