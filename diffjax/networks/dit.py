"""The diffusion transformer (DiT): class-conditional images or latents as a sequence of patches.

    h = patches(x) + positions;   c = embedding of t and label
    each block:  h = h + gate1 attn(modulate(norm(h), shift1, scale1))
                 h = h + gate2 ff(modulate(norm(h), shift2, scale2)),   all six read from c
    y = linear(modulate(norm(h), shift, scale)), put back in place

Source: Scalable Diffusion Models with Transformers, arXiv:2212.09748, section 3.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention
from diffjax.networks.embeddings import drop_labels
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Embedding, Linear, require_divisible, sinusoidal_features
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


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT; the defaults are DiT-XL/2's for 256 x 256 images.

    Attributes:
      sample_size: side of the latents that it was made for, on whose grid positions are measured;
        others are stretched to it.
      in_channels, out_channels: of the latents; out_channels None for as many as go in.
      patch_size: side of the patches.
      num_layers, num_heads, head_dim: of the transformer.
      num_classes: number of labels; the label num_classes is the null label.
      cond_drop_prob: probability of the null label in training.
      act: activation of the feed-forward networks.
      attention_bias: whether the projections to q, k and v have a bias.
      norm_eps, norm_affine: of the norms in front of the feed-forward networks.
      interpolation_scale: by which positions are divided; None for 1 in each 64 of sample_size.
      shared_embedding: one embedding of time and label for all blocks, as in the paper; off, every
        block has its own, as in diffusers' files.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int | None = 8
    patch_size: int = 2
    num_layers: int = 28
    num_heads: int = 16
    head_dim: int = 72
    num_classes: int = 1000
    cond_drop_prob: float = 0.1
    act: str = "gelu-approximate"
    attention_bias: bool = True
    norm_eps: float = 1e-6
    norm_affine: bool = False
    interpolation_scale: float | None = 1.0
    shared_embedding: bool = True
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.features, 4, "num_heads x head_dim", "sine and cosine of two axes")

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.num_heads * self.head_dim


def dit_xl_2(**changes) -> DiTConfig:
    """DiT-XL/2, 675 million parameters (arXiv:2212.09748, table 4)."""
    return DiTConfig(**changes)


def dit_s_2(**changes) -> DiTConfig:
    """DiT-S/2, 33 million parameters (arXiv:2212.09748, table 4)."""
    return DiTConfig(**{"num_layers": 12, "num_heads": 6, "head_dim": 64, **changes})


def dit(config: DiTConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, labels, keys=None) -> [B, H, W, out_channels] float32

    Arguments of apply:
      x: [B, H, W, in_channels], sides multiples of patch_size.
      t: [B] clock, integers or floats, as the 0 .. 999 of DDPM.
      labels: [B] integers in 0 .. num_classes; num_classes is the null label. Others give NaN.
      keys: [B] PRNG keys in training, for the dropping of labels.

    >>> init, apply = dit(DiTConfig(num_layers=1, num_heads=2, head_dim=8))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> x, labels = jnp.ones((2, 8, 8, 4)), jnp.array([3, 1000])
    >>> jax.eval_shape(apply, params, x, jnp.ones(2), labels=labels).shape
    (2, 8, 8, 8)
    """
    return functional(lambda rngs: DiT(config, rngs=rngs), param_dtype=config.param_dtype)


class DiT(nnx.Module):
    """The module behind `dit`; its call is documented there."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        features, patch = config.features, config.patch_size
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.config = config
        self.pos_embed = PatchEmbedding(config.in_channels, features, patch, rngs=rngs)
        self.emb = ClassAndTime(config, rngs=rngs) if config.shared_embedding else None
        blocks = [DiTBlock(config, rngs=rngs) for _ in range(config.num_layers)]
        self.transformer_blocks = nnx.List(blocks)
        self.proj_out_1 = Linear(features, 2 * features, zero=True, rngs=rngs)
        self.proj_out_2 = Linear(features, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(self, x: Array, t: Array, *, labels: Array, keys: Array | None = None) -> Array:
        config = self.config
        require_patches(x, config.in_channels, config.patch_size)
        if keys is not None and config.cond_drop_prob > 0:
            labels = drop_labels(labels, keys, null=config.num_classes, prob=config.cond_drop_prob)
        height, width = (n // config.patch_size for n in x.shape[1:3])
        h = self.pos_embed(x.astype(config.dtype))
        positions = grid_positions(
            height,
            width,
            config.features,
            base_size=config.sample_size // config.patch_size,
            interpolation_scale=config.interpolation_scale or max(config.sample_size // 64, 1),
        )
        h = (h + positions.astype(h.dtype)).reshape(x.shape[0], height * width, -1)
        waves = sinusoidal_features(t, FREQUENCIES, flip_sin_to_cos=True)
        # one embedding for all, or each block's own; the output shares the first block's
        own = [block.emb for block in self.transformer_blocks if block.emb is not None]
        if self.emb is not None:
            conds = [self.emb(waves, labels)] * config.num_layers
        else:
            conds = [embedding(waves, labels) for embedding in own]
        for block, cond in zip(self.transformer_blocks, conds):
            h = (jax.checkpoint(block) if config.remat else block)(h, cond)
        shift, scale = jnp.split(self.proj_out_1(jax.nn.silu(conds[0]))[:, None], 2, axis=-1)
        h = modulate(layer_norm(h, 1e-6), shift.astype(h.dtype), scale.astype(h.dtype))
        return unpatchify(self.proj_out_2(h), height, width, config.patch_size).astype(jnp.float32)


class ClassAndTime(nnx.Module):
    """The sum of the embeddings of label and time, in float32."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        features = config.features
        self.timestep_embedder = FeedForward(FREQUENCIES, features, features, act="silu", rngs=rngs)
        self.class_embedder = Embedding(config.num_classes + 1, features, rngs=rngs)

    def __call__(self, waves: Array, labels: Array) -> Array:
        return self.timestep_embedder(waves) + self.class_embedder(labels).astype(jnp.float32)


class DiTBlock(nnx.Module):
    """A block whose norms are modulated by the embedding of time and label."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        features = config.features
        self.emb = None if config.shared_embedding else ClassAndTime(config, rngs=rngs)
        self.norm1 = Modulation(features, 6, rngs=rngs)
        self.attn1 = Attention(
            features,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            rngs=rngs,
        )
        self.norm3 = LayerNorm(features, eps=config.norm_eps, affine=config.norm_affine)
        self.ff = FeedForward(features, 4 * features, act=config.act, rngs=rngs)

    def __call__(self, h: Array, cond: Array) -> Array:
        parts = (part.astype(h.dtype) for part in self.norm1(cond))
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = h + gate1 * self.attn1(modulate(layer_norm(h, 1e-6), shift1, scale1))
        return h + gate2 * self.ff(modulate(self.norm3(h), shift2, scale2))
