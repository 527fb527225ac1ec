"""A folder of image files as a source.

The class of an image is the name of the folder that it lies in, classes numbered in sorted order:

    flowers/daisy/1.png    label 0
    flowers/rose/1.jpg     label 1

Captions come from a file captions.jsonl or metadata.jsonl in the top folder, one JSON object a
line: {"file_name": "daisy/1.png", "text": "a white daisy"}; `file` and `caption` are read as well.
Long captions, for mixtures of both, stand in long_captions.jsonl in the same form.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diffjax.data.sources import fit, make_example

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
LONG_CAPTION_FILES = ("long_captions.jsonl",)


@dataclass(frozen=True)
class Files:
    """Image files, decoded on access; `image_folder` makes one.

    Attributes:
      paths: the files.
      shape: (image_size, image_size, channels) of every image, after resizing.
      labels: a class for each file, or None.
      class_names: the names of the classes; class k is class_names[k].
      captions, long_captions: a caption for each file, or None.
    """

    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    captions: tuple[str, ...] | None
    long_captions: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int | None:
        return None if self.labels is None else len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_example(
            read_image(self.paths[index], self.shape),
            index,
            label=self.labels,
            caption=self.captions,
            long_caption=self.long_captions,
        )


def image_folder(path: str | Path, image_size: int, *, channels: int = 3) -> Files:
    """Read the image files in a folder and its subfolders, resized to squares.

    Args:
      path: the top folder. Subfolders are classes; images directly in it have no labels.
      image_size: pixels a side; the largest centred square of each image is resized to it.
      channels: 3 for colour, 1 for grey. Images are converted.

    Returns:
      A source in sorted order of the file names.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: images both in the folder itself and in subfolders, or a caption file that does
        not fit the images.
    """
    root = Path(path).expanduser()
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; expected 3 (colour) or 1 (grey).")
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected a folder of images.")
    paths = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{root} holds no images ({' '.join(SUFFIXES)}).")
    labels, class_names = _classes(root, paths)
    shape = (image_size, image_size, channels)
    captions, long = (
        _captions(root, paths, names) for names in (CAPTION_FILES, LONG_CAPTION_FILES)
    )
    return Files(tuple(paths), shape, labels, class_names, captions, long)


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a file to uint8 of the given (size, size, channels), upright as its EXIF data says."""
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its pixels are of mode {file.mode}, not 8 bits a channel")
            image = ImageOps.exif_transpose(file).convert("L" if shape[2] == 1 else "RGB")
        return np.asarray(fit(image, shape[0])).reshape(shape)
    except Exception as error:
        raise ValueError(f"{path} could not be read as an image: {error}") from error


def _classes(root: Path, paths: list[Path]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """A label for each file and the names of the classes; no labels for a flat folder."""
    loose = [file for file in paths if file.parent == root]
    if len(loose) == len(paths):
        return None, ()
    if loose:
        raise ValueError(
            f"{root} holds images itself, such as {loose[0].name}, and in subfolders, which are "
            "the classes; move the former into a subfolder."
        )
    names = sorted({file.parent.name for file in paths})
    number = {name: label for label, name in enumerate(names)}
    return tuple(number[file.parent.name] for file in paths), tuple(names)


def _captions(root: Path, paths: list[Path], choice: tuple[str, ...]) -> tuple[str, ...] | None:
    """The caption of each file, or None if there is no caption file of any of these names."""
    files = [root / name for name in choice if (root / name).is_file()]
    if not files:
        return None
    captions = _read_captions(files[0])
    names = [file.relative_to(root).as_posix() for file in paths]
    missing = [name for name in names if name not in captions]
    if missing:
        raise ValueError(
            f"{files[0]} has no caption for {len(missing)} of {len(names)} images, such as "
            f"{missing[0]}."
        )
    unknown = sorted(set(captions) - set(names))
    if unknown:
        raise ValueError(f"{files[0]} names {unknown[0]}, which is not an image in {root}.")
    return tuple(captions[name] for name in names)


def _read_captions(file: Path) -> dict[str, str]:
    """File name → caption, from JSON lines."""
    captions = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file_name"] if "file_name" in entry else entry["file"]
            captions[name] = str(entry["text"] if "text" in entry else entry["caption"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{file}, line {number}: expected {{"file_name": "...", "text": "..."}}, not '
                f"{line[:60]!r}."
            ) from None
    return captions
