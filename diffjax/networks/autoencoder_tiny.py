"""The tiny autoencoder: a distilled stand-in for a latent diffusion model's autoencoder.

    encoder: a convolution;  stages of residual blocks, each but the first halving;  a convolution
    decoder: a convolution;  stages of residual blocks, each but the last doubling;  a convolution

It has no norms and no attention, and makes previews of latents within milliseconds.
Source: Ollin Boer Bohan, TAESD, https://github.com/madebyollin/taesd.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.autoencoder_blocks import Autoencoder, together
from diffjax.networks.functional import functional
from diffjax.networks.layers import Conv


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The shape of the autoencoder; the defaults are those of TAESD.

    Attributes:
      in_channels, out_channels: of the images.
      encoder_channels, decoder_channels: of each stage, all equal.
      encoder_blocks, decoder_blocks: residual blocks of each stage.
      latent_channels: of z.
      act: activation inside the blocks.
      upsampling: the factor by which a stage of the decoder enlarges.
      latent_magnitude, latent_shift: z / (2 latent_magnitude) + latent_shift is in [0, 1]; notes
        for storing latents as images.
      scaling_factor, shift_factor: what makes of z the latents that diffusion runs on; notes.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    act: str = "relu"
    upsampling: int = 2
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for part in ("encoder", "decoder"):
            channels, blocks = getattr(self, f"{part}_channels"), getattr(self, f"{part}_blocks")
            if len(channels) != len(blocks) or len(set(channels)) != 1:
                raise ValueError(
                    f"{part}_channels {channels} must be equal numbers, one for each entry of "
                    f"{part}_blocks {blocks}"
                )


def taesd(**changes) -> AutoencoderTinyConfig:
    """TAESD, for the latents of Stable Diffusion, 2,445,063 parameters."""
    return AutoencoderTinyConfig(**changes)


def autoencoder_tiny(config: AutoencoderTinyConfig) -> Autoencoder:
    """The autoencoder of a configuration as pure functions.

        init(key) -> params
        encode(params, x) -> z, [B, H / f, W / f, latent_channels] float32
        decode(params, z) -> [B, f h, f w, out_channels] float32

    with f = 2^(stages - 1), or upsampling^(stages - 1) on the way back.

    >>> vae = autoencoder_tiny(taesd(encoder_channels=(8,) * 4))
    >>> params = jax.eval_shape(vae.init, jax.random.key(0))
    >>> jax.eval_shape(vae.encode, params, jnp.ones((2, 64, 64, 3))).shape
    (2, 8, 8, 4)
    """
    dtype = config.param_dtype
    init, (encode, decode) = together(
        functional(lambda rngs: _Encode(config, rngs=rngs), param_dtype=dtype),
        functional(lambda rngs: _Decode(config, rngs=rngs), param_dtype=dtype),
    )
    return Autoencoder(init, encode, decode)


class _Encode(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs):
        width = config.encoder_channels[0]
        layers: list[nnx.Module] = [Conv(config.in_channels, width, (3, 3), rngs=rngs)]
        for stage, blocks in enumerate(config.encoder_blocks):
            if stage > 0:
                halve = Conv(width, width, (3, 3), strides=2, padding=1, bias=False, rngs=rngs)
                layers.append(halve)
            layers += [_Block(width, config.act, rngs=rngs) for _ in range(blocks)]
        layers.append(Conv(width, config.latent_channels, (3, 3), rngs=rngs))
        self.encoder = _Sequence(layers)
        self.config = config

    def __call__(self, x: Array) -> Array:
        z = self.encoder((x.astype(self.config.dtype) + 1) / 2)
        return z.astype(jnp.float32)


class _Decode(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs):
        width = config.decoder_channels[0]
        enlarge = partial(operations.upsample_nearest, size=config.upsampling)
        layers: list[nnx.Module] = [
            Conv(config.latent_channels, width, (3, 3), rngs=rngs),
            _Apply(activation(config.act)),
        ]
        for blocks in config.decoder_blocks[:-1]:
            layers += [_Block(width, config.act, rngs=rngs) for _ in range(blocks)]
            layers += [_Apply(enlarge), Conv(width, width, (3, 3), bias=False, rngs=rngs)]
        layers += [_Block(width, config.act, rngs=rngs) for _ in range(config.decoder_blocks[-1])]
        layers.append(Conv(width, config.out_channels, (3, 3), rngs=rngs))
        self.decoder = _Sequence(layers)
        self.config = config

    def __call__(self, z: Array) -> Array:
        # latents beyond three standard deviations are squeezed
        z = 3 * jnp.tanh(z.astype(self.config.dtype) / 3)
        return (2 * self.decoder(z) - 1).astype(jnp.float32)


class _Sequence(nnx.Module):
    """Layers one after the other, numbered as in the checkpoints."""

    def __init__(self, layers: list[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class _Apply(nnx.Module):
    """A layer without parameters, which counts in the numbers of the others."""

    def __init__(self, function: Callable[[Array], Array]):
        self.function = function

    def __call__(self, x: Array) -> Array:
        return self.function(x)


class _Block(nnx.Module):
    """ReLU(x + three convolutions with activations between them)."""

    def __init__(self, channels: int, act: str, *, rngs: nnx.Rngs):
        conv = lambda: Conv(channels, channels, (3, 3), rngs=rngs)
        between = lambda: _Apply(activation(act))
        self.conv = nnx.List([conv(), between(), conv(), between(), conv()])

    def __call__(self, x: Array) -> Array:
        h = x
        for layer in self.conv:
            h = layer(h)
        return jax.nn.relu(x + h)
