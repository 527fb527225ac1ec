"""LoRA adapters that are trained: made, applied without being merged, and saved.

    y = x W + scale (x down) up,    down ~ N(0, 1 / rank^2),    up = 0

so that training begins with the network as it was. Adapters are nested dicts with the paths of the
kernels that they change: adapters["unet"]["mid_block"]...["to_q"]["kernel"] = {"down", "up"}.

Source: LoRA, arXiv:2106.09685, section 4.1.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.networks.functional import Params, flatten, unflatten
from diffjax.networks.low_rank import LowRankKernel
from diffjax.pretrained.lora import module_names
from diffjax.pretrained.models import Model
from diffjax.pretrained.tensor_files import write_tensor_file
from diffjax.pretrained.weights import channels_first

# the projections of all attentions, in diffusers' names and in those of text encoders
ATTENTION = r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$"


def init_adapters(
    key: Array, models: Mapping[str, Model], rank: int, *, targets: str = ATTENTION
) -> Params:
    """New adapters, which change nothing yet.

    Args:
      key: one PRNG key.
      models: the networks to adapt, by the names of their parts.
      rank: of the changes, at least 1.
      targets: a regular expression, searched in names such as
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q".

    Returns:
      Adapters in float32, on the host.

    Raises:
      ValueError: no module's name fits, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1.")
    names = _full_names(models)
    chosen = [route for route, name in names.items() if re.search(targets, name)]
    if not chosen:
        shown = ", ".join(list(names.values())[:3])
        raise ValueError(f"targets is {targets!r}, which fits no module; there are {shown}, ...")
    shapes = {route: flatten(models[route[0]].params)[route[1:]].shape for route in chosen}
    sizes = [int(np.prod(shape[:-1])) * rank for shape in shapes.values()]
    numbers = np.asarray(jax.random.normal(key, (sum(sizes),))) / rank
    flat: dict[tuple[str, ...], Any] = {}
    for (route, shape), part in zip(shapes.items(), np.split(numbers, np.cumsum(sizes)[:-1])):
        flat[*route, "down"] = part.reshape(*shape[:-1], rank)
        flat[*route, "up"] = np.zeros((rank, shape[-1]), np.float32)
    return unflatten(flat)


def apply_adapters(params: Params, adapters: Params, scale: ArrayLike = 1.0) -> Params:
    """The params of a system whose networks add the changes as they run; see `LowRankKernel`.

    Args:
      params: of all parts.
      adapters: from `init_adapters`.
      scale: alpha / rank; may be traced.
    """
    flat = dict(flatten(params))
    changes = flatten(adapters)
    for (*path, end), up in changes.items():
        if end == "up":
            kernel = tuple(path)
            down = changes[*kernel, "down"]
            flat[kernel] = LowRankKernel(flat[kernel], down, jnp.asarray(scale, up.dtype) * up)
    return unflatten(flat)


def save_adapters(
    path: str | Path, adapters: Params, models: Mapping[str, Model], scale: float = 1.0
) -> None:
    """Write adapters as diffusers and PEFT name them, for `load_lora` and `load_lora_weights`.

    The scale goes into `up`, so that every reader that takes alpha = rank, as is usual where a file
    names none, computes the same.

    Args:
      path: a file NAME.safetensors, replaced if it is there.
      adapters: from `init_adapters`, after training.
      models: the networks that they change.
      scale: with which they were applied.
    """
    names = _full_names(models)
    tensors = {}
    for (part, *route, end), leaf in flatten(adapters).items():
        array = np.asarray(leaf, np.float32)
        if end == "up":
            window = flatten(models[part].params)[tuple(route)].ndim - 2
            array = scale * array.reshape(*(1,) * window, *array.shape)
        letter = {"down": "A", "up": "B"}[end]
        name = names[part, *route]
        tensors[f"{name}.lora_{letter}.weight"] = channels_first(array)
    write_tensor_file(path, tensors, tensors.__getitem__)


def _full_names(models: Mapping[str, Model]) -> dict[tuple[str, ...], str]:
    return {
        (part, *route): f"{part}.{name}"
        for part, model in models.items()
        for route, name in module_names(model).items()
    }
