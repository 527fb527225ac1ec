"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3.

Patches of the image and tokens of the text are two streams with weights of their own, which attend
to each other as one sequence in every block. The norms of both are modulated by an embedding of
the time and of a summary of the text.

Source: Scaling Rectified Flow Transformers, arXiv:2403.03206, section 4; Stable Diffusion 3.5 adds
a second attention of the image to itself in its first blocks (MMDiT-X).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.attention import Attention, Rotary, joint_attention
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter
from diffjax.networks.layers import Linear, require_divisible, sinusoidal_features
from diffjax.networks.normalization import layer_norm
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
EPS = 1e-6


@dataclass(frozen=True)
class MMDiTConfig:
    """The shape of an MMDiT; the defaults are those of Stable Diffusion 3 medium.

    Attributes:
      sample_size: side of the latents on whose grid positions are measured.
      in_channels, out_channels: of the latents; out_channels None for as many as go in.
      patch_size: side of the patches.
      num_layers, num_heads, head_dim: of the transformer.
      context_dim: features of the text's tokens.
      pooled_dim: features of the summary of the text.
      max_positions: side of the table of positions, in patches, from whose middle those of an
        image are cut.
      qk_norm: whether queries and keys have an RMSNorm.
      dual_attention_layers: the blocks in which the image also attends to itself alone.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    patch_size: int = 2
    num_layers: int = 24
    num_heads: int = 24
    head_dim: int = 64
    context_dim: int = 4096
    pooled_dim: int = 2048
    max_positions: int = 192
    qk_norm: bool = False
    dual_attention_layers: tuple[int, ...] = ()
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.features, 4, "num_heads x head_dim", "sine and cosine of two axes")

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.num_heads * self.head_dim


def sd3_medium(**changes) -> MMDiTConfig:
    """Stable Diffusion 3 medium, 2,084,951,104 parameters with its table of positions."""
    return MMDiTConfig(**changes)


def sd3_5_large(**changes) -> MMDiTConfig:
    """Stable Diffusion 3.5 large, 8.1 billion parameters."""
    return MMDiTConfig(**{"num_layers": 38, "num_heads": 38, "qk_norm": True, **changes})


def sd3_5_medium(**changes) -> MMDiTConfig:
    """Stable Diffusion 3.5 medium, 2.5 billion parameters."""
    shape = {"qk_norm": True, "dual_attention_layers": tuple(range(13)), "max_positions": 384}
    return MMDiTConfig(**{**shape, **changes})


def mmdit(config: MMDiTConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, context, pooled, keys=None) -> [B, H, W, out_channels] float32

    Arguments of apply:
      x: [B, H, W, in_channels], sides multiples of patch_size.
      t: [B] clock, in 0 .. 1000.
      context: [B, L, context_dim], tokens of the text.
      pooled: [B, pooled_dim], a summary of the text.
      keys: nothing here is random.

    >>> shape = {"num_layers": 1, "num_heads": 2, "head_dim": 8, "context_dim": 6, "pooled_dim": 5}
    >>> init, apply = mmdit(MMDiTConfig(**shape, in_channels=4, out_channels=4, max_positions=8))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> text = {"context": jnp.ones((2, 7, 6)), "pooled": jnp.ones((2, 5))}
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 4)), jnp.ones(2), **text).shape
    (2, 8, 8, 4)
    """
    return functional(lambda rngs: MMDiT(config, rngs=rngs), param_dtype=config.param_dtype)


class MMDiT(nnx.Module):
    """The module behind `mmdit`; its call is documented there."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        features, patch = config.features, config.patch_size
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.config = config
        self.pos_embed = PositionedPatches(config, rngs=rngs)
        self.time_text_embed = TimeAndText(features, config.pooled_dim, rngs=rngs)
        self.context_embedder = Linear(config.context_dim, features, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [
                JointBlock(
                    features,
                    config.head_dim,
                    qk_norm=config.qk_norm,
                    dual=layer in config.dual_attention_layers,
                    # the text of the last block is not used
                    last=layer == config.num_layers - 1,
                    rngs=rngs,
                )
                for layer in range(config.num_layers)
            ]
        )
        self.norm_out = Modulation(features, 2, rngs=rngs)
        self.proj_out = Linear(features, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self, x: Array, t: Array, *, context: Array, pooled: Array, keys: Array | None = None
    ) -> Array:
        config, dtype = self.config, self.config.dtype
        require_patches(x, config.in_channels, config.patch_size)
        height, width = (n // config.patch_size for n in x.shape[1:3])
        h = self.pos_embed(x.astype(dtype))
        context = self.context_embedder(context.astype(dtype))
        cond = self.time_text_embed(t, pooled).astype(dtype)
        for block in self.transformer_blocks:
            h, context = (jax.checkpoint(block) if config.remat else block)(h, context, cond)
        scale, shift = self.norm_out(cond)
        h = self.proj_out(modulate(layer_norm(h, EPS), shift, scale))
        return unpatchify(h, height, width, config.patch_size).astype(jnp.float32)


class PositionedPatches(nnx.Module):
    """Patches as tokens, with positions from the middle of a table that does not learn."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        side, features = config.max_positions, config.features
        self.proj = PatchEmbedding(config.in_channels, features, config.patch_size, rngs=rngs).proj

        def table(_: Array) -> Array:
            base = config.sample_size // config.patch_size
            return grid_positions(side, side, features, base_size=base).reshape(1, side**2, -1)

        self.pos_embed = parameter(rngs, (1, side**2, features), table)
        self.side = side

    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, tokens, features]."""
        h = self.proj(x)
        batch, height, width, features = h.shape
        if max(height, width) > self.side:
            raise ValueError(
                f"x has {height} x {width} patches; the table of positions has {self.side} on each "
                "side"
            )
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table = lax.stop_gradient(self.pos_embed[...]).reshape(self.side, self.side, features)
        positions = table[top : top + height, left : left + width]
        return (h + positions.astype(h.dtype)).reshape(batch, height * width, features)


class TimeAndText(nnx.Module):
    """The sum of embeddings of the time, a summary of the text and, for Flux, guidance; float32."""

    def __init__(self, features: int, pooled_dim: int, *, guidance: bool = False, rngs: nnx.Rngs):
        embedder = lambda size: FeedForward(size, features, features, act="silu", rngs=rngs)
        self.timestep_embedder = embedder(FREQUENCIES)
        self.guidance_embedder = embedder(FREQUENCIES) if guidance else None
        self.text_embedder = embedder(pooled_dim)

    def __call__(self, t: Array, pooled: Array, guidance: Array | None = None) -> Array:
        waves = lambda clock: sinusoidal_features(
            clock, FREQUENCIES, flip_sin_to_cos=True, freq_shift=0.0
        )
        cond = self.timestep_embedder(waves(t)) + self.text_embedder(pooled.astype(jnp.float32))
        if self.guidance_embedder is None or guidance is None:
            return cond
        return cond + self.guidance_embedder(waves(guidance))


class JointBlock(nnx.Module):
    """A block of two streams, image x and text, that attend to each other.

    Args:
      features, head_dim: of both streams.
      qk_norm: whether queries and keys have an RMSNorm.
      dual: the image attends to itself alone as well.
      last: the text is only attended to, and not carried on.
    """

    def __init__(
        self,
        features: int,
        head_dim: int,
        *,
        qk_norm: bool,
        dual: bool = False,
        last: bool = False,
        rngs: nnx.Rngs,
    ):
        attention = lambda projected: Attention(
            features,
            head_dim=head_dim,
            qk_norm=EPS if qk_norm else None,
            projected=projected,
            rngs=rngs,
        )
        feed_forward = lambda: FeedForward(
            features, 4 * features, act="gelu-approximate", rngs=rngs
        )
        self.norm1 = Modulation(features, 9 if dual else 6, rngs=rngs)
        self.norm1_context = Modulation(features, 2 if last else 6, rngs=rngs)
        self.attn = attention(True)
        self.attn_context = attention(not last)
        self.attn2 = attention(True) if dual else None
        self.ff = feed_forward()
        self.ff_context = None if last else feed_forward()

    def __call__(
        self, x: Array, context: Array, cond: Array, rotary: Rotary | None = None
    ) -> tuple[Array, Array]:
        """x: [B, N, features]; context: [B, L, features]; rotary: of the text, then the image."""
        shift, scale, gate, *rest = self.norm1(cond)
        of_context = self.norm1_context(cond)
        # the last block's two parts are scale and shift, in this order
        order = slice(1, None, -1) if self.ff_context is None else slice(2)
        context_shift, context_scale = of_context[order]
        normed = layer_norm(x, EPS)
        streams = [
            modulate(layer_norm(context, EPS), context_shift, context_scale),
            modulate(normed, shift, scale),
        ]
        mixed, own = joint_attention([self.attn_context, self.attn], streams, rotary=rotary)
        x = x + gate * own
        if self.attn2 is not None:
            shift, scale, gate = rest[3:]
            x = x + gate * self.attn2(modulate(normed, shift, scale))
        x = _feed_forward(self.ff, x, rest[:3])
        if self.ff_context is not None:
            context = context + of_context[2] * mixed
            context = _feed_forward(self.ff_context, context, of_context[3:])
        return x, context


def _feed_forward(ff: FeedForward, x: Array, parts: Sequence[Array]) -> Array:
    shift, scale, gate = parts
    return x + gate * ff(modulate(layer_norm(x, EPS), shift, scale))
