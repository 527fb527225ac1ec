"""Weights of Inception V3 that are made up, in the file that a user would have."""

import zlib
from pathlib import Path

import jax
import numpy as np

from diffjax.networks.functional import flatten
from diffjax.networks.inception import inception
from diffjax.pretrained.tensor_files import write_tensor_file
from diffjax.pretrained.weights import channels_first, torch_name


def write_inception(path: Path) -> Path:
    """Write every tensor, drawn by its name, and two that only training needs."""
    shapes = flatten(jax.eval_shape(inception().init, jax.random.key(0)))
    tensors = dict(_stored(path, leaf.shape) for path, leaf in shapes.items())
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(7)
    tensors["AuxLogits.fc.bias"] = np.zeros(1008, np.float32)
    write_tensor_file(path, tensors, tensors.__getitem__)
    return path


def _stored(path, shape):
    """A tensor in the layout of torch."""
    name = torch_name(path)
    if path[-1] == "kernel":
        shape = channels_first(np.empty(shape)).shape
    normal = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if path[-1] == "kernel":
        return name, normal * np.sqrt(2 / np.prod(shape[1:]))
    if path[-1] == "running_var":
        return name, np.exp(0.1 * normal)
    return name, 0.1 * normal + (path[-1] == "scale")
