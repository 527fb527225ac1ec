"""What the parts of a system do together, whatever system it is.

    prompts   --prepare-->   inputs   --condition-->   conditioning of the network
    images    --encode-->    latents x0               latents x0   --decode-->   images

`prepare` runs on the host, all else under `jit`. Between them stands a network like any other, so
that every schedule, solver and guidance of the library serves every system. Videos and sounds may
take the places of images, see `videos` and `sounds`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal
from diffjax.core.parameterizations import Parameterization
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.functional import Params
from diffjax.networks.tiling import in_tiles
from diffjax.pretrained import Components, Model

# arrays [B, ...]: tokens, sizes, labels, pictures
Inputs = dict[str, Any]


class System(NamedTuple):
    """A model that makes images, as pure functions of its params.

    Attributes:
      parameterization: what its network predicts.
      learned_variance: whether the network predicts a reverse variance too.
      prepare: (prompts, negative=None, *, height, width, **options) -> [inputs, ...], those of the
        prompts first and then, where `negative` is given, those of what to keep away from.
      condition: (params, inputs) -> arrays [B, ...], the keyword arguments of `apply`.
      apply: (params, x, t, **conditioning) -> prediction; x: latents [B, h, w, channels].
      encode: (params, keys, images, normal) -> latents; images [B, H, W, 3] in [-1, 1].
      features: (params, images) -> what the autoencoder makes of images, without a draw and not
        scaled, as a picture that the network sees beside the latents.
      decode: (params, latents) -> images in [-1, 1].
      latent_shape: (height, width) of an image -> (h, w, channels) of its latents.
      size: (height, width) of the images that it was trained on.
      grid: (height, width, num_steps) -> options of the scheduler's `levels`.
      rate: frames or samples of a second of what it makes; None for images.
      weaker: like `apply`, of a worse network that guidance leads away from; see `weaker.beside`.
      attention: (params, x, t, **conditioning) -> [B, *coarse], where the network attends; see
        `weaker.attentive`.
      interval: (low, high), guidance counts where low < sigma / alpha <= high; None for everywhere.
    """

    parameterization: Parameterization
    learned_variance: bool
    prepare: Callable[..., list[Inputs]]
    condition: Callable[[Params, Inputs], dict[str, Any]]
    apply: Callable[..., Array]
    encode: Callable[[Params, Array, Array, Normal], Array]
    features: Callable[[Params, Array], Array]
    decode: Callable[[Params, Array], Array]
    latent_shape: Callable[[int, int], tuple[int, ...]]
    size: tuple[int, int]
    grid: Callable[[int, int, int], dict[str, Any]] = lambda height, width, num_steps: {}
    rate: float | None = None
    weaker: Callable[..., Array] | None = None
    attention: Callable[..., Array] | None = None
    interval: tuple[ArrayLike, ArrayLike] | None = None


class Codec(NamedTuple):
    """How images become latents and latents images: fields of a System."""

    encode: Callable[[Params, Array, Array, Normal], Array]
    features: Callable[[Params, Array], Array]
    decode: Callable[[Params, Array], Array]
    latent_shape: Callable[[int, int], tuple[int, ...]]


def kl_codec(parts: Components, name: str = "vae") -> Codec:
    """The codec of a variational autoencoder, with latents of about unit variance.

        latents = ((z - shift_factor) - mean) scaling_factor / std

    where only newer models have a shift, or a mean and a standard deviation of each channel.
    """
    config, network = parts.models[name].config, parts.models[name].network
    shift, scale = latent_scale(config)
    factor = 2 ** (len(config.block_out_channels) - 1)

    def encode(params: Params, keys: Array, images: Array, normal: Normal) -> Array:
        mean, logvar = network.encode(params[name], images)
        noise = normal(keys, mean.shape[1:], mean.dtype)
        return (mean + jnp.exp(0.5 * logvar) * noise - shift) * scale

    def decode(params: Params, latents: Array) -> Array:
        return network.decode(params[name], latents / scale + shift)

    def latent_shape(height: int, width: int) -> tuple[int, int, int]:
        require_multiple(height, width, factor)
        return height // factor, width // factor, config.latent_channels

    features = lambda params, images: network.encode(params[name], images).mean
    return Codec(encode, features, decode, latent_shape)


def with_tiles(parts: Components, side: int) -> Components:
    """Parts whose variational autoencoders work on one tile of one picture after another.

    For pictures that would not fit into memory; see `in_tiles`.

    Args:
      parts: of a folder.
      side: of a tile in pixels, of which a quarter lies over its neighbour.

    Raises:
      ValueError: a tile has less than two latents a side, or no part is such an autoencoder.
    """
    if not any(isinstance(model.config, AutoencoderKLConfig) for model in parts.models.values()):
        raise ValueError(f"{parts.name} has no variational autoencoder that could work on tiles")

    def tiled(model: Model) -> Model:
        if not isinstance(model.config, AutoencoderKLConfig):
            return model
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        tile = side // factor
        if tile < 2:
            raise ValueError(
                f"a tile of {side} pixels is {tile} latents a side, and tiles overlap by one at "
                f"least; this autoencoder needs {2 * factor} pixels or more"
            )
        network = in_tiles(model.network, factor, tile=tile, overlap=max(1, tile // 4))
        return model._replace(network=network)

    return parts._replace(models={name: tiled(model) for name, model in parts.models.items()})


def latent_scale(config: AutoencoderKLConfig) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale): latents = (z - shift) scale."""
    shift = np.float32(config.shift_factor or 0.0)
    scale = np.float32(config.scaling_factor)
    if config.latents_mean is not None and config.latents_std is not None:
        shift = shift + np.array(config.latents_mean, np.float32)
        scale = scale / np.array(config.latents_std, np.float32)
    return np.asarray(shift), np.asarray(scale)


def pixel_codec(channels: int, multiple: int) -> Codec:
    """The codec of a model of pixels: images are their own latents."""

    def latent_shape(height: int, width: int) -> tuple[int, int, int]:
        require_multiple(height, width, multiple)
        return height, width, channels

    return Codec(
        encode=lambda params, keys, images, normal: images,
        features=lambda params, images: images,
        decode=lambda params, latents: latents,
        latent_shape=latent_shape,
    )


def require_multiple(height: int, width: int, factor: int) -> None:
    """Raise a ValueError unless both sides are positive multiples of the factor."""
    if min(height, width) < 1 or height % factor or width % factor:
        raise ValueError(f"images of {height} x {width}: sides must be multiples of {factor}")


def texts_of(prompts: Sequence[str], negative: Sequence[str | None] | None) -> list[list[str]]:
    """The prompts, and the negative ones where there are any; None is the empty text."""
    if isinstance(prompts, str) or isinstance(negative, str):
        raise TypeError("prompts and negative are lists of texts, one for each image")
    if negative is None:
        return [list(prompts)]
    if len(negative) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts and {len(negative)} negative ones")
    return [list(prompts), [text or "" for text in negative]]


def lower_case(texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Texts as the captions were on which PixArt and DeepFloyd IF were trained.

    >>> lower_case([["A Cat ", "dogs"]])
    [['a cat', 'dogs']]
    """
    return [[text.lower().strip() for text in some] for some in texts]


def first_half(output: Array) -> Array:
    """A prediction without the variance behind it, for solvers that have no use for that."""
    return jnp.split(output, 2, axis=-1)[0]


def clock_options(
    settings: Mapping[str, Any], latent_shape: Callable[[int, int], tuple[int, ...]]
) -> Callable[[int, int, int], dict[str, Any]]:
    """Options of a flow-matching grid that is shifted by the number of tokens of an image,
    squares of 2 x 2 latents.

        mu = base_shift + (tokens - base) (max_shift - base_shift) / (max - base)

    Source: Stable Diffusion 3, arXiv:2403.03206, section 5.3.2, in the form of the Flux models.
    """
    if not settings.get("use_dynamic_shifting"):
        return lambda height, width, num_steps: {}
    low, high = settings["base_image_seq_len"], settings["max_image_seq_len"]
    slope = (settings["max_shift"] - settings["base_shift"]) / (high - low)

    def options(height: int, width: int, num_steps: int) -> dict[str, Any]:
        rows, columns, _ = latent_shape(height, width)
        tokens = (rows // 2) * (columns // 2)
        return {"mu": settings["base_shift"] + (tokens - low) * slope}

    return options
