"""The training loss of a system: a diffusion loss on latents, under what its encoders say.

    x0 = encode(images),    c = condition(prompts),
    loss = w(level) mean |F(alpha x0 + sigma eps, t, c) - target|^2

Latents are drawn from the autoencoder's posterior, noise levels and target are those of the
folder's scheduler.
Source: Latent Diffusion, arXiv:2112.10752, Eq. 2.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.conditioning import Condition, with_drops
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.losses import Loss, Weight, diffusion_loss, hybrid_loss, split_batch
from diffjax.core.noising import as_batch_keys
from diffjax.core.parameterizations import Parameterization
from diffjax.core.schedules import Schedule
from diffjax.networks.functional import Params
from diffjax.pipelines.system import System
from diffjax.pipelines.tasks import encode

# inputs that say nothing of the prompt, and stay when it is dropped
_NOT_TEXT = ("time_ids", "guidance", "labels", "channels")


def plain(parameterization: Parameterization) -> Weight:
    """Plain mean squared error on what the network predicts, as a weight on x0: 1 / out^2."""

    def weight(level: NoiseLevel) -> Array:
        return 1.0 / jnp.square(parameterization.estimate(level)[1])

    return weight


def null_prompt(system: System, height: int, width: int, drop_prob: float) -> Condition:
    """The inputs of the null prompt, which training gives in the place of some prompts."""
    null = system.prepare([""], [None], height=height, width=width)[1]
    told = {name: np.asarray(rows[0]) for name, rows in null.items() if name not in _NOT_TEXT}
    return Condition(told, drop_prob)


def system_loss(
    system: System,
    schedule: Schedule,
    *,
    weight: Weight | None = None,
    noise_offset: float = 0.0,
    null: Condition | None = None,
) -> Loss:
    """The denoising loss of one image, for each image of a batch.

    Args:
      system: from `make_system`; its autoencoder and text encoders run in the loss, so that any
        of their params may be trained.
      schedule: what it was trained on, `Scheduler.schedule`.
      weight: of the error on x0; None for `plain`.
      noise_offset: see `noise_batch`.
      null: from `null_prompt`, for guidance; None to keep all prompts.

    Returns:
      `loss(params, batch, keys)`: params of all parts; the batch holds "x0", images [B, H, W, 3] in
      [-1, 1], the inputs of `System.prepare`, and, where some images count more than others, their
      "loss_weight" [B].
    """
    row = system.parameterization
    make: Any = hybrid_loss if system.learned_variance else diffusion_loss
    weight = plain(row) if weight is None else weight

    def apply(params: Params, x: Array, t: Array, *, keys: Array | None = None, **inputs: Any):
        told = system.condition(params, inputs)
        return system.apply(params, x, t, keys=keys, **told)

    told = apply if null is None else with_drops(apply, [null])
    of_latents = make(told, schedule, row, weight=weight, noise_offset=noise_offset)

    def loss(params: Params, batch: Mapping[str, Array], keys: Any):
        images, inputs = split_batch(batch)
        counts = inputs.pop("loss_weight", None)
        keys = as_batch_keys(keys, images)
        latents = encode(system, params, sample_keys(keys.key, keys.index), images)
        x0 = latents.astype(jnp.float32)
        losses, metrics = of_latents(params, {"x0": x0, **inputs}, keys)
        return losses if counts is None else counts * losses, metrics

    return loss
