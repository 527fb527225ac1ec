"""Tensors of a diffusers-format folder as params, without torch.

A folder holds `config.json` and `*.safetensors`. Torch puts channels first and this project puts
them last, which is the only difference between the two layouts:

    name.weight [out, in, *window]   ->   name / kernel [*window, in, out]     (linear, convolution)
    name.weight, name.bias [n]       ->   name / scale, name / bias            (normalisation)
    name.weight [num, features]      ->   name / embedding                     (look-up table)

Which of them a tensor is follows from the params that the network needs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from diffjax.networks.functional import Params, flatten, unflatten

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class UnsupportedError(ValueError):
    """A saved model asks for something that this project does not have."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
      FileNotFoundError: the folder, or config.json in it, is missing.
      ValueError: config.json is not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder holds config.json and weights")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(settings).__name__}")
    return settings


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors in the safetensors files of a folder, in their stored dtype.

    Weights split over several files are joined. Where the same weights are stored in full and in
    half precision (`….fp16.safetensors`), the full ones are read.

    Raises:
      FileNotFoundError: there are no safetensors files. Pickles (.bin, .pt, .ckpt) are never
        opened, because loading one can run any program.
      ValueError: a file is damaged, or two files hold the same tensor.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    full = [file for file in files if ".fp16" not in file.name]
    if not files:
        raise FileNotFoundError(_nothing_to_read(folder))
    tensors: dict[str, np.ndarray] = {}
    for file in full or files:
        try:
            with safe_open(file, framework="np") as stored:
                new = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
        twice = sorted(new.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{file} repeats tensors of another file in its folder: {twice[:5]}")
        tensors.update(new)
    return tensors


def to_params(
    tensors: dict[str, np.ndarray],
    shapes: Params,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> Params:
    """Arrange torch tensors as the params of a network.

    Args:
      tensors: by their torch names.
      shapes: the params that the network needs, arrays or `jax.ShapeDtypeStruct`; gives shapes,
        dtypes and, by the last part of each path, the kind of each tensor.
      rename: brings old names of stored tensors to the present ones.

    Returns:
      Params in the structure and dtypes of `shapes`.

    Raises:
      ValueError: lists every missing, unexpected and wrongly shaped tensor.

    >>> shapes = {"proj": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    >>> stored = {"proj.weight": np.ones((2, 3)), "proj.bias": np.ones(2)}
    >>> to_params(stored, shapes)["proj"]["kernel"].shape
    (3, 2)
    """
    renamed = {rename(name): array for name, array in tensors.items()}
    wanted = {torch_name(path): (path, leaf) for path, leaf in flatten(shapes).items()}
    missing = sorted(wanted.keys() - renamed.keys())
    unexpected = sorted(renamed.keys() - wanted.keys())
    misshaped, flat = [], {}
    for name in sorted(wanted.keys() & renamed.keys()):
        path, leaf = wanted[name]
        array = (
            channels_last(renamed[name], len(leaf.shape)) if path[-1] == "kernel" else renamed[name]
        )
        if array.shape != tuple(leaf.shape):
            misshaped.append(f"{name} {renamed[name].shape}, the network needs {tuple(leaf.shape)}")
        else:
            flat[path] = jnp.asarray(array, leaf.dtype)
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    found = [f"{kind} ({len(names)}): {', '.join(names)}" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"the stored tensors do not fit the network. {'; '.join(found)}")
    return unflatten(flat)


def torch_name(path: tuple[str, ...]) -> str:
    """The torch name of a parameter: its path with points, ending in weight or bias.

    >>> torch_name(("conv_in", "kernel"))
    'conv_in.weight'
    """
    return ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))


def channels_last(weight: np.ndarray, ndim: int) -> np.ndarray:
    """[out, in, *window] -> [*window, in, out]; windows of one element are left out if ndim is 2.

    >>> channels_last(np.zeros((8, 4, 3, 3)), 4).shape
    (3, 3, 4, 8)
    >>> channels_last(np.zeros((8, 4, 1, 1)), 2).shape
    (4, 8)
    """
    if ndim == 2 and all(n == 1 for n in weight.shape[2:]):
        weight = weight.reshape(weight.shape[:2])
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _nothing_to_read(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; give the one that holds config.json and *.safetensors"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"{folder} holds no safetensors but {', '.join(pickles)}: pickles can run any program "
            "when they are loaded and are not read here. Convert them to safetensors first"
        )
    return f"{folder} holds no *.safetensors file"
