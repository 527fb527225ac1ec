"""A sampler in one file, which needs neither diffjax nor a model's folder to run.

The file is an npz archive: `program`, the sampler as `jax.export` writes it for CPUs, CUDA GPUs and
TPUs, and `input_0`, `input_1`, ..., its weights, tokens and noise levels. This runs it:

    import jax, numpy as np

    file = np.load("sampler.npz")
    program = jax.export.deserialize(bytearray(file["program"]))
    inputs = [file[f"input_{i}"] for i in range(len(file.files) - 1)]
    seed, count = 0, program.in_avals[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(count))
    images = program.call(jax.random.key_data(keys), *inputs)  # [B, H, W, 3] uint8

JAX needs the package flatbuffers for it (`pip install 'diffjax[export]'`). Of types that NumPy
lacks the bits are stored.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export, lax

from stages import Mix, OneProgram, Stages

PLATFORMS = ("cpu", "cuda", "tpu")

# types that NumPy lacks, as the bits that are stored
_BITS = {jnp.dtype(jnp.bfloat16): jnp.uint16}


def export_sampler(
    path: Path, program: Stages | OneProgram, params: Any, keys: Array, conditions: Any, mix: Mix
) -> None:
    """Write a sampler of as many pictures as there are keys.

    Args:
      path: a file NAME.npz.
      program: of the run.
      params, keys, conditions, mix: of its first batch.
    """
    given = params, conditions, program.levels, mix.share
    leaves, tree = jax.tree.flatten(given)
    dtypes = [jnp.asarray(leaf).dtype for leaf in leaves]
    common = jax.random.key_data(mix.key)
    stored = [to_bits(np.asarray(leaf)) for leaf in leaves]

    def sampler(key_data: Array, *inputs: Array) -> Array:
        taken = [from_bits(each, dtype) for each, dtype in zip(inputs, dtypes)]
        params, conditions, levels, share = jax.tree.unflatten(tree, taken)
        shared = Mix(jax.random.wrap_key_data(common), share)
        keys = jax.random.wrap_key_data(key_data)
        return program.whole(params, keys, conditions, shared, levels)

    shape = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    exported = export.export(jax.jit(sampler), platforms=PLATFORMS)(
        shape(jax.random.key_data(keys)), *map(shape, stored)
    )
    inputs: dict[str, Any] = {f"input_{i}": array for i, array in enumerate(stored)}
    code = np.frombuffer(exported.serialize(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, program=code, **inputs)


def require_flatbuffers() -> None:
    """Refuse before any work what could not be written after it."""
    if find_spec("flatbuffers") is None:
        raise ImportError("--export needs flatbuffers: pip install 'diffjax[export]'")


def to_bits(array: np.ndarray) -> np.ndarray:
    """The array, or its bits where NumPy lacks its type."""
    bits = _BITS.get(jnp.dtype(array.dtype))
    return array if bits is None else array.view(bits)


def from_bits(array: Array, dtype: Any) -> Array:
    """Undo `to_bits`."""
    return lax.bitcast_convert_type(array, dtype) if jnp.dtype(dtype) in _BITS else array
