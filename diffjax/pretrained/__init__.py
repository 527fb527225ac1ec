"""Saved models of other libraries as configurations and params, without torch."""

from diffjax.pretrained.components import Components, load_components
from diffjax.pretrained.folders import read_config, read_tensors
from diffjax.pretrained.hub import find_folder
from diffjax.pretrained.inception import load_inception
from diffjax.pretrained.models import Model, load_model, save_model
from diffjax.pretrained.prompts import emphasize, parse_emphasis
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.pretrained.tokenizers import Tokenizer, Tokens, load_tokenizer
from diffjax.pretrained.weights import UnsupportedError, to_params

__all__ = [
    "Components",
    "Model",
    "Scheduler",
    "Tokenizer",
    "Tokens",
    "UnsupportedError",
    "emphasize",
    "find_folder",
    "load_components",
    "load_inception",
    "load_model",
    "load_tokenizer",
    "parse_emphasis",
    "read_config",
    "read_scheduler",
    "read_tensors",
    "save_model",
    "to_params",
]
