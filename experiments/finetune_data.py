"""The pictures of a fine-tuning run, and what a system is told of each."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffjax import data
from diffjax.data.folder import SUFFIXES, Files, image_folder
from diffjax.pipelines import Inputs, System
from finetune_config import FinetuneConfig
from runs import open_source

Example = dict[str, Any]

# what a word is learned in: arXiv:2208.01618, section 4, takes CLIP's templates
TEMPLATES = (
    "a photo of {}",
    "a rendering of {}",
    "a cropped photo of {}",
    "the photo of {}",
    "a close-up photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a good photo of {}",
    "a depiction of {}",
    "a photo of one {}",
)


@dataclass(frozen=True)
class Told:
    """A source whose examples pass through a function of their position.

    Attributes:
      source: what is read.
      tell: (position, example) -> example.
      channels: of its images.
    """

    source: data.Source
    tell: Callable[[int, Example], Example]
    channels: int = 3
    num_classes: None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.source.shape[:2], self.channels)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.tell(index, self.source[index])


@dataclass(frozen=True)
class Both:
    """Pictures of an instance and of its class in turn, each of the fewer ones several times."""

    instance: data.Source
    prior: data.Source
    num_classes: None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.instance.shape

    def __len__(self) -> int:
        return 2 * max(len(self.instance), len(self.prior))

    def __getitem__(self, index: int) -> Example:
        source = self.prior if index % 2 else self.instance
        return source[index // 2 % len(source)]


def open_pictures(config: FinetuneConfig, system: System) -> data.Source:
    """The pictures to learn from, each with its caption and its size before it was resized.

    Raises:
      ValueError: there are no captions, or the size does not fit the model.
    """
    size = config.data.image_size or (None if config.data.name != "folder" else system.size[0])
    source = open_source(dataclasses.replace(config.data, image_size=size))
    if source.shape[-1] != 3:
        raise ValueError(f"the images are {source.shape}; the model makes colour pictures.")
    system.latent_shape(*source.shape[:2])  # refuses sides that do not fit
    if _captions(config) is None and "caption" not in source[0]:
        raise ValueError(
            "the pictures have no captions; give --prompt for all of them, or a captions.jsonl."
        )
    return Told(source, functools.partial(_tell, _captions(config), source))


def open_prior(config: FinetuneConfig, folder: Path, side: int) -> data.Source:
    """DreamBooth's pictures of the class."""
    source = image_folder(folder, side)
    told = {"caption": config.prior.prompt, "loss_weight": config.prior.weight}
    return Told(source, lambda index, example: {"image": example["image"], **told})


def with_conditions(source: data.Source, folder: str) -> data.Source:
    """Pictures with those that steer them as further channels, so that both are mirrored at once.

    Raises:
      ValueError: the folder does not hold a picture of the same name for each.
    """
    files = source.source if isinstance(source, Told) else source
    if not isinstance(files, Files):
        raise ValueError("--control.images goes with pictures in a folder (--data.path).")
    there = {path.stem: path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES}
    missing = [path.name for path in files.paths if path.stem not in there]
    if missing:
        raise ValueError(
            f"{folder} lacks a picture for {len(missing)} of {len(files)}, such as {missing[0]}."
        )
    paths = tuple(there[path.stem] for path in files.paths)
    conditions = Files(paths, files.shape, None, (), None)

    def tell(index: int, example: Example) -> Example:
        pair = [example["image"], conditions[index]["image"]]
        return {**example, "image": np.concatenate(pair, axis=-1)}

    return Told(source, tell, channels=6)


def encode_captions(system: System, height: int, width: int, captions: list[str]) -> Inputs:
    """The inputs of a system for a batch of captions, for `data.batches`."""
    return system.prepare(captions, None, height=height, width=width)[0]


def encode_examples(
    system: System, height: int, width: int, examples: list[Example]
) -> dict[str, np.ndarray]:
    """What else is said of a batch: how much each picture counts, and to SDXL its sizes."""
    weights = [example.get("loss_weight", 1.0) for example in examples]
    batch = {"loss_weight": np.array(weights, np.float32)}
    told = encode_captions(system, height, width, [""] * len(examples))
    if "time_ids" in told:
        sizes = [example.get("size", (height, width)) for example in examples]
        batch["time_ids"] = told["time_ids"]
        batch["time_ids"][:, :4] = [crop_of(size, (height, width)) for size in sizes]
    return batch


def crop_of(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, ...]:
    """What SDXL is told of a picture whose largest centred square was resized: height and width
    before, and the top and left edge of the square after it.

    Source: SDXL, arXiv:2307.01952, section 2.2.

    >>> crop_of((600, 400), (512, 512))
    (600, 400, 128, 0)
    """
    height, width = size
    side = min(size)
    top, left = ((n - side) // 2 * t // side for n, t in zip(size, target))
    return height, width, top, left


def original_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, upright as its EXIF data says."""
    with Image.open(path) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5
        width, height = picture.size
        return (width, height) if turned else (height, width)


def _captions(config: FinetuneConfig) -> tuple[str, ...] | None:
    """Captions in the place of the data's own, taken in turn."""
    if config.prompt is not None:
        return (config.prompt,)
    if config.method == "textual_inversion":
        return tuple(template.format(config.word.token) for template in TEMPLATES)
    return None


def _tell(
    captions: tuple[str, ...] | None, source: data.Source, index: int, example: Example
) -> Example:
    told = {"image": example["image"], "caption": example.get("caption")}
    if captions is not None:
        told["caption"] = captions[index % len(captions)]
    if isinstance(source, Files):
        told["size"] = original_size(source.paths[index])
    return told
