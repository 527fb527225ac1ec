"""Torch tensors as params and back, without torch.

Torch puts channels first and this project puts them last, which is the only difference between the
two layouts:

    name.weight [out, in, *window]   <->  name / kernel [*window, in, out]     (linear, convolution)
    name.weight, name.bias [n]       <->  name / scale, name / bias            (normalisation)
    name.weight [num, features]      <->  name / embedding                     (look-up table)
    name                             <->  name                                 (any other parameter)

Which of them a tensor is follows from the params that the network needs.
"""

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from diffjax.networks.functional import Params, flatten, unflatten

# the last part of a parameter's path -> that of its torch name, where they differ
_LAST_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "frequencies": "weight",
}


# tensors that are read at once: one waits for the disk while others are turned
_READERS = min(4, os.cpu_count() or 1)


class UnsupportedError(ValueError):
    """A saved model asks for something that this project does not have."""


def to_params(
    tensors: Mapping[str, Any],
    shapes: Params,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    shardings: Params | None = None,
) -> Params:
    """Arrange torch tensors as the params of a network, a few at a time.

    Before any tensor is read, the names and shapes of all are compared with those needed.

    Args:
      tensors: by their torch names; arrays, or what `read_tensors` returns.
      shapes: the params that the network needs, arrays or `jax.ShapeDtypeStruct`; gives shapes,
        dtypes and, by the last part of each path, the kind of each tensor.
      rename: from the names of stored tensors to those of the network's; None for a tensor that
        the network does not need. If several tensors get one name, they must be equal.
      shardings: where each of the params goes, in the structure of `shapes`; by default to JAX's
        default device.

    Returns:
      Params in the structure and dtypes of `shapes`.

    Raises:
      ValueError: lists every missing, unexpected and wrongly shaped tensor.

    >>> shapes = {"proj": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
    >>> stored = {"proj.weight": np.ones((2, 3)), "proj.bias": np.ones(2)}
    >>> to_params(stored, shapes)["proj"]["kernel"].shape
    (3, 2)
    """
    sources: dict[str, list[str]] = {}
    for stored in tensors:
        name = rename(stored)
        if name is not None:
            sources.setdefault(name, []).append(stored)
    wanted = {torch_name(path): (path, leaf) for path, leaf in flatten(shapes).items()}
    _require_fit(tensors, sources, wanted)
    places = None if shardings is None else flatten(shardings)

    def make(name: str) -> tuple[tuple[str, ...], jax.Array]:
        path, leaf = wanted[name]
        array = np.asarray(tensors[sources[name][0]])
        for other in sources[name][1:]:
            if not np.array_equal(array, tensors[other]):
                raise ValueError(f"{sources[name][0]} and {other} should be equal, and differ")
        array = array.astype(leaf.dtype, copy=False)
        if path[-1] == "kernel":
            array = channels_last(array, len(leaf.shape))
        placed = _place(array, None if places is None else places[path])
        # until it is there, the array is in memory too
        return path, placed.block_until_ready()

    with ThreadPoolExecutor(_READERS) as pool:
        return unflatten(dict(pool.map(make, wanted)))


def from_params(
    params: Params,
    *,
    rename: Callable[[str], str] = lambda name: name,
    dtype: Any = None,
) -> tuple[dict[str, jax.ShapeDtypeStruct], Callable[[str], np.ndarray]]:
    """The torch tensors of params, the inverse of `to_params`; made one at a time.

    Args:
      params: as the network has them.
      rename: from the network's torch names to those to be stored.
      dtype: to be stored; by default that of each of the params.

    Returns:
      The shape and dtype of every tensor, and a function from its name to the tensor.

    >>> shapes, read = from_params({"proj": {"kernel": np.zeros((3, 2))}})
    >>> shapes["proj.weight"].shape, read("proj.weight").shape
    ((2, 3), (2, 3))
    """
    leaves, shapes = {}, {}
    for path, leaf in flatten(params).items():
        name = rename(torch_name(path))
        kernel = path[-1] == "kernel"
        shape = (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2]) if kernel else leaf.shape
        leaves[name] = leaf, kernel
        shapes[name] = jax.ShapeDtypeStruct(shape, leaf.dtype if dtype is None else dtype)

    def read(name: str) -> np.ndarray:
        leaf, kernel = leaves[name]
        array = np.asarray(leaf).astype(shapes[name].dtype, copy=False)
        return channels_first(array) if kernel else array

    return shapes, read


def torch_name(path: tuple[str, ...]) -> str:
    """The torch name of a parameter: its path with points, the last part as torch calls it.

    >>> torch_name(("conv_in", "kernel"))
    'conv_in.weight'
    """
    return ".".join((*path[:-1], _LAST_PARTS.get(path[-1], path[-1])))


def renamer(table: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces whole parts of dotted names, as a table says.

    With the table turned round it undoes itself, if no part of a name is in both columns.

    >>> rename = renamer({"net.0.proj": "linear_1", "fc1": "linear_1"})
    >>> rename("layers.0.net.0.proj.weight"), rename("my_fc1.bias")
    ('layers.0.linear_1.weight', 'my_fc1.bias')
    """
    if not table:
        return lambda name: name
    # longer keys first, so that no key hides one that it is a part of
    keys = "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True))
    pattern = re.compile(rf"(?<![^.])({keys})(?![^.])")
    return lambda name: pattern.sub(lambda found: table[found[1]], name)


def channels_last(weight: np.ndarray, ndim: int) -> np.ndarray:
    """[out, in, *window] -> [*window, in, out]; windows of one element are left out if ndim is 2.

    A view: JAX copies it to a device several times faster than NumPy would turn it.

    >>> channels_last(np.zeros((8, 4, 3, 3)), 4).shape
    (3, 3, 4, 8)
    >>> channels_last(np.zeros((8, 4, 1, 1)), 2).shape
    (4, 8)
    """
    if ndim == 2 and all(n == 1 for n in weight.shape[2:]):
        weight = weight.reshape(weight.shape[:2])
    return np.moveaxis(weight, (0, 1), (-1, -2))


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """[*window, in, out] -> [out, in, *window].

    >>> channels_first(np.zeros((3, 3, 4, 8))).shape
    (8, 4, 3, 3)
    """
    *window, inputs, outputs = kernel.shape
    turned = np.moveaxis(kernel.reshape(-1, inputs, outputs), 0, 1).reshape(-1, outputs)
    return _transposed(turned).reshape(outputs, inputs, *window)


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """matrix.T in C order, 64 rows at a time: NumPy's copy of all at once takes 2 to 5 times it."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 64):
        rows = slice(start, start + 64)
        result[:, rows] = matrix[rows].T
    return result


def _place(array: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jax.device_put(array)
    # every process takes its own parts of the array, which all of them have read
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _require_fit(
    tensors: Mapping[str, Any], sources: dict[str, list[str]], wanted: dict[str, tuple]
) -> None:
    """Compare the names and shapes of stored tensors with those that a network needs."""
    misshaped = []
    for name in sorted(wanted.keys() & sources.keys()):
        path, leaf = wanted[name]
        stored = tuple(tensors[sources[name][0]].shape)
        if path[-1] == "kernel":
            windows = stored[2:] if len(leaf.shape) > 2 or set(stored[2:]) - {1} else ()
            shape = (*windows, *stored[1::-1])
        else:
            shape = stored
        if shape != tuple(leaf.shape):
            misshaped.append(f"{name} {stored}, the network needs {tuple(leaf.shape)}")
    kinds = {
        "missing": sorted(wanted.keys() - sources.keys()),
        "unexpected": sorted(sources.keys() - wanted.keys()),
        "wrong shape": misshaped,
    }
    found = [f"{kind} ({len(names)}): {', '.join(names)}" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"the stored tensors do not fit the network. {'; '.join(found)}")
