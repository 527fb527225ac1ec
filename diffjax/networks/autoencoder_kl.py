"""The variational autoencoder of latent diffusion.

    encode: x -> N(mean, exp(logvar)),    decode: z -> image,    x about decode(mean)

Diffusion runs on (z - shift_factor) scaling_factor, which has about unit variance; encode and
decode know nothing of that.
Source: Latent Diffusion, arXiv:2112.10752, section 3.1 and appendix G.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.core.latents import Posterior
from diffjax.networks.autoencoder_blocks import (
    Autoencoder,
    Decoder,
    Encoder,
    check_backbone,
    check_levels,
    together,
)
from diffjax.networks.functional import functional
from diffjax.networks.layers import Conv


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The shape of the autoencoder; the defaults are those of Stable Diffusion 1.

    Attributes:
      sample_size: side of the images that it was trained on; a note, every size goes.
      in_channels: of the images.
      out_channels: of the reconstructions.
      block_out_channels: channels of each level, from the finest.
      layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
      attention: for each level of the encoder, whether self-attention follows its blocks.
      up_attention: the same of the decoder, from the finest level too.
      mid_attention: whether there is attention in the middle.
      num_groups: of every GroupNorm.
      act: activation of the residual blocks.
      latent_channels: of z.
      quant_conv: whether a pointwise convolution follows the encoder.
      post_quant_conv: whether one is in front of the decoder.
      scaling_factor: of the latents (z - shift_factor) scaling_factor that diffusion runs on, a
        note for samplers.
      shift_factor: likewise; None for 0.
      latents_mean: of z in each channel, a note for samplers that shift and scale by it.
      latents_std: likewise.
      force_upcast: a note that half precision overflows in these weights.
      dtype: of the computation.
      param_dtype: of the parameters that `init` makes.
    """

    sample_size: int = 512
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False,) * 4
    up_attention: tuple[bool, ...] = (False,) * 4
    mid_attention: bool = True
    num_groups: int = 32
    act: str = "silu"
    latent_channels: int = 4
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        check_backbone(self)


def sd1_autoencoder(**changes) -> AutoencoderKLConfig:
    """The autoencoder of Stable Diffusion 1 and 2, 83,653,863 parameters."""
    return AutoencoderKLConfig(**changes)


def sd3_autoencoder(**changes) -> AutoencoderKLConfig:
    """The autoencoder of Stable Diffusion 3, with 16 latent channels, 83,819,683 parameters."""
    latents = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    plain = {"quant_conv": False, "post_quant_conv": False, "sample_size": 1024}
    return AutoencoderKLConfig(**{**latents, **plain, **changes})


def flux_autoencoder(**changes) -> AutoencoderKLConfig:
    """The autoencoder of Flux, in the shape of Stable Diffusion 3's."""
    return sd3_autoencoder(**{"scaling_factor": 0.3611, "shift_factor": 0.1159, **changes})


def autoencoder_kl(config: AutoencoderKLConfig) -> Autoencoder:
    """The autoencoder of a configuration as pure functions.

        init(key) -> params
        encode(params, x) -> Posterior, [B, H / f, W / f, latent_channels]
        decode(params, z) -> [B, f h, f w, out_channels] float32

    with f = 2^(levels - 1). For large images see `diffjax.networks.tiling`.

    >>> import jax
    >>> shape = {"block_out_channels": (8, 8), "attention": (False,) * 2}
    >>> config = AutoencoderKLConfig(**shape, up_attention=(False,) * 2, num_groups=4)
    >>> vae = autoencoder_kl(config)
    >>> params = jax.eval_shape(vae.init, jax.random.key(0))
    >>> jax.eval_shape(vae.encode, params, jnp.ones((2, 16, 16, 3))).mean.shape
    (2, 8, 8, 4)
    """
    dtype = config.param_dtype
    init, (encode, decode) = together(
        functional(lambda rngs: _Encode(config, rngs=rngs), param_dtype=dtype),
        functional(lambda rngs: _Decode(config, rngs=rngs), param_dtype=dtype),
    )
    return Autoencoder(init, encode, decode)


class _Encode(nnx.Module):
    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        moments = 2 * config.latent_channels
        self.config = config
        self.encoder = Encoder(config, moments, rngs=rngs)
        self.quant_conv = Conv(moments, moments, (1, 1), rngs=rngs) if config.quant_conv else None

    def __call__(self, x: Array) -> Posterior:
        check_levels(self.config, x, self.config.in_channels)
        h = self.encoder(x.astype(self.config.dtype))
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, logvar = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        # the bounds of the published implementation, within which exp() is finite
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))


class _Decode(nnx.Module):
    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        channels = config.latent_channels
        self.config = config
        self.post_quant_conv = (
            Conv(channels, channels, (1, 1), rngs=rngs) if config.post_quant_conv else None
        )
        self.decoder = Decoder(config, channels, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        z = z.astype(self.config.dtype)
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)
