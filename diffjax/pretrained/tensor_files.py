"""The safetensors format: named arrays in one file, read one at a time.

    8 bytes      N, the length of the header, little-endian
    N bytes      JSON: {name: {"dtype", "shape", "data_offsets": [start, stop]}, ...}
    the rest     the arrays, in C order, without gaps

Everything that a header claims is checked against the size of the file before memory is taken for
any array, and nothing in a file is ever executed.
Source: https://github.com/huggingface/safetensors, section Format.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# the entry of a header that is no array
_NOTES = "__metadata__"

# the format's own limit
_LONGEST_HEADER = 100_000_000

PICKLES_RUN_PROGRAMS = (
    "a pickle can run any program when it is loaded and is not read here; convert it to "
    "safetensors first, with safetensors.torch.save_file(torch.load(file, weights_only=True), ...)"
)

# how files of other formats begin; read as the length of a header, all are far too large
_OTHER_FORMATS = {
    b"PK\x03\x04": f"a zip archive, as torch.save pickles into: {PICKLES_RUN_PROGRAMS}",
    b"\x80": f"a pickle: {PICKLES_RUN_PROGRAMS}",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
}


@dataclass(frozen=True)
class StoredTensor:
    """An array in a file; `np.asarray(stored)` reads it.

    Attributes:
      path: the file.
      dtype, shape: of the array.
      start: position of its first byte in the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a stored tensor cannot be seen as an array without reading it")
        # read, not mapped: pages of a mapped file would count as memory of this process
        array = np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.start)
        array = array.reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def read_tensor_file(path: str | Path) -> dict[str, StoredTensor]:
    """The arrays of a safetensors file by name, none of them read yet.

    Raises:
      ValueError: in one line, what is wrong with the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        header, begin, size = _read_header(path, file)
        _read_ahead(file)
    header.pop(_NOTES, None)
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, (start, stop) = _check_entry(path, name, entry)
        spans.append((start, stop, name))
        tensors[name] = StoredTensor(path, dtype, shape, begin + start)
    _check_spans(path, sorted(spans), size - begin)
    return tensors


def read_notes(path: str | Path) -> dict[str, str]:
    """The texts by name that the writer of a safetensors file left beside its arrays.

    Raises:
      ValueError: in one line, what is wrong with the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        notes = _read_header(path, file)[0].get(_NOTES, {})
    if not isinstance(notes, dict) or not all(isinstance(each, str) for each in notes.values()):
        raise _damaged(path, f"its {_NOTES} is no table of texts")
    return notes


def write_tensor_file(
    path: str | Path,
    shapes: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
) -> None:
    """Write a safetensors file, one array at a time.

    Args:
      path: is replaced in one step when the file is complete.
      shapes: name -> anything with shape and dtype, such as `jax.ShapeDtypeStruct`.
      read: name -> the array.
    """
    # wide types first, so that every array starts at a multiple of its element
    names = sorted(shapes, key=lambda name: (-np.dtype(shapes[name].dtype).itemsize, name))
    header: dict[str, Any] = {_NOTES: {"format": "pt"}}
    stop = 0
    for name in names:
        dtype, shape = np.dtype(shapes[name].dtype), tuple(shapes[name].shape)
        start, stop = stop, stop + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.ascontiguousarray(read(name), np.dtype(shapes[name].dtype))
            file.write(array.reshape(-1).view(np.uint8).data)
    os.replace(unfinished, path)


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The header of a file, where the arrays begin, and the size of the file."""
    size = path.stat().st_size
    beginning = file.read(8)
    length = int.from_bytes(beginning, "little")
    if len(beginning) < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        what = f"its header would have {length} bytes in a file of {size}"
        raise _no_header(path, beginning + file.read(24), what)
    return _parse(path, file.read(length)), 8 + length, size


def _read_ahead(file: BinaryIO) -> None:
    """Let the system fetch the file in the background, while the network for it is built."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=refuse_repeated)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is a JSON {type(header).__name__}, not an object")
    return header


def _no_header(path: Path, beginning: bytes, what: str) -> ValueError:
    for magic, other in _OTHER_FORMATS.items():
        if beginning.startswith(magic):
            return ValueError(f"{path} is not a safetensors file but {other}")
    return _damaged(path, what)


def _check_entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple]:
    """The dtype, shape and span of a header's entry, if they agree with each other."""
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"the entry of {name} lacks dtype, shape or data_offsets") from error
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _damaged(path, f"the shape and offsets of {name} are not all natural numbers")
    if kind not in DTYPES:
        raise ValueError(f"{path}: {name} has dtype {kind!r}; known are {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise _damaged(
            path, f"{name} would have {stop - start} bytes for the shape {shape} in {kind}"
        )
    return dtype, tuple(shape), (start, stop)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The arrays must fill what follows the header, without gaps and overlaps."""
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise _damaged(path, f"{name} begins at byte {start}, but its place is {end}")
        end = stop
    if end != size:
        raise _damaged(path, f"its arrays take {end} bytes, and the file has {size} for them")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is not a readable safetensors file: {what}")
