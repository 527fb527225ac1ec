"""The attentions of UNets: of positions to each other, to the tokens of a context, or to both.

All are called as `attention(x, context, bias)`; those without a context leave it alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.attention import Attention, attention_received
from diffjax.networks.layers import Conv, GroupNorm, Linear, require_heads
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock

EPS = 1e-5


class SelfAttention(nnx.Module):
    """scale (x + attention over all positions), behind a GroupNorm, with learned projections.

    With a context its tokens are further positions to be seen, by keys and values of their own.
    Source: DDPM, arXiv:2006.11239, appendix B; heads: ADM, arXiv:2105.05233, section 3.1; context:
    GLIDE, arXiv:2112.10741, section 2.3 and Imagen, arXiv:2205.11487, section 2.3.

    Args:
      channels: of input and output.
      head_dim: channels of each head, of which there are as many as fit; None for a single head.
      num_groups: of the GroupNorm in front, see there; 0 for none.
      residual_scale: factor on the sum.
      identity: replace the attention map by the identity, so that every position sees itself
        alone: the worse network of perturbed-attention guidance (arXiv:2403.17377).
      context_features: of the tokens of a context; None for none.
      context_norm: in front of their projections, "layer" or "group" (of 32 groups); None for none.
      only_context: see the tokens alone.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None = None,
        num_groups: int | None,
        eps: float,
        residual_scale: float = 1.0,
        identity: bool = False,
        context_features: int | None = None,
        context_norm: str | None = None,
        only_context: bool = False,
        zero: bool,
        rngs: nnx.Rngs,
    ):
        self.head_dim = channels if head_dim is None else head_dim
        require_heads(channels, self.head_dim)
        inner = channels // self.head_dim * self.head_dim
        self.residual_scale = residual_scale
        self.identity = identity
        self.normalised = num_groups != 0
        if self.normalised:
            self.group_norm = GroupNorm(channels, num_groups, eps=eps)
        self.to_q = Linear(channels, inner, rngs=rngs)
        self.to_k = None if only_context else Linear(channels, inner, rngs=rngs)
        self.to_v = None if only_context else Linear(channels, inner, rngs=rngs)
        if context_features is not None:
            self.norm_cross = _context_norm(context_norm, context_features)
            self.add_k_proj = Linear(context_features, inner, rngs=rngs)
            self.add_v_proj = Linear(context_features, inner, rngs=rngs)
        self.sees_context = context_features is not None
        self.to_out = nnx.List([Linear(inner, channels, zero=zero, rngs=rngs)])

    def __call__(self, x: Array, context: Array | None = None, bias: Array | None = None) -> Array:
        """x: [B, *spatial, channels]; context: [B, S, context_features]; bias: [B, 1, 1, S]."""
        h = self.group_norm(x) if self.normalised else x
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        seen = []
        if self.sees_context and context is not None:
            tokens = context if self.norm_cross is None else self.norm_cross(context)
            seen += [(self._heads(self.add_k_proj, tokens), self._heads(self.add_v_proj, tokens))]
        if self.to_k is not None and self.to_v is not None:
            seen += [(self._heads(self.to_k, h), self._heads(self.to_v, h))]
        if self.identity and self.to_v is not None:
            mixed = seen[-1][1]
        else:
            mixed = self._mix(h, seen, bias if self.sees_context else None)
        mixed = mixed.reshape(*h.shape[:2], -1)
        return (x + self.to_out[0](mixed).reshape(x.shape)) * self.residual_scale

    def attention_map(self, x: Array) -> Array:
        """The attention that positions receive from each other, [B, *spatial]; 1 on average."""
        h = self.group_norm(x) if self.normalised else x
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        if self.to_k is None:
            raise ValueError("these positions attend to a context alone, not to each other")
        received = attention_received(self._heads(self.to_q, h), self._heads(self.to_k, h))
        return received.reshape(x.shape[:-1])

    def _mix(self, h: Array, seen: list[tuple[Array, Array]], bias: Array | None) -> Array:
        k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*seen))
        if bias is not None:
            # the tokens come first; positions are never hidden
            widths = [(0, 0)] * 3 + [(0, k.shape[1] - bias.shape[-1])]
            bias = jnp.pad(bias, widths)
        return operations.attention(self._heads(self.to_q, h), k, v, bias=bias)

    def _heads(self, project: Linear, tokens: Array) -> Array:
        return project(tokens).reshape(*tokens.shape[:2], -1, self.head_dim)


class SpatialTransformer(nnx.Module):
    """x + W_out blocks(W_in norm(x)): transformer blocks over all positions, and a context.

    Source: latent diffusion, arXiv:2112.10752, section 3.3 and appendix E.2.1.

    Args:
      channels: of input and output.
      num_heads: of the blocks, which share out the channels.
      depth: number of blocks.
      context_features: of the tokens of the context.
      num_groups: of the GroupNorm in front.
      linear: whether W_in and W_out are linear layers, and not 1-wide convolutions.
      image_tokens: at the end of the context, see `Attention`.
      only_context: the first attention of each block sees the context too.
      identity: replace the first attention's maps by the identity, as in `SelfAttention`.
      remat: recompute each block in the backward pass.
      zero: start W_out at zero.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        depth: int,
        context_features: int,
        num_groups: int | None,
        linear: bool,
        dims: int,
        image_tokens: int = 0,
        only_context: bool = False,
        identity: bool = False,
        remat: bool = False,
        zero: bool,
        rngs: nnx.Rngs,
    ):
        if num_heads > channels:
            raise ValueError(f"num_heads is {num_heads}, of a transformer of {channels} channels")
        # channels that the heads cannot share out are left to the projections
        inner = channels // num_heads * num_heads

        def projection(inputs: int, outputs: int, **options) -> nnx.Module:
            if linear:
                return Linear(inputs, outputs, **options, rngs=rngs)
            return Conv(inputs, outputs, (1,) * dims, **options, rngs=rngs)

        def block() -> TransformerBlock:
            return block_of_attentions(
                inner,
                head_dim=channels // num_heads,
                context_features=context_features,
                image_tokens=image_tokens,
                only_context=only_context,
                identity=identity,
                rngs=rngs,
            )

        # this eps, whatever the other norms of the network have
        self.norm = GroupNorm(channels, num_groups, eps=1e-6)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nnx.List([block() for _ in range(depth)])
        self.proj_out = projection(inner, channels, zero=zero)
        self.remat = remat

    def __call__(self, x: Array, context: Array | None = None, bias: Array | None = None) -> Array:
        """x: [B, *spatial, channels]; context: [B, S, context_features]; bias: [B, 1, 1, S]."""
        h = self.proj_in(self.norm(x))
        shape = h.shape
        h = h.reshape(x.shape[0], -1, shape[-1])
        for block in self.transformer_blocks:
            run = lambda h, context, bias, block=block: block(h, context, context_bias=bias)
            h = (jax.checkpoint(run) if self.remat else run)(h, context, bias)
        return x + self.proj_out(h.reshape(shape))

    def attention_map(self, x: Array) -> Array:
        """The attention that positions receive from each other, [B, *spatial]; 1 on average.

        It is that of the first block.
        """
        h = self.proj_in(self.norm(x))
        block = self.transformer_blocks[0]
        if block.only_context:
            raise ValueError("these positions attend to a context alone, not to each other")
        q, k, _ = block.attn1.project(block.norm1(h.reshape(x.shape[0], -1, h.shape[-1])))
        return attention_received(q, k, scale=block.attn1.scale).reshape(x.shape[:-1])


def block_of_attentions(
    features: int,
    *,
    head_dim: int,
    context_features: int | None = None,
    image_tokens: int = 0,
    only_context: bool = False,
    identity: bool = False,
    pos_embed: nnx.Module | None = None,
    rngs: nnx.Rngs,
) -> TransformerBlock:
    """A block of self-attention, attention to a context or again to itself, and a gated network."""

    def attention(context: int | None, **options) -> Attention:
        return Attention(
            features,
            head_dim=head_dim,
            context_features=context,
            bias=False,
            **options,
            rngs=rngs,
        )

    return TransformerBlock(
        lambda: LayerNorm(features, eps=EPS),
        attention(context_features if only_context else None, identity=identity),
        FeedForward(features, 4 * features, act="geglu", rngs=rngs),
        attention(context_features, image_tokens=image_tokens),
        only_context=only_context,
        pos_embed=pos_embed,
    )


def _context_norm(kind: str | None, features: int) -> nnx.Module | None:
    if kind == "layer":
        return LayerNorm(features, eps=EPS)
    return GroupNorm(features, 32, eps=EPS) if kind == "group" else None
