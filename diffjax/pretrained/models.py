"""Folders of saved networks as (config, network, params), and back."""

import contextlib
import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from diffjax.networks.functional import Params
from diffjax.pretrained.architecture import (
    Architecture,
    describes,
    misfit,
    read_settings,
    write_settings,
)
from diffjax.pretrained.autoencoders import AUTOENCODERS
from diffjax.pretrained.controlnet import CONTROLNET
from diffjax.pretrained.diffusion_transformers import DIFFUSION_TRANSFORMERS
from diffjax.pretrained.folders import read_config, read_tensors, write_tensors
from diffjax.pretrained.hifigan import HIFIGAN
from diffjax.pretrained.t2i_adapter import T2I_ADAPTER
from diffjax.pretrained.text_encoders import TEXT_ENCODERS
from diffjax.pretrained.unclip import UNCLIP_TEXT_PROJ
from diffjax.pretrained.unet1d import UNETS_1D
from diffjax.pretrained.unet2d import UNETS_2D
from diffjax.pretrained.unet_condition import UNET_CONDITION
from diffjax.pretrained.unet_video import UNET_3D, UNET_MOTION
from diffjax.pretrained.weights import UnsupportedError, from_params, renamer, to_params
from diffjax.training.sharding import Rule, params_sharding

# of several that can hold a configuration, the first is written
ARCHITECTURES = (
    *AUTOENCODERS,
    *TEXT_ENCODERS,
    *DIFFUSION_TRANSFORMERS,
    UNCLIP_TEXT_PROJ,
    *UNETS_1D,
    *UNETS_2D,
    UNET_CONDITION,
    UNET_3D,
    UNET_MOTION,
    CONTROLNET,
    T2I_ADAPTER,
    HIFIGAN,
)


class Model(NamedTuple):
    """A network with weights.

    Attributes:
      config: its shape, a frozen dataclass.
      network: its pure functions, `init` and `apply`, or `encode` and `decode`.
      params: nested dicts of arrays.
    """

    config: Any
    network: Any
    params: Params


def load_model(
    folder: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    variant: str | None = None,
    class_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    rules: Sequence[Rule] = (),
    tensors: Callable[[Any], Mapping[str, Any]] | None = None,
) -> Model:
    """Read a network that diffusers or transformers saved.

        vae = load_model(folder, param_dtype="bfloat16")
        images = vae.network.decode(vae.params, latents)

    Tensors are read a few at a time and go straight to their devices: the memory of the host holds
    a few times the largest of them besides the params.

    Args:
      folder: holds config.json and one or more *.safetensors.
      dtype: of the computation in the network; float32 in the place of float16 where that is known
        to overflow, in T5 and in autoencoders whose folder says so (force_upcast).
      param_dtype: to which the stored floating tensors are cast.
      variant: which of several copies of the weights, such as "fp16"; see `read_tensors`.
      class_name: in the place of the one that config.json names.
      settings: in the place of the content of config.json.
      mesh, rules: where the params go, see `diffjax.training.sharding`; without a mesh to the
        default device.
      tensors: from the configuration to the tensors, in the place of those of the folder.

    Raises:
      UnsupportedError: there is no network for the class, or it cannot follow a key of config.json.
      FileNotFoundError, ValueError: files are missing, damaged, or do not fit each other.
    """
    settings = read_config(folder) if settings is None else settings
    name = class_name or _class_name(settings, folder)
    architecture, config = _recognise(name, settings, dtype=dtype, param_dtype=param_dtype)
    if dtype == "float16" and architecture.overflows(config):
        config = dataclasses.replace(config, dtype="float32")
    # before the network is built: the disk is at work meanwhile
    found = tensors(config) if tensors else read_tensors(folder, variant=variant)
    network = architecture.build(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rename = renamer(architecture.names)

    def here(stored: str) -> str | None:
        name = architecture.present(stored)
        return None if name is None else rename(name)

    shardings = None if mesh is None else params_sharding(shapes, mesh, rules)
    params = to_params(found, shapes, rename=here, shardings=shardings)
    return Model(config, network, params)


def save_model(
    folder: str | Path,
    config: Any,
    params: Params,
    *,
    variant: str | None = None,
    dtype: Any = None,
    max_file_size: int = 10**10,
) -> None:
    """Write a network in the format that diffusers or transformers load.

    Args:
      folder: is made if it is not there; config.json and files of the same names are replaced.
      config: of the network.
      params: its params.
      variant: such as "fp16", becomes part of the file names.
      dtype: to be stored; by default that of each of the params.
      max_file_size: in bytes; a larger model is split over several files, with an index.

    Raises:
      UnsupportedError: no class of diffusers or transformers can hold the configuration.
    """
    found = [each for each in ARCHITECTURES if describes(each, config)]
    if not found:
        raise _no_class(config)
    architecture = found[0]
    here_to_stored = renamer({here: stored for stored, here in architecture.names.items()})
    shapes, read = from_params(params, rename=here_to_stored, dtype=dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = write_settings(architecture, config)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_tensors(
        folder,
        shapes,
        read,
        stem=architecture.stem,
        variant=variant,
        max_file_size=max_file_size,
    )


def _no_class(config: Any) -> UnsupportedError:
    reasons = [
        f"{each.class_name}: {misfit(each, config)}"
        for each in ARCHITECTURES
        if type(config) is each.make
    ]
    nearest = min(reasons, key=len, default=f"none is of {type(config).__name__}")
    return UnsupportedError(
        f"no class of diffusers or transformers can hold the configuration; nearest is {nearest}"
    )


def _class_name(settings: Mapping[str, Any], folder: str | Path) -> str:
    name = settings.get("_class_name") or next(iter(settings.get("architectures") or ()), None)
    if not isinstance(name, str):
        raise UnsupportedError(
            f"config.json in {folder} names no class, in neither _class_name nor architectures; "
            "give class_name"
        )
    return name


def _recognise(name: str, settings: Mapping[str, Any], **options: Any) -> tuple[Architecture, Any]:
    """The first architecture of a class that can follow the settings, and its configuration."""
    candidates = [each for each in ARCHITECTURES if each.class_name == name]
    if not candidates:
        known = sorted({each.class_name for each in ARCHITECTURES})
        nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
        raise UnsupportedError(
            f"there is no network for the class {name!r}; the nearest name is {nearest!r}, and all "
            f"are: {', '.join(known)}"
        )
    for architecture in candidates[:-1]:
        with contextlib.suppress(UnsupportedError):
            return architecture, read_settings(architecture, settings, **options)
    return candidates[-1], read_settings(candidates[-1], settings, **options)
