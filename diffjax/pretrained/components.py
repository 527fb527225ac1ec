"""A folder of a whole system: its networks, tokenizers and schedulers.

    model_index.json                {"_class_name": ..., "unet": ["diffusers", "UNet2D..."], ...}
    unet/, vae/, text_encoder/      networks: config.json and weights
    tokenizer/                      see `diffjax.pretrained.tokenizers`
    scheduler/                      scheduler_config.json

Only names are taken from model_index.json: no code of a folder is ever imported or run.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from diffjax.networks.functional import Params
from diffjax.pretrained.folders import copies_of, read_json
from diffjax.pretrained.models import Model, load_model
from diffjax.pretrained.schedulers import SCHEDULER_FILE, Scheduler, read_scheduler
from diffjax.pretrained.single_file import SingleFile
from diffjax.pretrained.tokenizers import Tokenizer, load_tokenizer
from diffjax.training.sharding import Rule

MODEL_INDEX = "model_index.json"

# parts that only watch over the results, or only prepare images in other libraries, or whose layers
# the UNet holds too
NOT_NEEDED = (
    "safety_checker",
    "feature_extractor",
    "watermarker",
    "motion_adapter",
)


class Components(NamedTuple):
    """The parts of a system, by the names that its folder gives them.

    Attributes:
      name: the class that saved the folder, such as "StableDiffusionPipeline".
      settings: the entries of model_index.json that name no part.
      models: networks with weights.
      tokenizers: from prompts to integers.
      schedulers: what the networks were trained on, and how the authors sample.
    """

    name: str
    settings: Mapping[str, Any]
    models: Mapping[str, Model]
    tokenizers: Mapping[str, Tokenizer]
    schedulers: Mapping[str, Scheduler]

    @property
    def params(self) -> dict[str, Params]:
        """The params of all networks, by their names."""
        return {name: model.params for name, model in self.models.items()}


def read_model_index(folder: str | Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The class, the parts (name -> class) and the other entries of a folder's model_index.json.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not what diffusers writes, or a part lies outside the folder.
    """
    folder = Path(folder)
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise FileNotFoundError(_no_index(folder))
    parts: dict[str, str] = {}
    settings: dict[str, Any] = {}
    entries = read_json(path)
    name = entries.pop("_class_name", None)
    if not isinstance(name, str):
        raise ValueError(f"{path} names no class (_class_name)")
    for key, value in entries.items():
        pair = isinstance(value, list) and len(value) == 2
        if pair and all(isinstance(each, str) for each in value):
            _require_inside(folder, key)
            parts[key] = value[1]
        elif not pair and not key.startswith("_"):
            settings[key] = value
    return name, parts, settings


def load_components(
    folder: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    variant: str | None = None,
    mesh: Mesh | None = None,
    rules: Sequence[Rule] = (),
    only: Collection[str] | None = None,
    single_file: str | Path | None = None,
) -> Components:
    """Read the parts of a system.

        parts = load_components("stable-diffusion-v1-5", param_dtype="bfloat16")
        parts.models["unet"].params, parts.schedulers["scheduler"].levels(30)

    Args:
      folder: holds model_index.json.
      dtype, param_dtype, variant, mesh, rules: of the networks, see `load_model`. Parts without
        files of the variant are read without it, if any part has them.
      only: names of the parts to read; by default all but safety checkers and the like.
      single_file: the weights of all networks, in the layout of latent diffusion's first releases;
        the folder then needs none.

    Raises:
      UnsupportedError: a part is of a class that is not there; the nearest name is given.
      FileNotFoundError, ValueError: files are missing, damaged, or do not fit each other.
    """
    folder = Path(folder)
    name, parts, settings = read_model_index(folder)
    models, tokenizers, schedulers = {}, {}, {}
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    places: dict[str, Any] = {"mesh": mesh, "rules": rules}
    whole = None if single_file is None else SingleFile(single_file)
    chosen = _chosen(folder, parts, only)
    if whole is None and variant is not None:
        _require_variant(folder, chosen, variant)
    for part in chosen:
        place, kind = folder / part, parts[part]
        if not place.is_dir():
            raise FileNotFoundError(f"{folder / MODEL_INDEX} names {part}, but {place} is missing")
        if (place / SCHEDULER_FILE).is_file():
            schedulers[part] = read_scheduler(place)
        elif "Tokenizer" in kind:
            tokenizers[part] = load_tokenizer(place)
        else:
            models[part] = load_model(
                place,
                variant=variant if variant in _copies_in(place) else None,
                class_name=kind,
                tensors=None if whole is None else partial(whole.tensors, part),
                **options,
                **places,
            )
    return Components(name, settings, models, tokenizers, schedulers)


def _chosen(
    folder: Path, parts: Mapping[str, str], only: Collection[str] | None
) -> Collection[str]:
    """The names of the parts to read: those that are asked for, or all that are needed."""
    if only is None:
        return [part for part in parts if part not in NOT_NEEDED]
    unknown = sorted(set(only) - parts.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], parts, 1, cutoff=0.0)
        raise ValueError(f"{folder} has no part {unknown[0]!r}; the nearest name is {near}")
    return only


def _require_inside(folder: Path, part: str) -> None:
    """A part is a folder in the folder itself, also behind symbolic links."""
    outside = Path(part).name != part or part in ("", ".", "..")
    if outside or not (folder / part).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / MODEL_INDEX} names a part outside its folder: {part!r}")


def _copies_in(place: Path) -> Mapping[str | None, Any]:
    return copies_of(file.name for file in place.glob("*.safetensors"))


def _require_variant(folder: Path, parts: Collection[str], variant: str) -> None:
    """A variant of which no part has files is a mistake, not a wish for the other weights."""
    there = {name for part in parts for name in _copies_in(folder / part)}
    if variant not in there:
        named = ", ".join(sorted(name for name in there if name)) or "none"
        raise FileNotFoundError(f"{folder} holds no variant {variant!r}; there is {named}")


def _no_index(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; give the one that holds {MODEL_INDEX}"
    if (folder / "config.json").is_file():
        return f"{folder} holds one network, not a whole system; see load_model"
    return f"{folder} holds no {MODEL_INDEX}, with which the folders of diffusers begin"
