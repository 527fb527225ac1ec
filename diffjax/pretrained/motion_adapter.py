"""Motion adapters: AnimateDiff's layers between the frames, for UNets that make images.

    parts = load_motion_adapter(folder, load_components("stable-diffusion-v1-5"))
    system = make_system(parts, num_frames=16)

A folder holds config.json and weights named as those of the UNet that they go into.
Source: AnimateDiff, arXiv:2307.04725, section 4.2.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_frames import FramesConfig
from diffjax.pretrained.added_layers import with_layers
from diffjax.pretrained.architecture import Architecture, Key, read_settings
from diffjax.pretrained.components import Components
from diffjax.pretrained.folders import read_config, read_tensors
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.pretrained.unet_condition import NAMES
from diffjax.pretrained.weights import UnsupportedError, renamer

# the class that saves a Stable Diffusion together with its adapter
_ANIMATED = "AnimateDiffPipeline"

# the setting of a scheduler that says how its betas grow
_BETAS = "beta_schedule"


def _read(saved: Mapping[str, Any]) -> dict[str, Any]:
    middle = saved["motion_transformer_layers_per_mid_block"]
    middle = middle[0] if isinstance(middle, tuple) else middle
    return {"mid_depth": middle if saved["use_motion_mid_block"] else 0}


_ADAPTER = Architecture(
    class_name="MotionAdapter",
    make=FramesConfig,
    build=lambda config: None,  # a part of a UNet
    keys={
        "motion_num_attention_heads": Key(8, "num_heads"),
        "motion_transformer_layers_per_block": Key(1, "depth"),
        "motion_max_seq_length": Key(32, "max_frames"),
        "motion_transformer_layers_per_mid_block": Key(1),
        "motion_mid_block_layers_per_block": Key(1, only=(1,)),
        "use_motion_mid_block": Key(True),
        # of adapters that start from an image (PIA)
        "conv_in_channels": Key(None, only=(None,)),
    },
    read=_read,
)

# of the adapter, and of a UNet that it goes into
_SHARED = {
    "block_out_channels": ("block_out_channels", (320, 640, 1280, 1280)),
    "motion_layers_per_block": ("layers_per_block", 2),
    "motion_norm_num_groups": ("num_groups", 32),
}


def load_motion_adapter(
    folder: str | Path, parts: Components, *, variant: str | None = None
) -> Components:
    """The parts of AnimateDiff, from those of a Stable Diffusion and the folder of an adapter.

    The scheduler becomes that of linear betas, on which the adapters were trained.

    Args:
      folder: of a MotionAdapter: config.json and *.safetensors.
      parts: of Stable Diffusion 1 or 2, LoRA files merged already.
      variant: which copy of the adapter's weights, such as fp16.

    Raises:
      UnsupportedError: the folder holds something else, or an adapter of another kind.
      ValueError: it is for another UNet, or damaged.
    """
    settings = read_config(folder)
    if settings.get("_class_name") != _ADAPTER.class_name:
        found = settings.get("_class_name")
        raise UnsupportedError(f"{folder} holds a {found}; needed is a {_ADAPTER.class_name}")
    frames = read_settings(_ADAPTER, settings)
    _require_fit(folder, settings, parts)
    unet = parts.models["unet"]
    tensors = read_tensors(folder, variant=variant)
    rename = renamer(NAMES)
    moving = with_layers(unet, replace(unet.config, frames=frames), tensors, lambda _: rename)
    schedulers = {name: on_linear_betas(each) for name, each in parts.schedulers.items()}
    models = {**parts.models, "unet": moving}
    return parts._replace(name=_ANIMATED, models=models, schedulers=schedulers)


def on_linear_betas(scheduler: Scheduler) -> Scheduler:
    """The same scheduler on the noise levels that AnimateDiff was trained on.

        beta_t = beta_start + (beta_end - beta_start) t / (T - 1)

    in the place of the square of such a line, from the same start to the same end.
    """
    if _BETAS not in scheduler.config:
        raise UnsupportedError(
            f"{scheduler.name} has no table of betas; motion adapters need one, such as "
            "DDIMScheduler"
        )
    # what was a default of the class that saved the file is a setting now
    unset = [name for name in scheduler.saved.get("_use_default_values", ()) if name != _BETAS]
    saved = {**scheduler.saved, _BETAS: "linear", "_use_default_values": unset}
    return read_scheduler(saved, class_name=scheduler.name)


def _require_fit(folder: str | Path, settings: Mapping[str, Any], parts: Components) -> None:
    unet = parts.models.get("unet")
    if unet is None or not isinstance(unet.config, UNetConfig) or "text_encoder_2" in parts.models:
        raise UnsupportedError(
            f"motion adapters go into the UNet of Stable Diffusion 1 or 2; the model is a "
            f"{parts.name}"
        )
    if unet.config.frames is not None:
        raise ValueError(f"the UNet of this {parts.name} mixes frames already; it takes no adapter")
    for name, (field, default) in _SHARED.items():
        value = settings.get(name, default)
        there = tuple(value) if isinstance(value, list) else value
        here = getattr(unet.config, field)
        if there != here:
            raise ValueError(f"{folder} is for UNets of {field} {there}; this one has {here}")
