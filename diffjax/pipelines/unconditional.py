"""Systems of one UNet without prompts: DDPM, DDIM, consistency models, latent diffusion."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array

from diffjax.core.keys import Normal
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.functional import Params
from diffjax.pipelines.system import Codec, Inputs, System, kl_codec, pixel_codec
from diffjax.pretrained import Components


def pixels(parts: Components) -> System:
    """A UNet on pixels, with or without classes.

    `prepare(labels=None)`: integers, one for each image, where the network was trained with them.
    """
    config = parts.models["unet"].config
    multiple = 2 ** (len(config.block_out_channels) - 1)
    return _system(parts, pixel_codec(config.in_channels, multiple), 1)


def latents(parts: Components) -> System:
    """A UNet on the latents of an autoencoder, vector-quantised or variational.

    Source: Latent Diffusion, arXiv:2112.10752, section 3.
    """
    model = parts.models["vqvae"]
    config, network = model.config, model.network
    factor = 2 ** (len(config.block_out_channels) - 1)
    if isinstance(config, AutoencoderKLConfig):
        return _system(parts, kl_codec(parts, "vqvae"), factor)

    def encode(params: Params, keys: Array, images: Array, normal: Normal) -> Array:
        return network.encode(params["vqvae"], images) * config.scaling_factor

    codec = Codec(
        encode=encode,
        features=lambda params, images: network.encode(params["vqvae"], images),
        decode=lambda params, z: network.decode(params["vqvae"], z / config.scaling_factor),
        latent_shape=lambda height, width: (
            height // factor,
            width // factor,
            config.latent_channels,
        ),
    )
    return _system(parts, codec, factor)


def _system(parts: Components, codec: Codec, factor: int) -> System:
    unet, scheduler = parts.models["unet"], parts.schedulers["scheduler"]
    classes, side = unet.config.num_classes, unet.config.sample_size

    def prepare(
        labels: Sequence[int] | None = None, negative: None = None, **sizes: int
    ) -> list[Inputs]:
        if negative is not None:
            raise ValueError("this model has no unconditional estimate to guide away from")
        if classes is None:
            return [{}]
        if labels is None or min(labels) < 0 or max(labels) >= classes:
            raise ValueError(f"labels is {labels}; needed are integers in 0 .. {classes - 1}")
        return [{"labels": np.array(labels, np.int32)}]

    def apply(params: Params, x: Array, t: Array, **told: Any) -> Array:
        return unet.network.apply(params["unet"], x, t, **told)

    height, width = (side, side) if isinstance(side, int) else side or (32, 32)
    return System(
        parameterization=scheduler.parameterization,
        learned_variance=scheduler.learned_variance,
        prepare=prepare,
        condition=lambda params, inputs: inputs,
        apply=apply,
        **codec._asdict(),
        size=(height * factor, width * factor),
    )
