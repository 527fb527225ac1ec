"""The diffusion transformer (DiT): images or latents as a sequence of patches.

    h = patches(x) + positions;   c = embedding of t and label
    each block:  h = h + gate1 attn(modulate(norm(h), shift1, scale1))
                 h = h + cross(norm(h), context)                        where there is a context
                 h = h + gate2 ff(modulate(norm(h), shift2, scale2)),   all six read from c
    y = linear(modulate(norm(h), shift, scale)), put back in place

Source: Scalable Diffusion Models with Transformers, arXiv:2212.09748, section 3; attention to a
context: section 3.2 there, placed as in PixArt, arXiv:2310.00426, section 2.3.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import (
    Attention,
    Rotary,
    joint_attention,
    padding_bias,
    rotary_positions,
)
from diffjax.networks.embeddings import drop_labels
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter, standard_normal
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
      num_classes: number of labels; the label num_classes is the null label. None for none.
      cond_drop_prob: probability of the null label in training.
      context_features: of the tokens that every block attends to, a text's for example; None for
        a network without a context.
      positions: of the patches: "sines", added to them; "learned", a table that is added, stretched
        on other grids than that of sample_size; or "rotary", turns of queries and keys, of which
        attention sees the differences alone (RoFormer, arXiv:2104.09864).
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
    num_classes: int | None = 1000
    cond_drop_prob: float = 0.1
    context_features: int | None = None
    positions: Literal["sines", "learned", "rotary"] = "sines"
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
        if self.positions == "rotary":
            require_divisible(self.head_dim, 4, "head_dim", "the pairs of features of two axes")

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
        apply(params, x, t, *, labels=None, context=None, context_mask=None, keys=None)
            -> [B, H, W, out_channels] float32

    Arguments of apply:
      x: [B, H, W, in_channels], sides multiples of patch_size.
      t: [B] clock, integers or floats, as the 0 .. 999 of DDPM.
      labels: [B] integers in 0 .. num_classes; num_classes is the null label. Others give NaN.
      context: [B, S, context_features], tokens, for a network with a context.
      context_mask: [B, S], 0 where tokens must not be seen.
      keys: [B] PRNG keys in training, for the dropping of labels.

    Images are further channels of x: see `diffjax.with_image`.

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
        side = config.sample_size // patch
        self.positions = (
            parameter(rngs, (side, side, features), lambda u: 0.02 * standard_normal(u))
            if config.positions == "learned"
            else None
        )
        blocks = [DiTBlock(config, rngs=rngs) for _ in range(config.num_layers)]
        self.transformer_blocks = nnx.List(blocks)
        self.proj_out_1 = Linear(features, 2 * features, zero=True, rngs=rngs)
        self.proj_out_2 = Linear(features, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        labels: Array | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        config = self.config
        require_patches(x, config.in_channels, config.patch_size)
        _require("labels", labels, "num_classes", config.num_classes)
        _require("context", context, "context_features", config.context_features)
        if keys is not None and labels is not None and config.cond_drop_prob > 0:
            labels = drop_labels(labels, keys, null=config.num_classes, prob=config.cond_drop_prob)
        height, width = (n // config.patch_size for n in x.shape[1:3])
        h, rotary = self._placed(self.pos_embed(x.astype(config.dtype)))
        h = h.reshape(x.shape[0], height * width, -1)
        context = None if context is None else context.astype(h.dtype)
        bias = None if context_mask is None else padding_bias(context_mask)
        waves = sinusoidal_features(t, FREQUENCIES, flip_sin_to_cos=True)
        # one embedding for all, or each block's own; the output shares the first block's
        own = [block.emb for block in self.transformer_blocks if block.emb is not None]
        if self.emb is not None:
            conds = [self.emb(waves, labels)] * config.num_layers
        else:
            conds = [embedding(waves, labels) for embedding in own]
        for block, cond in zip(self.transformer_blocks, conds):
            h = (jax.checkpoint(block) if config.remat else block)(h, cond, rotary, context, bias)
        shift, scale = jnp.split(self.proj_out_1(jax.nn.silu(conds[0]))[:, None], 2, axis=-1)
        h = modulate(layer_norm(h, 1e-6), shift.astype(h.dtype), scale.astype(h.dtype))
        return unpatchify(self.proj_out_2(h), height, width, config.patch_size).astype(jnp.float32)

    def _placed(self, h: Array) -> tuple[Array, Rotary | None]:
        """Patches [B, height, width, features] with their positions, or these for attention."""
        config = self.config
        height, width, features = h.shape[1:]
        if config.positions == "rotary":
            ids = jnp.stack(jnp.indices((height, width)), axis=-1).reshape(-1, 2)
            return h, rotary_positions(ids, (config.head_dim // 2,) * 2)
        if self.positions is not None:
            positions = jax.image.resize(self.positions[...], (height, width, features), "linear")
        else:
            positions = grid_positions(
                height,
                width,
                features,
                base_size=config.sample_size // config.patch_size,
                interpolation_scale=config.interpolation_scale or max(config.sample_size // 64, 1),
            )
        return h + positions.astype(h.dtype), None


def _require(name: str, given: Array | None, field: str, wanted: int | None) -> None:
    """Raise ValueError unless a condition is given where, and only where, the network takes it."""
    if (given is None) != (wanted is None):
        needed = "takes none" if wanted is None else f"needs {name}"
        raise ValueError(
            f"{name} is {'missing' if given is None else 'given'}, but the network {needed}: its "
            f"{field} is {wanted}."
        )


class ClassAndTime(nnx.Module):
    """The sum of the embeddings of time and, where there are labels, label; in float32."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        features, classes = config.features, config.num_classes
        self.timestep_embedder = FeedForward(FREQUENCIES, features, features, act="silu", rngs=rngs)
        self.class_embedder = (
            None if classes is None else Embedding(classes + 1, features, rngs=rngs)
        )

    def __call__(self, waves: Array, labels: Array | None) -> Array:
        time = self.timestep_embedder(waves)
        if self.class_embedder is None or labels is None:
            return time
        return time + self.class_embedder(labels).astype(jnp.float32)


class DiTBlock(nnx.Module):
    """A block whose norms are modulated by the embedding of time and label.

    Attention to a context starts at zero, so that a block still starts as the identity.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        features = config.features
        self.emb = None if config.shared_embedding else ClassAndTime(config, rngs=rngs)
        self.norm1 = Modulation(features, 6, rngs=rngs)
        attention = lambda **settings: Attention(
            features, head_dim=config.head_dim, bias=config.attention_bias, **settings, rngs=rngs
        )
        self.attn1 = attention()
        told = config.context_features
        self.attn2 = None if told is None else attention(context_features=told, zero=True)
        self.norm3 = LayerNorm(features, eps=config.norm_eps, affine=config.norm_affine)
        self.ff = FeedForward(features, 4 * features, act=config.act, rngs=rngs)

    def __call__(
        self,
        h: Array,
        cond: Array,
        rotary: Rotary | None = None,
        context: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        parts = (part.astype(h.dtype) for part in self.norm1(cond))
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        normed = modulate(layer_norm(h, 1e-6), shift1, scale1)
        (seen,) = joint_attention([self.attn1], [normed], rotary=rotary)
        h = h + gate1 * seen
        if self.attn2 is not None:
            h = h + self.attn2(layer_norm(h, 1e-6), context, bias=bias)
        return h + gate2 * self.ff(modulate(self.norm3(h), shift2, scale2))
