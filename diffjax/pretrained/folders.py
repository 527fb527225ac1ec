"""The files of a model's folder: config.json and one or several safetensors files.

config.json
diffusion_pytorch_model.safetensors            or model.safetensors
diffusion_pytorch_model.fp16.safetensors       a variant: another copy of the same weights
model-00001-of-00002.safetensors, ...          one copy in several files, shards,
model.safetensors.index.json                   with an index: {"weight_map": {tensor: file}}

Beside these, files of other names are left alone: some folders hold the same weights in the layout
of other programs too.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.pretrained.tensor_files import (
    PICKLES_RUN_PROGRAMS,
    StoredTensor,
    read_tensor_file,
    write_tensor_file,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# how diffusers and transformers begin the names of their files
STEMS = ("diffusion_pytorch_model", "model")

# stem, variant (".fp16"), shard ("-00001-of-00002"); older files have the variant behind the shard
_FILE = re.compile(r"(?P<stem>[^.]+?)(\.(?P<early>[\w-]+?))?(?P<shard>-\d{5}-of-\d{5})?"
                   r"(\.(?P<late>\w+))?\.safetensors")  # fmt: skip


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
      FileNotFoundError: the folder, or config.json in it, is missing.
      ValueError: config.json is not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder holds config.json and weights")
    return read_json(path)


def read_tensors(folder: str | Path, *, variant: str | None = None) -> dict[str, StoredTensor]:
    """All tensors in the safetensors files of a folder, none of them read yet.

    Weights split over several files are joined.

    Args:
      folder: holds the files.
      variant: which of several copies of the weights, such as "fp16" of `model.fp16.safetensors`;
        by default the one without a variant, or the only one that there is.

    Raises:
      FileNotFoundError: there are no safetensors files, or some are missing. Pickles (.bin, .pt,
        .ckpt) are never opened, because loading one can run any program.
      ValueError: a file is damaged, or two files hold the same tensor.
    """
    folder = Path(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder, variant=variant):
        new = read_tensor_file(file)
        twice = sorted(new.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{file} repeats tensors of another file in its folder: {twice[:5]}")
        tensors.update(new)
    return tensors


def weight_files(folder: str | Path, *, variant: str | None = None) -> list[Path]:
    """The safetensors files of a folder that hold one copy of the weights.

    Raises:
      FileNotFoundError: there are none, or shards that the names or an index count are missing.
      ValueError: there are several copies to choose from, or an index names a file elsewhere.
    """
    folder = Path(folder)
    named = copies_of(file.name for file in folder.glob("*.safetensors"))
    copies = {name: [folder / file for file in files] for name, files in named.items()}
    if not copies:
        raise FileNotFoundError(_nothing_to_read(folder))
    if variant is None and None not in copies:
        if len(copies) > 1:
            raise ValueError(f"{folder} holds the variants {sorted(map(str, copies))}; name one")
        variant = next(iter(copies))
    if variant not in copies:
        there = sorted(str(name) for name in copies if name) or "none"
        raise FileNotFoundError(f"{folder} holds no variant {variant!r}; there is {there}")
    _require_all_shards(folder, copies[variant])
    return copies[variant]


def copies_of(names: Iterable[str]) -> dict[str | None, list[str]]:
    """The files of each copy of the weights, by its variant; None is the one without.

    >>> copies_of(["model.fp16.safetensors", "model.safetensors", "of_others.safetensors"])
    {'fp16': ['model.fp16.safetensors'], None: ['model.safetensors']}
    """
    found = {name: _FILE.fullmatch(name) for name in sorted(names)}
    known = {name: match for name, match in found.items() if match and match["stem"] in STEMS}
    copies: dict[str | None, list[str]] = {}
    for name, match in (known or found).items():
        variant = (match["early"] or match["late"]) if match else None
        copies.setdefault(variant, []).append(name)
    return copies


def write_tensors(
    folder: str | Path,
    shapes: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    *,
    stem: str = "diffusion_pytorch_model",
    variant: str | None = None,
    max_file_size: int = 10**10,
) -> None:
    """Write tensors as the safetensors files of a folder, the inverse of `read_tensors`.

    Args:
      folder: exists; files of the same names in it are replaced.
      shapes: name -> anything with shape and dtype, such as `jax.ShapeDtypeStruct`.
      read: name -> the array; called for one tensor at a time.
      stem: of the file names.
      variant: such as "fp16", becomes part of the file names.
      max_file_size: in bytes; a larger model is split over several files, with an index.
    """
    folder = Path(folder)
    shards = _split(shapes, max_file_size)
    ending = "" if variant is None else f".{variant}"
    if len(shards) == 1:
        write_tensor_file(folder / f"{stem}{ending}.safetensors", shapes, read)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}{ending}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensor_file(folder / file, {name: shapes[name] for name in names}, read)
        weight_map.update(dict.fromkeys(names, file))
    total = sum(map(_bytes, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = folder / f"{stem}.safetensors.index{ending}.json"
    path.write_text(json.dumps(index, indent=2) + "\n")


def _require_all_shards(folder: Path, files: list[Path]) -> None:
    """Compare the files of one copy of the weights with their numbers and with the indexes."""
    names = {file.name for file in files}
    needed = set()
    for name in names:
        shard = re.search(r"-\d{5}-of-(\d{5})", name)
        if shard:
            numbers = range(1, int(shard[1]) + 1)
            numbered = (f"-{number:05d}-of-{shard[1]}" for number in numbers)
            needed |= {name.replace(shard[0], each) for each in numbered}
    for index in folder.glob("*.safetensors.index*.json"):
        listed = _files_of_index(index)
        # an index of another copy of the weights shares no file with this one
        needed |= listed if listed & names else set()
    if needed - names:
        raise FileNotFoundError(f"{folder} lacks {', '.join(sorted(needed - names)[:5])}")


def _files_of_index(path: Path) -> set[str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{path} must hold a weight_map from the names of tensors to files")
    outside = sorted({name for name in weight_map.values() if Path(name).name != name})
    if outside:
        raise ValueError(f"{path} names files outside its folder: {', '.join(outside[:5])}")
    return set(weight_map.values())


def _split(shapes: Mapping[str, Any], limit: int) -> list[list[str]]:
    """The names in groups of at most `limit` bytes, or of one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if groups[-1] and size + _bytes(shape) > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += _bytes(shape)
    return groups


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * np.dtype(shape.dtype).itemsize


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a ValueError says in one line what is wrong with it."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(settings).__name__}")
    return settings


def _nothing_to_read(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; give the one that holds config.json and *.safetensors"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"{folder} holds no safetensors but {', '.join(pickles)}: {PICKLES_RUN_PROGRAMS}"
    return f"{folder} holds no *.safetensors file"
