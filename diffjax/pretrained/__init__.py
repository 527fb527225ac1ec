"""Saved models of other libraries as configurations and params, without torch."""

from diffjax.pretrained.folders import read_config, read_tensors
from diffjax.pretrained.models import Model, load_model, save_model
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.pretrained.unet2d import load_unet2d, unet2d_config
from diffjax.pretrained.weights import UnsupportedError, to_params

__all__ = [
    "Model",
    "Scheduler",
    "UnsupportedError",
    "load_model",
    "load_unet2d",
    "read_config",
    "read_scheduler",
    "read_tensors",
    "save_model",
    "to_params",
    "unet2d_config",
]
