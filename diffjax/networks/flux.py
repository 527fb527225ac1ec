"""The transformer of Flux: blocks of two streams, then blocks of one, with rotary positions.

    h = tokens of the image, c = tokens of the text
    h, c = joint blocks as in MMDiT;  [c, h] = blocks in which attention and feed-forward network
    run side by side;  y = linear(modulate(norm(h), shift, scale))

It works on tokens, not images: `pack` makes tokens of latents, `unpack` undoes it, and
`grid_ids` numbers their places.
Source: Black Forest Labs, FLUX.1, https://github.com/black-forest-labs/flux; layers side by side:
ViT-22B, arXiv:2302.05442, section 2; rotary positions: RoFormer, arXiv:2104.09864.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.activations import activation
from diffjax.networks.attention import Attention, Rotary, joint_attention, rotary_positions
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Linear
from diffjax.networks.mmdit import EPS, JointBlock, TimeAndText
from diffjax.networks.normalization import layer_norm
from diffjax.networks.transformer import Modulation, modulate


@dataclass(frozen=True)
class FluxConfig:
    """The shape of a Flux transformer; the defaults are those of FLUX.1 [dev].

    Attributes:
      in_channels, out_channels: of a token; out_channels None for as many as go in.
      patch_size: side of the patches that a token of the output makes; 1 where `pack` made them.
      num_layers, num_single_layers: blocks of two streams and of one.
      num_heads, head_dim: of the attention.
      context_dim: features of the text's tokens.
      pooled_dim: features of the summary of the text.
      guidance: whether the network is told the guidance scale that it was distilled for.
      axes_dims: how many features of a head turn with each axis of the positions; head_dim in all.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    in_channels: int = 64
    out_channels: int | None = None
    patch_size: int = 1
    num_layers: int = 19
    num_single_layers: int = 38
    num_heads: int = 24
    head_dim: int = 128
    context_dim: int = 4096
    pooled_dim: int = 768
    guidance: bool = True
    axes_dims: tuple[int, ...] = (16, 56, 56)
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if sum(self.axes_dims) != self.head_dim or any(n % 2 for n in self.axes_dims):
            raise ValueError(
                f"axes_dims {self.axes_dims} must be even and sum to head_dim ({self.head_dim})"
            )

    @property
    def features(self) -> int:
        """Features of a token inside the transformer."""
        return self.num_heads * self.head_dim


def flux_dev(**changes) -> FluxConfig:
    """FLUX.1 [dev], 11,901,408,320 parameters."""
    return FluxConfig(**changes)


def flux_schnell(**changes) -> FluxConfig:
    """FLUX.1 [schnell], without guidance, 11,891,178,560 parameters."""
    return FluxConfig(**{"guidance": False, **changes})


def flux(config: FluxConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, context, pooled, image_ids, text_ids, guidance=None, keys=None)
            -> [B, N, patch_size^2 out_channels] float32

    Arguments of apply:
      x: [B, N, in_channels], tokens of the image.
      t: [B] clock in [0, 1].
      context: [B, L, context_dim], tokens of the text.
      pooled: [B, pooled_dim], a summary of the text.
      image_ids, text_ids: [N, axes] and [L, axes], places of the tokens; the text's are all zero.
      guidance: [B] guidance scale, for a network that is told it.
      keys: nothing here is random.

    >>> shape = {"num_layers": 1, "num_single_layers": 1, "num_heads": 2, "head_dim": 8}
    >>> sizes = {"axes_dims": (2, 2, 4), "context_dim": 6, "pooled_dim": 5, "in_channels": 16}
    >>> init, apply = flux(FluxConfig(**shape, **sizes))
    >>> params, x = jax.eval_shape(init, jax.random.key(0)), pack(jnp.ones((2, 8, 8, 4)))
    >>> text = {"context": jnp.ones((2, 7, 6)), "pooled": jnp.ones((2, 5)), "guidance": jnp.ones(2)}
    >>> ids = {"image_ids": grid_ids(4, 4), "text_ids": jnp.zeros((7, 3))}
    >>> jax.eval_shape(apply, params, x, jnp.ones(2), **text, **ids).shape
    (2, 16, 16)
    """
    return functional(lambda rngs: Flux(config, rngs=rngs), param_dtype=config.param_dtype)


class Flux(nnx.Module):
    """The module behind `flux`; its call is documented there."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        features, dim = config.features, config.head_dim
        out_channels = config.out_channels or config.in_channels
        self.config = config
        self.time_text_embed = TimeAndText(
            features, config.pooled_dim, guidance=config.guidance, rngs=rngs
        )
        self.context_embedder = Linear(config.context_dim, features, rngs=rngs)
        self.x_embedder = Linear(config.in_channels, features, rngs=rngs)
        joint = lambda: JointBlock(features, dim, qk_norm=True, rngs=rngs)
        single = lambda: SingleBlock(features, dim, rngs=rngs)
        self.transformer_blocks = nnx.List([joint() for _ in range(config.num_layers)])
        self.single_transformer_blocks = nnx.List(
            [single() for _ in range(config.num_single_layers)]
        )
        self.norm_out = Modulation(features, 2, rngs=rngs)
        self.proj_out = Linear(features, config.patch_size**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        context: Array,
        pooled: Array,
        image_ids: Array,
        text_ids: Array,
        guidance: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        config, dtype = self.config, self.config.dtype
        self._check(x, image_ids, text_ids, guidance)
        told = None if guidance is None else 1000.0 * guidance
        cond = self.time_text_embed(1000.0 * t, pooled, told).astype(dtype)
        rotary = rotary_positions(jnp.concatenate([text_ids, image_ids]), config.axes_dims)
        h = self.x_embedder(x.astype(dtype))
        context = self.context_embedder(context.astype(dtype))
        keep = jax.checkpoint if config.remat else lambda block: block
        for block in self.transformer_blocks:
            h, context = keep(block)(h, context, cond, rotary)
        length = context.shape[1]
        h = jnp.concatenate([context, h], axis=1)
        for block in self.single_transformer_blocks:
            h = keep(block)(h, cond, rotary)
        scale, shift = self.norm_out(cond)
        h = modulate(layer_norm(h[:, length:], EPS), shift, scale)
        return self.proj_out(h).astype(jnp.float32)

    def _check(self, x: Array, image_ids: Array, text_ids: Array, guidance: Array | None) -> None:
        axes = len(self.config.axes_dims)
        if image_ids.shape != (x.shape[1], axes) or text_ids.shape[1:] != (axes,):
            raise ValueError(
                f"image_ids {image_ids.shape} and text_ids {text_ids.shape} must have one row for "
                f"each of {x.shape[1]} tokens and of the text, and {axes} columns"
            )
        if self.config.guidance != (guidance is not None):
            told = "is told its guidance scale: give" if self.config.guidance else "takes no"
            raise ValueError(f"the network {told} guidance")


class SingleBlock(nnx.Module):
    """Attention and a feed-forward network side by side, behind one norm and one projection."""

    def __init__(self, features: int, head_dim: int, *, rngs: nnx.Rngs):
        self.norm = Modulation(features, 3, rngs=rngs)
        self.proj_mlp = Linear(features, 4 * features, rngs=rngs)
        self.attn = Attention(features, head_dim=head_dim, qk_norm=EPS, projected=False, rngs=rngs)
        self.proj_out = Linear(5 * features, features, rngs=rngs)

    def __call__(self, h: Array, cond: Array, rotary: Rotary) -> Array:
        shift, scale, gate = self.norm(cond)
        normed = modulate(layer_norm(h, EPS), shift, scale)
        hidden = activation("gelu-approximate")(self.proj_mlp(normed))
        (mixed,) = joint_attention([self.attn], [normed], rotary=rotary)
        return h + gate * self.proj_out(jnp.concatenate([mixed, hidden], axis=-1))


def pack(latents: Array) -> Array:
    """Blocks of 2 x 2 latents as tokens: [B, 2 h, 2 w, C] -> [B, h w, 4 C], the channel slowest.

    >>> pack(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
    [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    """
    batch, height, width, channels = latents.shape
    blocks = latents.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 4 * channels)


def unpack(tokens: Array, height: int, width: int) -> Array:
    """Undo `pack`: [B, h w, 4 C] -> [B, 2 h, 2 w, C].

    Args:
      tokens: from `pack` or the network.
      height, width: of the latents, 2 h and 2 w.
    """
    blocks = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(len(tokens), height, width, -1)


def grid_ids(height: int, width: int) -> Array:
    """The places (0, row, column) of height x width tokens, [height width, 3].

    >>> grid_ids(1, 2).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    ids = jnp.stack([jnp.zeros_like(rows), rows, columns], axis=-1)
    return ids.reshape(-1, 3).astype(jnp.float32)
