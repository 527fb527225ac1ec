"""Images as an autoencoder sees them, encoded once and kept on disk.

A folder of latents is a TFDS data set with the split `train`, in array_record: for image i the mean
and the logarithm of the variance of its latents, so that a run can draw them anew in every epoch,
and its label and captions. Beside it `latents.json` says what was encoded by what.

    latents-train.array_record-00000-of-00002    and so on
    dataset_info.json, features.json             for TFDS and Grain
    latents.json                                 written last

Encoding goes shard by shard into FOLDER.part, and what a process that was killed had finished is
kept; the folder gets its name when it is whole. Several processes that see one file system share
the shards. array_record keeps a checksum of every record and refuses a damaged one.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffjax.data.captions import CAPTIONS
from diffjax.data.sources import Source, as_x0

INDEX = "latents.json"
NAME, SPLIT, VERSION = "latents", "train", 1
IN_MEMORY = 2**26  # bytes up to which all records are kept decoded
BATCH = 256

# images [b, H, W, C] in [-1, 1] -> mean and logvar, [b, h, w, c] each
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Latents:
    """A source of latents; `read_latents` makes one.

    Attributes:
      records: means, logvars, labels and captions by number.
      shape: (h, w, c) of the latents.
      num_classes: how many classes there are, or None without labels.
      mean, std: of the latents as drawn, for each channel.
      identity: what was encoded by what, as `write_latents` was told.
    """

    records: Sequence[dict[str, Any]]
    shape: tuple[int, int, int]
    num_classes: int | None
    mean: np.ndarray
    std: np.ndarray
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = dict(self.records[index])
        for name in ("mean", "logvar"):
            record[name] = np.asarray(record[name], np.float32)
        for name in CAPTIONS:
            if isinstance(record.get(name), bytes):
                record[name] = record[name].decode()
        return record


@dataclass(frozen=True)
class Mirrored:
    """A source followed by its mirror images."""

    source: Source

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def num_classes(self) -> int | None:
        return self.source.num_classes

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index % len(self.source)]
        if index < len(self.source):
            return example
        return {**example, "image": example["image"][:, ::-1]}


def write_latents(
    folder: str | Path,
    source: Source,
    encode: Encode,
    *,
    identity: dict[str, Any],
    dtype: str = "float32",
    shard_size: int = 8192,
    on_image: Callable[[int], Any] = lambda count: None,
) -> Path:
    """Encode all images of a source into a folder of latents, or finish one that was begun.

    Args:
      folder: is made; must not be there.
      source: of images. For flips encode `Mirrored(source)`: the latents of a mirrored image are
        not mirrored latents.
      encode: called with up to 256 images.
      identity: says what is encoded by what, fit for JSON. A begun folder of another identity is
        thrown away.
      dtype: of the numbers on disk, float32 or float16, which halves the folder; half precision
        is 0.1 % of a mean.
      shard_size: images in a file.
      on_image: called with the number of images that were just done.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder is there.
      ValueError: the encoder gives latents of half precision that are not finite.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; delete it to encode the images again.")
    part = folder.with_name(f"{folder.name}.part")
    plan = {"version": VERSION, "identity": identity, "count": len(source), "dtype": dtype,
            "shard_size": shard_size, "num_classes": source.num_classes}  # fmt: skip
    _begin(part, plan)
    starts = range(0, len(source), shard_size)
    for number in range(jax.process_index(), len(starts), jax.process_count()):
        rows = range(starts[number], min(starts[number] + shard_size, len(source)))
        _write_shard(part, source, rows, number, len(starts), encode, dtype, on_image)
    _wait("latents are encoded")
    if jax.process_index() == 0:
        _finish(part, plan, source, len(starts))
        os.rename(part, folder)
    _wait("latents are in place")
    return folder


def read_latents(folder: str | Path) -> Latents:
    """Open a folder that `write_latents` finished, after a check that all of it is there.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a file is missing, or not as long as it was.
    """
    import tensorflow_datasets as tfds

    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["version"] != VERSION:
            raise ValueError(f"{INDEX} is of version {index['version']}, this reads {VERSION}")
        for shard in index["shards"]:
            size = (folder / shard["file"]).stat().st_size
            if size != shard["bytes"]:
                raise ValueError(f"{shard['file']} has {size} bytes instead of {shard['bytes']}")
        builder: Any = tfds.builder_from_directory(folder)
        records = builder.as_data_source(SPLIT)
        if len(records) != index["count"]:
            raise ValueError(f"it holds {len(records)} records instead of {index['count']}")
        if sum(shard["bytes"] for shard in index["shards"]) <= IN_MEMORY:
            records = [records[i] for i in range(len(records))]
        mean, std = (np.array(index[name], np.float32) for name in ("mean", "std"))
        shape = tuple(index["shape"])
        return Latents(records, shape, index["num_classes"], mean, std, index["identity"])
    except Exception as error:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder of latents.") from None
        raise ValueError(
            f"{folder} cannot be read as latents: {error}. If it is damaged, delete it: the images "
            "will be encoded again."
        ) from error


def _begin(part: Path, plan: dict[str, Any]) -> None:
    """Make the folder to write into; empty it if it was begun with another plan."""
    if jax.process_index() == 0:
        begun = part / "plan.json"
        text = json.dumps(plan, indent=1)
        if part.exists() and not (begun.is_file() and begun.read_text() == text):
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        _write_text(begun, text)
    _wait("latents can be encoded")


def _write_shard(
    part: Path,
    source: Source,
    rows: range,
    number: int,
    count: int,
    encode: Encode,
    dtype: str,
    on_image: Callable[[int], Any],
) -> None:
    """Encode some images into one file, and note its sums; nothing if that is done."""
    from array_record.python.array_record_module import ArrayRecordWriter

    done, target = part / f"shard-{number:05d}.json", part / _file_name(number, count)
    if done.exists():
        on_image(len(rows))
        return
    draft = part / f"{target.name}.tmp"
    writer = ArrayRecordWriter(str(draft), "group_size:1")
    sums, features = np.zeros((2, 1)), None
    for start in range(rows.start, rows.stop, BATCH):
        examples = [source[i] for i in range(start, min(start + BATCH, rows.stop))]
        images = as_x0(np.stack([example["image"] for example in examples]))
        mean, logvar = (_in_range(np.asarray(each), dtype) for each in encode(images))
        features = features or _features(mean.shape[1:], dtype, examples[0])
        for example, own_mean, own_logvar in zip(examples, mean, logvar):
            told = {name: value for name, value in example.items() if name != "image"}
            record = {"mean": own_mean, "logvar": own_logvar, **told}
            writer.write(features.serialize_example(record))
        sums = sums + _sums(mean.astype(np.float64), logvar.astype(np.float64))
        on_image(len(images))
    writer.close()
    draft.replace(target)
    size = target.stat().st_size
    shape = list(mean.shape[1:])
    note = {"file": target.name, "bytes": size, "records": len(rows), "sums": sums.tolist()}
    _write_text(done, json.dumps({**note, "shape": shape}))


def _finish(part: Path, plan: dict[str, Any], source: Source, count: int) -> None:
    """Write what TFDS and `read_latents` want to know, and remove the notes."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    notes = [part / f"shard-{number:05d}.json" for number in range(count)]
    shards = [json.loads(note.read_text()) for note in notes]
    shape = shards[0]["shape"]
    template = ShardedFileTemplate(
        data_dir=epath.Path(part), dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard["records"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=part,
        features=_features(shape, plan["dtype"], source[0]),
        split_infos=[split],
        check_data=False,
    )
    total = np.sum([shard.pop("sums") for shard in shards], axis=0)
    numbers = plan["count"] * shape[0] * shape[1]
    mean = total[0] / numbers
    std = np.sqrt(total[1] / numbers - mean**2)
    index = {**plan, "shape": shape, "mean": mean.tolist(), "std": std.tolist(), "shards": shards}
    _write_text(part / INDEX, json.dumps(index, indent=1))
    for path in (*notes, part / "plan.json"):
        path.unlink()


def _features(shape: Sequence[int], dtype: str, example: dict[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    tensor = tfds.features.Tensor(shape=tuple(shape), dtype=np.dtype(dtype))
    features: dict[str, Any] = {"mean": tensor, "logvar": tensor}
    if "label" in example:
        features["label"] = tfds.features.Scalar(np.int32)
    features |= {name: tfds.features.Text() for name in CAPTIONS if name in example}
    return tfds.features.FeaturesDict(features)


def _sums(mean: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """The sums of z and of z^2, for z as drawn, over images and positions: [2, c]."""
    first, second = mean, mean**2 + np.exp(logvar)
    return np.stack([each.sum(axis=(0, 1, 2)) for each in (first, second)])


def _in_range(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers in the type of the disk, refused where it cannot hold them."""
    with np.errstate(over="ignore"):
        stored = numbers.astype(dtype)
    if not np.isfinite(stored).all():
        raise ValueError(f"The encoder gives latents that are not finite numbers of {dtype}.")
    return stored


def _file_name(number: int, count: int) -> str:
    return f"{NAME}-{SPLIT}.array_record-{number:05d}-of-{count:05d}"


def _write_text(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text)
    draft.replace(path)


def _wait(until: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(until)
