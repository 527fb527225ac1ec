"""Attention between positions, with learned projections: one module for all networks.

    q = norm(x W_q),   k = norm(c W_k),   v = c W_v;      y = softmax(scale q k^T + bias) v W_o

for each head, where c is x itself or a context. Several streams of tokens with weights of their
own can attend to each other, as one sequence (`joint_attention`).
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.layers import GroupNorm, Linear, SpatialNorm, require_divisible
from diffjax.networks.normalization import RMSNorm

Rotary = tuple[Array, Array]

# added to the logits of what must not be seen: exp() of it is zero, and two of them are finite
MASKED = -1e9


class Attention(nnx.Module):
    """Multi-head attention of all positions of x to each other, or to those of a context.

    Source: Attention Is All You Need, arXiv:1706.03762, section 3.2.2.

    Args:
      features: of x and of the result.
      head_dim: features of each head; None for a single head.
      heads: their number; None for as many as make up `features`.
      context_features: of the context; None for attention of x to itself.
      image_tokens: how many tokens at the end of the context are those of an image, with keys and
        values of their own; what x finds there is added to what it finds in the rest.
        Source: IP-Adapter, arXiv:2308.06721, equation 5.
      bias, out_bias: whether the projections to q, k and v, and the last one, have a bias.
      scale: of the logits; None for 1 / sqrt(head_dim).
      qk_norm: eps of an RMSNorm of the queries and keys of every head; None for none.
        Source: Stable Diffusion 3, arXiv:2403.03206, section 5.3.2.
      num_groups, eps: of a GroupNorm in front; no groups for none.
      z_channels: of the image that a `SpatialNorm` in front reads; None for none.
      residual: add x to the result.
      identity: replace the attention map by the identity, so that every position sees itself
        alone: the worse network of perturbed-attention guidance (arXiv:2403.17377).
      projected: whether there is a last projection.
      zero: start the last projection at zero.
    """

    def __init__(
        self,
        features: int,
        *,
        head_dim: int | None,
        heads: int | None = None,
        context_features: int | None = None,
        image_tokens: int = 0,
        bias: bool = True,
        out_bias: bool = True,
        scale: float | None = None,
        qk_norm: float | None = None,
        num_groups: int = 0,
        eps: float = 1e-6,
        z_channels: int | None = None,
        residual: bool = False,
        identity: bool = False,
        projected: bool = True,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        head_dim = features if head_dim is None else head_dim
        if heads is None:
            require_divisible(features, head_dim, "the features of an attention", "head_dim")
        inner = features if heads is None else heads * head_dim
        context_features = features if context_features is None else context_features
        self.group_norm = GroupNorm(features, num_groups, eps=eps) if num_groups else None
        self.spatial_norm = (
            None if z_channels is None else SpatialNorm(features, z_channels, dims=2, rngs=rngs)
        )
        self.to_q = Linear(features, inner, bias=bias, rngs=rngs)
        self.to_k = Linear(context_features, inner, bias=bias, rngs=rngs)
        self.to_v = Linear(context_features, inner, bias=bias, rngs=rngs)
        if image_tokens:
            self.to_k_ip = Linear(context_features, inner, bias=False, rngs=rngs)
            self.to_v_ip = Linear(context_features, inner, bias=False, rngs=rngs)
        self.image_tokens = image_tokens
        self.norm_q = None if qk_norm is None else RMSNorm(head_dim, eps=qk_norm)
        self.norm_k = None if qk_norm is None else RMSNorm(head_dim, eps=qk_norm)
        if projected:
            last = Linear(inner, features, bias=out_bias, zero=zero, rngs=rngs)
            self.to_out = nnx.List([last])
        self.projected = projected
        self.head_dim = head_dim
        self.scale = scale
        self.residual = residual
        self.identity = identity

    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        bias: Array | None = None,
        z: Array | None = None,
    ) -> Array:
        """Attend.

        Args:
          x: [B, *spatial, features], any number of spatial axes.
          context: [B, S, context_features].
          bias: added to the logits, broadcastable to [B, heads, L, S].
          z: [B, *coarse, z_channels], for the SpatialNorm.
        """
        h = x
        if self.spatial_norm is not None:
            h = self.spatial_norm(h, z)  # type: ignore[arg-type]
        if self.group_norm is not None:
            h = self.group_norm(h)
        image = None
        if self.image_tokens and context is not None:
            context, image = jnp.split(context, [context.shape[1] - self.image_tokens], axis=1)
        q, k, v = self.project(h.reshape(h.shape[0], -1, h.shape[-1]), context)
        h = v if self.identity else operations.attention(q, k, v, bias=bias, scale=self.scale)
        if image is not None:
            k, v = self._heads(self.to_k_ip, image), self._heads(self.to_v_ip, image)
            h = h + operations.attention(q, k, v, scale=self.scale)
        h = self.merge(h).reshape(x.shape)
        return x + h if self.residual else h

    def project(self, x: Array, context: Array | None = None) -> tuple[Array, Array, Array]:
        """The queries [B, L, heads, head_dim], and keys and values [B, S, heads, head_dim]."""
        context = x if context is None else context
        sources = ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        q, k, v = (self._heads(project, tokens) for project, tokens in sources)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return q, k, v

    def _heads(self, project: Linear, tokens: Array) -> Array:
        return project(tokens).reshape(*tokens.shape[:2], -1, self.head_dim)

    def merge(self, mixed: Array) -> Array:
        """[B, L, heads, head_dim] -> [B, L, features], by the last projection if there is one."""
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return self.to_out[0](mixed) if self.projected else mixed


def attention_received(
    q: Array, k: Array, *, bias: Array | None = None, scale: float | None = None
) -> Array:
    """How much attention each position receives from all queries, averaged over the heads.

        received[s] = sum_l mean_heads softmax(scale q k^T + bias)[l, s]

    With as many queries as positions it is 1 on average: what self-attention guidance looks at.
    Source: arXiv:2210.00939, Eq. 13 and Section 4.2.

    Args:
      q: [B, L, heads, head_dim].
      k: [B, S, heads, head_dim].
      bias, scale: as in `Attention`.

    Returns:
      [B, S] float32.

    >>> attention_received(jnp.ones((2, 5, 1, 4)), jnp.ones((2, 5, 1, 4)))[0].round(3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    size = k.shape[1]
    # mixed by the weights, unit vectors are the weights
    units = jnp.broadcast_to(jnp.eye(size)[None, :, None], (*k.shape[:3], size))
    weights = operations.attention(q, k, units, bias=bias, scale=scale)
    return weights.mean(axis=2).sum(axis=1)


def joint_attention(
    attentions: Sequence[Attention], streams: Sequence[Array], *, rotary: Rotary | None = None
) -> list[Array]:
    """Attention of several streams of tokens to each other, each with its own projections.

    Source: Stable Diffusion 3, arXiv:2403.03206, section 4 and figure 2.

    Args:
      attentions: one for each stream, with equal heads.
      streams: [B, L_i, features_i] each.
      rotary: of all positions, in the order of the streams; see `rotary_positions`.

    Returns:
      One array for each stream, in its shape.
    """
    projected = [attention.project(x) for attention, x in zip(attentions, streams)]
    q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*projected))
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    mixed = operations.attention(q, k, v)
    ends = list(itertools.accumulate(x.shape[1] for x in streams))
    parts = jnp.split(mixed, ends[:-1], axis=1)
    return [attention.merge(part) for attention, part in zip(attentions, parts)]


def rotary_positions(ids: Array, features: Sequence[int], *, base: float = 10000.0) -> Rotary:
    """The angles by which `rotate` turns pairs of features, as their cosines and sines.

        angle of pair i of an axis = position on that axis  base^(-2 i / features of that axis)

    Source: RoFormer, arXiv:2104.09864, section 3.2.2; several axes: one after the other.

    Args:
      ids: [L, axes] positions.
      features: how many features of a head belong to each axis, even numbers.

    Returns:
      cosines and sines, [L, sum(features) / 2] float32 each.

    >>> rotary_positions(jnp.zeros((5, 2)), (4, 6))[0].shape
    (5, 5)
    """
    ids = ids.astype(jnp.float32)
    angles = jnp.concatenate(
        [
            ids[:, axis, None] * base ** (-2.0 * jnp.arange(n // 2) / n)
            for axis, n in enumerate(features)
        ],
        axis=-1,
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, rotary: Rotary) -> Array:
    """Turn each pair of neighbouring features by the angle of its position.

    Args:
      x: [B, L, heads, head_dim].
      rotary: from `rotary_positions`.

    >>> rotate(jnp.array([[[[1.0, 2.0]]]]), (jnp.zeros((1, 1)), jnp.ones((1, 1)))).ravel()
    Array([-2.,  1.], dtype=float32)
    """
    cos, sin = (wave[:, None] for wave in rotary)
    wide = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = wide[..., 0], wide[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def causal_bias(length: int) -> Array:
    """The bias [length, length] of attention in which no position sees a later one."""
    return jnp.where(jnp.tri(length, dtype=bool), 0.0, MASKED)


def padding_bias(mask: Array, masked: float = MASKED) -> Array:
    """The bias [B, 1, 1, S] of attention to keys [B, S] that are hidden where the mask is 0."""
    return ((1.0 - mask.astype(jnp.float32)) * masked)[:, None, None]
