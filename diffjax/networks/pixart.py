"""PixArt: a diffusion transformer that attends to a text.

    each block:  h = h + gate1 attn(modulate(norm(h), shift1, scale1));   h = h + cross(h, text)
                 h = h + gate2 ff(modulate(norm(h), shift2, scale2))

The six parts are one embedding of the time for all blocks plus a table of each block, adaLN-single.
Source: PixArt-alpha, arXiv:2310.00426, section 2.3; PixArt-Sigma, arXiv:2403.04692.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention, padding_bias
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Linear, require_divisible, sinusoidal_features
from diffjax.networks.normalization import LayerNorm, layer_norm
from diffjax.networks.transformer import (
    FeedForward,
    Modulation,
    PatchEmbedding,
    grid_positions,
    modulate,
    require_patches,
    unpatchify,
)

FREQUENCIES = 256
# the logits of tokens that the mask hides; a text of which all is hidden is seen as it is
HIDDEN = -10000.0


@dataclass(frozen=True)
class PixArtConfig:
    """The shape of a PixArt transformer; the defaults are those of PixArt-XL/2 for 1024 x 1024.

    Attributes:
      sample_size: side of the latents that it was made for; positions of others are stretched.
      in_channels, out_channels: of the latents; out_channels None for as many as go in.
      patch_size: side of the patches.
      num_layers, num_heads, head_dim: of the transformer.
      caption_channels: features of the text's tokens; None where they need no projection.
      context_dim: features of the tokens that the blocks attend to.
      act: activation of the feed-forward networks.
      attention_bias: whether the projections to q, k and v have a bias.
      norm_eps, norm_affine: of the norms.
      interpolation_scale: by which positions are divided; None for 1 in each 64 of sample_size.
      size_conditions: whether the network is told resolution and aspect ratio; None for networks
        with a sample_size of 128 alone.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 128
    in_channels: int = 4
    out_channels: int | None = 8
    patch_size: int = 2
    num_layers: int = 28
    num_heads: int = 16
    head_dim: int = 72
    caption_channels: int | None = 4096
    context_dim: int = 1152
    act: str = "gelu-approximate"
    attention_bias: bool = True
    norm_eps: float = 1e-6
    norm_affine: bool = False
    interpolation_scale: float | None = None
    size_conditions: bool | None = None
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.features, 4, "num_heads x head_dim", "sine and cosine of two axes")
        if self.told_size:
            require_divisible(self.features, 3, "num_heads x head_dim", "the 3 numbers of a size")
        if self.caption_channels is not None and self.context_dim != self.features:
            raise ValueError(
                f"context_dim is {self.context_dim}; captions are projected to {self.features}, "
                "num_heads x head_dim"
            )

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.num_heads * self.head_dim

    @property
    def told_size(self) -> bool:
        """Whether the network is told resolution and aspect ratio."""
        return self.sample_size == 128 if self.size_conditions is None else self.size_conditions


def pixart_xl_2(**changes) -> PixArtConfig:
    """PixArt-alpha XL/2, 0.61 billion parameters (arXiv:2310.00426, section 3.1)."""
    return PixArtConfig(**changes)


def pixart(config: PixArtConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, context, context_mask=None, resolution=None, aspect_ratio=None,
              keys=None) -> [B, H, W, out_channels] float32

    Arguments of apply:
      x: [B, H, W, in_channels], sides multiples of patch_size.
      t: [B] clock, integers or floats, as the 0 .. 999 of DDPM.
      context: [B, L, caption_channels], tokens of the text.
      context_mask: [B, L], 0 where tokens must not be seen.
      resolution, aspect_ratio: [B, 2] height and width of the image in pixels, and [B, 1] their
        quotient; for networks that are told them.
      keys: nothing here is random.

    >>> shape = {"num_layers": 1, "num_heads": 2, "head_dim": 8, "context_dim": 16}
    >>> init, apply = pixart(PixArtConfig(**shape, sample_size=8, caption_channels=6))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> x, context = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 7, 6))
    >>> jax.eval_shape(apply, params, x, jnp.ones(2), context=context).shape
    (2, 8, 8, 8)
    """
    return functional(lambda rngs: PixArt(config, rngs=rngs), param_dtype=config.param_dtype)


class PixArt(nnx.Module):
    """The module behind `pixart`; its call is documented there."""

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs):
        features, patch = config.features, config.patch_size
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.config = config
        self.pos_embed = PatchEmbedding(config.in_channels, features, patch, rngs=rngs)
        self.emb = TimeAndSize(features, told_size=config.told_size, rngs=rngs)
        self.adaln_single = Modulation(features, 6, rngs=rngs)
        self.caption_projection = (
            None
            if config.caption_channels is None
            else FeedForward(
                config.caption_channels, features, features, act="gelu-approximate", rngs=rngs
            )
        )
        blocks = [PixArtBlock(config, rngs=rngs) for _ in range(config.num_layers)]
        self.transformer_blocks = nnx.List(blocks)
        self.scale_shift_table = _table(2, features, rngs)
        self.proj_out = Linear(features, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        context: Array,
        context_mask: Array | None = None,
        resolution: Array | None = None,
        aspect_ratio: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        config, dtype = self.config, self.config.dtype
        require_patches(x, config.in_channels, config.patch_size)
        height, width = (n // config.patch_size for n in x.shape[1:3])
        positions = grid_positions(
            height,
            width,
            config.features,
            base_size=config.sample_size // config.patch_size,
            interpolation_scale=config.interpolation_scale or max(config.sample_size // 64, 1),
        )
        h = self.pos_embed(x.astype(dtype))
        h = (h + positions.astype(dtype)).reshape(x.shape[0], height * width, -1)
        cond = self.emb(t, resolution, aspect_ratio).astype(dtype)
        parts = self.adaln_single(cond)
        context = context.astype(dtype)
        if self.caption_projection is not None:
            context = self.caption_projection(context)
        bias = None if context_mask is None else padding_bias(context_mask, HIDDEN)
        for block in self.transformer_blocks:
            h = (jax.checkpoint(block) if config.remat else block)(h, parts, context, bias)
        table = self.scale_shift_table[...].astype(dtype)
        shift, scale = (cond[:, None] + row for row in table)
        h = self.proj_out(modulate(layer_norm(h, 1e-6), shift, scale))
        return unpatchify(h, height, width, config.patch_size).astype(jnp.float32)


class TimeAndSize(nnx.Module):
    """The embedding of the time and, where it is told, of resolution and aspect ratio; float32."""

    def __init__(self, features: int, *, told_size: bool, rngs: nnx.Rngs):
        embedder = lambda size: FeedForward(FREQUENCIES, size, size, act="silu", rngs=rngs)
        self.timestep_embedder = embedder(features)
        self.resolution_embedder = embedder(features // 3) if told_size else None
        self.aspect_ratio_embedder = embedder(features // 3) if told_size else None

    def __call__(self, t: Array, resolution: Array | None, aspect_ratio: Array | None) -> Array:
        cond = self.timestep_embedder(_waves(t))
        if self.resolution_embedder is None or self.aspect_ratio_embedder is None:
            return cond
        if resolution is None or aspect_ratio is None:
            raise ValueError("the network is told sizes: give resolution and aspect_ratio")
        sizes = (self.resolution_embedder, resolution), (self.aspect_ratio_embedder, aspect_ratio)
        told = [embed(_waves(s.ravel())).reshape(len(t), -1) for embed, s in sizes]
        return cond + jnp.concatenate(told, axis=-1)


class PixArtBlock(nnx.Module):
    """Attention, attention to the text and a feed-forward network, modulated by the time."""

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs):
        features = config.features
        attention = lambda context_features: Attention(
            features,
            head_dim=config.head_dim,
            context_features=context_features,
            bias=config.attention_bias,
            rngs=rngs,
        )
        norm = lambda: LayerNorm(features, eps=config.norm_eps, affine=config.norm_affine)
        self.scale_shift_table = _table(6, features, rngs)
        self.norm1 = norm()
        self.attn1 = attention(None)
        self.attn2 = attention(config.context_dim)
        self.norm2 = norm()
        self.ff = FeedForward(features, 4 * features, act=config.act, rngs=rngs)

    def __call__(self, h: Array, parts: list[Array], context: Array, bias: Array | None) -> Array:
        table = self.scale_shift_table[...].astype(h.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = (p + row for p, row in zip(parts, table))
        h = h + gate1 * self.attn1(modulate(self.norm1(h), shift1, scale1))
        h = h + self.attn2(h, context, bias=bias)
        return h + gate2 * self.ff(modulate(self.norm2(h), shift2, scale2))


def _waves(numbers: Array) -> Array:
    return sinusoidal_features(numbers, FREQUENCIES, flip_sin_to_cos=True, freq_shift=0.0)


def _table(rows: int, features: int, rngs: nnx.Rngs) -> nnx.Param:
    return parameter(rngs, (rows, features), lambda u: standard_normal(u) / math.sqrt(features))
