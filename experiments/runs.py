"""The run folder: what train.py leaves there and the other scripts read.

config.json        the configuration
tokenizer/, text_encoder/    of a run with captions, see text.py
autoencoder/, latents/       of a run in latent space, see latent_space.py
checkpoints/       a folder for each saved step
metrics.jsonl      a line for every few steps, and events for TensorBoard beside it
loss.png, samples_*.png, denoising.gif
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from autoencoding import autoencoder_network
from config import Config, DataConfig, load_config
from diffjax import data
from diffjax.core.learned_schedule import LearnedLogsnr
from diffjax.core.noising import training_times
from diffjax.networks import Functional, UNetConfig, classifier, experts, unet, unet_attention_map
from diffjax.networks.class_tokens import class_tokens
from diffjax.training import ema_names, find_checkpoint, load_item, replicated
from model import make_parameterization, make_schedule, named_schedule

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A trained network, ready to sample from.

    Attributes:
      config: of the run.
      network: `init` and `apply`.
      params: an average of the weights, on the devices.
      step: of the checkpoint that they come from.
    """

    config: Config
    network: Functional
    params: Any
    step: int


def load_run(
    workdir: Path,
    mesh: Mesh,
    *,
    step: int | None = None,
    ema: str | None = None,
    task: str = "denoise",
    latents: bool = False,
) -> Run:
    """Load an average of the weights of a run, and nothing else of its checkpoint.

    Args:
      workdir: the run folder.
      mesh: the devices that get a copy of the weights.
      step: of the checkpoint; None for the newest that is undamaged.
      ema: name of the average, such as "0.9999"; None for the first of the configuration.
      task: what the network must have been trained for.
      latents: whether the caller decodes what a run in latent space makes.

    Raises:
      FileNotFoundError: the folder holds no run.
      CheckpointError: it holds no (undamaged) checkpoint.
      ValueError: the run keeps no such average, was trained for another task, or diffuses latents
        and the caller cannot decode.
    """
    config = load_config(workdir / CONFIG_FILE)
    if config.task != task:
        raise ValueError(f"{workdir} holds a run that learned to {config.task}, not to {task}.")
    if config.latents is not None and not latents:
        raise ValueError(
            f"{workdir} holds a run in the latent space of an autoencoder; this works on images."
        )
    network = make_network(config)
    path = find_checkpoint(workdir / CHECKPOINTS, items=("ema",), step=step)
    names = list(ema_names(config.ema_decay))
    name = names[0] if ema is None else ema
    if name not in names:
        raise ValueError(f"The run keeps no average {name!r} of its weights, only {names}.")
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=replicated(mesh)), shapes
    )
    params = load_item(path, "ema", like=dict.fromkeys(names, like))[name]
    return Run(config, network, params, int(path.name))


def make_network(config: Config, make: Callable[[UNetConfig], Functional] = unet) -> Functional:
    """The network of a run; beside its parameters stand those of a schedule that is learned.

    Such params are {"network": ..., "schedule": ...}, of which `apply` reads the first.

    Args:
      config: of the run.
      make: of the same parameters, what `apply` computes.
    """
    if config.autoencoding is not None:
        return autoencoder_network(config.autoencoding)
    if config.task == "classify":
        return classifier(config.network)
    shape = network_config(config)
    # a context that no text fills is the class
    told = shape.context is not None and config.text is None
    network = class_tokens(shape, make) if told else make(shape)
    schedule = named_schedule(config.diffusion)
    if config.experts.boundaries:
        if isinstance(schedule, LearnedLogsnr):
            raise ValueError(
                f"The schedule {config.diffusion.schedule} is learned; experts.boundaries need one "
                "that stays as it is."
            )
        network = experts(network, handovers(config))
    if not isinstance(schedule, LearnedLogsnr):
        return network

    def init(key):
        return {"network": network.init(key), "schedule": schedule.params}

    def apply(params, *inputs, **conditioning):
        return network.apply(params["network"], *inputs, **conditioning)

    return Functional(init, apply)


def handovers(config: Config) -> list[float]:
    """The boundaries between the experts of a run, as its network is told times."""
    schedule = make_schedule(config.diffusion)
    times = training_times(schedule, jnp.asarray(config.experts.boundaries))
    return make_parameterization(config.diffusion).clock(schedule(times)).tolist()


def other_network(config: Config, network: Functional, weaker: str | None) -> Functional:
    """The network that guides that of the run, with its parameters, for a `Guidance.weaker`.

    Raises:
      ValueError: it needs attention, and the run's network has none.
    """
    if weaker == "attention_map" and not (
        config.network.mid_block and config.network.mid_attention
    ):
        raise ValueError(
            "--guidance self_attention reads attention in the middle, but the network has none. "
            "Train one with --network.mid-attention True."
        )
    if weaker == "attention_map":
        return make_network(config, unet_attention_map)
    return without_attention_maps(config) if weaker == "identity_attention" else network


def without_attention_maps(config: Config) -> Functional:
    """The network of a run with the identity for its attention maps, with the same parameters."""
    network = config.network
    if not (network.mid_attention or any(network.attention)):
        raise ValueError(
            "--guidance perturbed_attention perturbs attention, but the network has none. Train "
            "one with --network.mid-attention True."
        )
    where = "middle" if network.mid_attention else "all"
    perturbed = dataclasses.replace(network, identity_attention=where)
    return make_network(dataclasses.replace(config, network=perturbed))


def network_config(config: Config) -> UNetConfig:
    """The network of a run; learning the variance doubles its output channels."""
    network = config.network
    if config.diffusion.learn_variance:
        network = dataclasses.replace(network, out_channels=2 * network.in_channels)
    return network


def open_source(options: DataConfig) -> data.Source:
    """The images of a configuration."""
    return data.load(
        options.name, split=options.split, path=options.path, image_size=options.image_size
    )


def image_shape(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of what a configuration trains on, images or latents."""
    if config.autoencoding is not None:
        side = config.autoencoding.network.sample_size
        return side, side, config.autoencoding.network.in_channels
    size = config.network.sample_size
    if size is None:
        raise ValueError("network.sample_size is None; sampling needs the side of an image.")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, config.network.in_channels
