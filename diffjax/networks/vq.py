"""Autoencoders with a codebook: VQGAN and MoVQ.

    encode: x -> z,    quantize: z -> the nearest of the codebook's vectors,    decode

In MoVQ the norms of the decoder read the quantised z as well.
Source: VQGAN, arXiv:2012.09841, section 3.1; MoVQ, arXiv:2209.09002, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.autoencoder_blocks import (
    Decoder,
    Encoder,
    check_backbone,
    check_levels,
    together,
)
from diffjax.networks.functional import Params, functional
from diffjax.networks.layers import Conv, Embedding


@dataclass(frozen=True)
class VQConfig:
    """The shape of a VQ autoencoder; the defaults are those of latent diffusion's VQ-f4.

    Attributes:
      sample_size: side of the images that it was trained on; a note, every size goes.
      in_channels, out_channels, block_out_channels, layers_per_block, attention, up_attention,
        mid_attention, num_groups, act: see `autoencoder_blocks.Backbone`.
      latent_channels: between encoder and codebook, and between codebook and decoder.
      codebook_size, codebook_dim: number and size of the codebook's vectors; a dimension of None
        is latent_channels.
      spatial_norm: the decoder's norms read the quantised z, as in MoVQ.
      scaling_factor: what makes of z the latents that diffusion runs on; a note for samplers.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 256
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False,) * 3
    up_attention: tuple[bool, ...] = (False,) * 3
    mid_attention: bool = True
    num_groups: int = 32
    act: str = "silu"
    latent_channels: int = 3
    codebook_size: int = 8192
    codebook_dim: int | None = None
    spatial_norm: bool = False
    scaling_factor: float = 0.18215
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        check_backbone(self)

    @property
    def vector_size(self) -> int:
        """The size of the codebook's vectors."""
        return self.latent_channels if self.codebook_dim is None else self.codebook_dim


def movq(**changes) -> VQConfig:
    """The MoVQ of Kandinsky 2, 67,832,967 parameters."""
    shape = {
        "block_out_channels": (128, 256, 256, 512),
        "attention": (False, False, False, True),
        "up_attention": (False, False, False, True),
        "latent_channels": 4,
        "codebook_size": 16384,
        "spatial_norm": True,
    }
    return VQConfig(**{**shape, **changes})


class Codes(NamedTuple):
    """Latents and their nearest vectors in the codebook.

    Attributes:
      z: [B, h, w, codebook_dim] float32, as the encoder made them.
      quantized: the same shape; gradients pass through it to z as if the two were equal.
      indices: [B, h, w] integers, the vectors' places in the codebook.
    """

    z: Array
    quantized: Array
    indices: Array


class VQAutoencoder(NamedTuple):
    """An autoencoder with a codebook, as pure functions.

    Attributes:
      init: `init(key) -> params`.
      encode: `encode(params, x) -> z`.
      quantize: `quantize(params, z) -> Codes`.
      decode: `decode(params, z, *, quantize=True) -> images`.
    """

    init: Callable[..., Params]
    encode: Callable[..., Array]
    quantize: Callable[..., Codes]
    decode: Callable[..., Array]


def vq_autoencoder(config: VQConfig) -> VQAutoencoder:
    """The autoencoder of a configuration as pure functions.

        init(key) -> params
        encode(params, x) -> z, [B, H / f, W / f, codebook_dim] float32
        quantize(params, z) -> Codes
        decode(params, z, *, quantize=True) -> [B, f h, f w, out_channels] float32

    with f = 2^(levels - 1). `decode` replaces z by its nearest vectors unless `quantize` is off.

    >>> import jax
    >>> shape = {"block_out_channels": (8, 8), "attention": (False,) * 2}
    >>> vae = vq_autoencoder(VQConfig(**shape, up_attention=(False,) * 2, num_groups=4))
    >>> params = jax.eval_shape(vae.init, jax.random.key(0))
    >>> jax.eval_shape(vae.decode, params, jnp.ones((2, 8, 8, 3))).shape
    (2, 16, 16, 3)
    """
    dtype = config.param_dtype
    init, (encode, quantize, decode_vectors) = together(
        functional(lambda rngs: _Encode(config, rngs=rngs), param_dtype=dtype),
        functional(lambda rngs: _Quantize(config, rngs=rngs), param_dtype=dtype),
        functional(lambda rngs: _Decode(config, rngs=rngs), param_dtype=dtype),
    )

    def decode(params: Params, z: Array, *, quantize: bool = True) -> Array:
        return decode_vectors(params, nearest(params, z).quantized if quantize else z)

    nearest = quantize
    return VQAutoencoder(init, encode, quantize, decode)


class _Encode(nnx.Module):
    def __init__(self, config: VQConfig, *, rngs: nnx.Rngs):
        channels = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, channels, rngs=rngs)
        self.quant_conv = Conv(channels, config.vector_size, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        check_levels(self.config, x, self.config.in_channels)
        return self.quant_conv(self.encoder(x.astype(self.config.dtype))).astype(jnp.float32)


class _Quantize(nnx.Module):
    def __init__(self, config: VQConfig, *, rngs: nnx.Rngs):
        self.quantize = Embedding(config.codebook_size, config.vector_size, rngs=rngs)

    def __call__(self, z: Array) -> Codes:
        codebook = self.quantize.embedding[...].astype(jnp.float32)
        # |z - e|^2 without |z|^2, which is the same for all e
        distances = jnp.square(codebook).sum(-1) - 2.0 * z @ codebook.T
        indices = distances.argmin(-1)
        vectors = self.quantize(indices).astype(jnp.float32)
        return Codes(z, z + lax.stop_gradient(vectors - z), indices)


class _Decode(nnx.Module):
    def __init__(self, config: VQConfig, *, rngs: nnx.Rngs):
        channels, size = config.latent_channels, config.vector_size
        self.config = config
        self.post_quant_conv = Conv(size, channels, (1, 1), rngs=rngs)
        z_channels = channels if config.spatial_norm else None
        self.decoder = Decoder(config, channels, z_channels=z_channels, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        z = z.astype(self.config.dtype)
        h = self.decoder(self.post_quant_conv(z), z if self.config.spatial_norm else None)
        return h.astype(jnp.float32)
