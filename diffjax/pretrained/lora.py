"""Low-rank changes of saved networks: LoRA files, in the three ways in which they name things.

    W <- W + scale (alpha / rank) up down

| written by | name of a tensor |
| --- | --- |
| diffusers, PEFT | unet.mid_block.attn1.to_k.lora_A.weight, ...lora_B.weight |
| diffusers, older | unet.mid_block.attn1.processor.to_k_lora.down.weight, ...up.weight |
| the same, of texts | text_encoder.text_model. ... .self_attn.to_k_lora.down.weight, ... |
| kohya | lora_unet_mid_block_attn1_to_k.lora_down.weight, ...lora_up.weight, ...alpha |
| kohya, SDXL | lora_unet_middle_block_1_attn1_to_k.lora_down.weight, ... |

The last has the blocks of latent diffusion's first code, see `single_file`. alpha is a tensor
beside them, or stands in the notes of the file (diffusers) or in adapter_config.json beside it
(PEFT); where it is nowhere, it is the rank.

Merged on the host once, or inside a jitted function with a traced scale.
Source: LoRA, arXiv:2106.09685, Eq. 3.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.networks.functional import Params, flatten, unflatten
from diffjax.networks.unet_config import UNetConfig
from diffjax.pretrained.architecture import describes
from diffjax.pretrained.folders import read_json
from diffjax.pretrained.models import ARCHITECTURES, Model
from diffjax.pretrained.single_file import unet_names
from diffjax.pretrained.tensor_files import read_notes, read_tensor_file
from diffjax.pretrained.weights import UnsupportedError, renamer, torch_name

# beginnings of names -> the part of a system that they mean
_PARTS = {
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}

# older names of the projections of text encoders -> transformers'
_OF_TEXTS = {
    **{f"self_attn.to_{each}": f"self_attn.{each}_proj" for each in "qkv"},
    "self_attn.to_out": "self_attn.out_proj",
}

# in front of all names that PEFT writes, and its settings beside the file
_PEFT = "base_model.model."
_PEFT_SETTINGS = "adapter_config.json"

# the note of a file in which diffusers keeps PEFT's settings, with the names of parts before them
_SETTINGS_NOTE = "lora_adapter_metadata"

# ends of names -> which of the tensors they mean
_ENDS = re.compile(
    r"(?P<module>.+?)(?:_lora|\.lora_linear_layer|\.lora)?"
    r"(?:\.(?P<down>lora_A|lora_down|down)|\.(?P<up>lora_B|lora_up|up)|\.(?P<alpha>alpha))"
    r"(?:\.default(?:_\d+)?)?(?:\.weight)?"
)


class LowRank(NamedTuple):
    """A change of one kernel: down, then up.

    Attributes:
      down: [*window, in, rank].
      up: [rank, out], with alpha / rank in it.
    """

    down: Array
    up: Array


# part of a system -> path of a kernel in its params -> its change
Lora = dict[str, dict[tuple[str, ...], LowRank]]


def load_lora(path: str | Path, models: Mapping[str, Model]) -> Lora:
    """Read a LoRA file for the networks of a system.

        parts = load_components(folder)
        params = merge_lora(parts.params, load_lora(file, parts.models), 0.8)

    Args:
      path: a safetensors file.
      models: the networks, by the names of their parts.

    Raises:
      UnsupportedError: a tensor is for no module of the networks, or of a kind without down and up.
      ValueError: the file is damaged, empty or holds something else, or shapes do not fit.
    """
    tensors = read_tensor_file(path)
    settings = _read_settings(Path(path), beside=any(name.startswith(_PEFT) for name in tensors))
    return lora_of(tensors, models, source=path, settings=settings)


def lora_of(
    tensors: Mapping[str, Any],
    models: Mapping[str, Model],
    *,
    source: Any,
    settings: Mapping[str, Any] | None = None,
) -> Lora:
    """The same of tensors by their names.

    Args:
      source: where they are from, for messages.
      settings: those of PEFT, for changes without an alpha of their own; names of parts may stand
        before them, as in "unet.lora_alpha".
    """
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = _ENDS.fullmatch(name.replace(".processor.", "."))
        if match is None:
            raise UnsupportedError(f"{source}: {name} is neither down, up nor alpha of a LoRA")
        kind = next(kind for kind in ("down", "up", "alpha") if match[kind])
        found.setdefault(match["module"], {})[kind] = np.asarray(tensor)
    if not found:
        raise ValueError(f"{source} holds no tensors")
    known = {part: _modules(model) for part, model in models.items()}
    lora: Lora = {}
    strange = []
    for module, parts in found.items():
        if lacks := [end for end in ("down", "up") if end not in parts]:
            raise ValueError(f"{source}: {module} has no {' and no '.join(lacks)}")
        place = _place(module, known)
        if place is None:
            strange.append(module)
            continue
        part, route = place
        kernel = flatten(models[part].params)[route]
        alpha = _alpha(module, part, parts, settings or {})
        lora.setdefault(part, {})[route] = _low_rank(module, parts, kernel.shape, alpha)
    if strange:
        raise UnsupportedError(
            f"{source}: {len(strange)} of {len(found)} modules are not in the networks "
            f"{', '.join(models)}: {', '.join(strange[:5])}. Was it trained for another model?"
        )
    return lora


def merge_lora(params: Params, lora: Lora, scale: ArrayLike = 1.0) -> Params:
    """The params of a system with a LoRA in them; pure, for use inside or outside `jit`.

    Args:
      params: of all parts.
      lora: from `load_lora`.
      scale: how much it counts; may be traced, negative undoes what was merged.
    """
    merged = dict(params)
    for part, changes in lora.items():
        flat = dict(flatten(params[part]))
        for route, (down, up) in changes.items():
            kernel = flat[route]
            change = jnp.asarray(scale, jnp.float32) * jnp.matmul(down, up)
            flat[route] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
        merged[part] = unflatten(flat)
    return merged


def module_names(model: Model) -> dict[tuple[str, ...], str]:
    """The name of its module in diffusers' files for the path of each of a network's kernels."""
    architecture = next((each for each in ARCHITECTURES if describes(each, model.config)), None)
    table = {} if architecture is None else architecture.names
    rename = renamer({here: stored for stored, here in table.items()})
    kernels = [route for route in flatten(model.params) if route[-1] == "kernel"]
    return {route: rename(torch_name(route)).removesuffix(".weight") for route in kernels}


def _modules(model: Model) -> dict[str, tuple[str, ...]]:
    """The paths of a network's kernels by the names of their modules in files, also kohya's."""
    is_unet = isinstance(model.config, UNetConfig)
    old = {here: there for there, here in unet_names(model.config).items()} if is_unet else {}
    names, in_old_blocks = {}, renamer(old)
    in_old_texts = renamer({here: there for there, here in _OF_TEXTS.items()})
    for route, stored in module_names(model).items():
        plain = re.sub(r"\bto_out\.0$", "to_out", stored)
        for name in (stored, plain, in_old_blocks(stored), in_old_texts(stored)):
            for each in (name, name.removeprefix("text_model.")):
                names[each] = names[each.replace(".", "_")] = route
    return names


def _place(module: str, known: Mapping[str, Mapping[str, tuple]]) -> tuple[str, tuple] | None:
    """The part and the path that a module's name in a file means."""
    module = module.replace(_PEFT, "", 1)
    for beginning, part in _PARTS.items():
        rest = module.removeprefix(beginning)
        if rest != module and rest in known.get(part, ()):
            return part, known[part][rest]
    for part in ("unet", "transformer", "text_encoder"):
        if module in known.get(part, ()):
            return part, known[part][module]
    return None


def _read_settings(path: Path, *, beside: bool) -> dict[str, Any]:
    """PEFT's settings, from the notes of a file or from beside it; empty where there are none."""
    noted, file = read_notes(path).get(_SETTINGS_NOTE), path.parent / _PEFT_SETTINGS
    if noted is None:
        return read_json(file) if beside and file.is_file() else {}
    try:
        settings = json.loads(noted)
    except ValueError as error:
        raise ValueError(f"{path}: the note {_SETTINGS_NOTE} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: the note {_SETTINGS_NOTE} is no table of settings")
    return settings


def _alpha(
    module: str, part: str, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> float:
    """alpha of a change: its own, or what the settings say, or its rank."""
    rank = len(tensors["down"])
    if "alpha" in tensors:
        if tensors["alpha"].size != 1:
            raise ValueError(f"{module}: alpha has the shape {tensors['alpha'].shape}; one number")
        return float(tensors["alpha"].reshape(()))
    setting = lambda name: settings.get(f"{part}.{name}", settings.get(name))
    alpha = setting("lora_alpha") or rank
    for pattern, other in (setting("alpha_pattern") or {}).items():
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = other
    # these divide by the root of the rank (arXiv:2312.03732)
    return alpha * rank**0.5 if setting("use_rslora") else alpha


def _low_rank(
    module: str, parts: Mapping[str, np.ndarray], shape: tuple[int, ...], alpha: float
) -> LowRank:
    down, up = parts["down"], parts["up"]
    rank = down.shape[0]
    if up.shape[1] != rank or any(n != 1 for n in up.shape[2:]):
        raise ValueError(f"{module}: down {down.shape} and up {up.shape} do not fit each other")
    # torch: [rank, in, *window] and [out, rank, 1, ...]
    first = np.moveaxis(down, (0, 1), (-1, -2)).astype(np.float32)
    first = first if len(shape) > 2 else first.reshape(-1, rank)
    first = first.reshape(*(1,) * (len(shape) - first.ndim), *first.shape)
    last = up.reshape(up.shape[0], rank).T.astype(np.float32)
    if (*first.shape[:-1], last.shape[-1]) != tuple(shape):
        raise ValueError(f"{module}: {down.shape} and {up.shape} change no kernel {tuple(shape)}")
    return LowRank(jnp.asarray(first), jnp.asarray(last * (alpha / rank)))
