"""The parts of transformers: feed-forward networks, blocks, modulation, patches and positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.attention import Attention
from diffjax.networks.layers import Conv, Linear, sinusoidal_features

# names of gated activations -> the activation of the gate
GATED = {"geglu": "gelu", "swiglu": "silu"}


class FeedForward(nnx.Module):
    """Two linear layers with an activation, or a gate, between them.

        y = W2 act(W1 x)                  or, gated,   y = W2 (V x  act(W1 x))

    Source: Attention Is All You Need, arXiv:1706.03762, equation 2; gates: GLU Variants Improve
    Transformer, arXiv:2002.05202, equation 6.

    Args:
      features, hidden, out_features: of x, between the layers, and of the result; by default the
        result is like x.
      act: the name of an activation; "geglu" and "swiglu" are gated, V and W1 in one matrix.
      gate: with a gate, V in a matrix of its own.
      bias: of all layers.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        out_features: int | None = None,
        *,
        act: str,
        gate: bool = False,
        bias: bool = True,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        out_features = features if out_features is None else out_features
        self.joined = act in GATED
        self.linear_1 = Linear(features, hidden * (1 + self.joined), bias=bias, rngs=rngs)
        self.gate = Linear(features, hidden, bias=bias, rngs=rngs) if gate else None
        self.linear_2 = Linear(hidden, out_features, bias=bias, zero=zero, rngs=rngs)
        self.act = activation(GATED.get(act, act))

    def __call__(self, x: Array) -> Array:
        h = self.linear_1(x)
        if self.joined:
            h, gate = jnp.split(h, 2, axis=-1)
            return self.linear_2(h * self.act(gate))
        h = self.act(h)
        return self.linear_2(h if self.gate is None else h * self.gate(x))


class TransformerBlock(nnx.Module):
    """Attention of x to itself, to a context where there is one, and a feed-forward network.

        x = x + attn1(norm1(x));   x = x + attn2(norm2(x), context);   x = x + ff(norm3(x))

    or, with post_norm, x = norm1(x + attn1(x)) and so on.
    Source: Attention Is All You Need, arXiv:1706.03762, section 3.1; norms in front: On Layer
    Normalization in the Transformer Architecture, arXiv:2002.04745.

    Args:
      make_norm: makes one of the norms.
      attn1, attn2, ff: the parts; attn2 None for a block without context.
      only_context: attn1 attends to the context too, and not to x.
      pos_embed: adds positions to what the attentions see; None for none.
    """

    def __init__(
        self,
        make_norm: Callable[[], nnx.Module],
        attn1: Attention,
        ff: FeedForward,
        attn2: Attention | None = None,
        *,
        post_norm: bool = False,
        only_context: bool = False,
        pos_embed: nnx.Module | None = None,
    ):
        self.norm1 = make_norm()
        self.attn1 = attn1
        self.norm2 = None if attn2 is None else make_norm()
        self.attn2 = attn2
        self.norm3 = make_norm()
        self.ff = ff
        self.post_norm = post_norm
        self.only_context = only_context
        self.pos_embed = pos_embed

    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        bias: Array | None = None,
        context_bias: Array | None = None,
    ) -> Array:
        """x: [B, L, features]; context: [B, S, context_features]; biases of the logits."""
        seen = context if self.only_context else None
        place = (lambda h: h) if self.pos_embed is None else self.pos_embed
        x = self._add(x, self.norm1, lambda h: self.attn1(place(h), seen, bias=bias))
        if self.attn2 is not None and self.norm2 is not None:
            cross = self.attn2
            x = self._add(x, self.norm2, lambda h: cross(place(h), context, bias=context_bias))
        return self._add(x, self.norm3, self.ff)

    def _add(self, x: Array, norm: nnx.Module, part: Callable[[Array], Array]) -> Array:
        return norm(x + part(x)) if self.post_norm else x + part(norm(x))


class Modulation(nnx.Module):
    """Shifts, scales and gates of a block's features, read from a conditioning vector.

    Source: DiT, arXiv:2212.09748, section 3.2, adaLN-Zero: all of them start at zero.
    """

    def __init__(self, features: int, parts: int, *, rngs: nnx.Rngs):
        self.linear = Linear(features, parts * features, zero=True, rngs=rngs)
        self.parts = parts

    def __call__(self, cond: Array) -> list[Array]:
        """cond: [B, features] -> `parts` arrays [B, 1, features]."""
        return jnp.split(self.linear(jax.nn.silu(cond))[:, None], self.parts, axis=-1)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class PatchEmbedding(nnx.Module):
    """A linear map of each patch of an image to a token."""

    def __init__(self, channels: int, features: int, patch_size: int, *, rngs: nnx.Rngs):
        self.proj = Conv(
            channels,
            features,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H / patch_size, W / patch_size, features]."""
        return self.proj(x)


def unpatchify(tokens: Array, height: int, width: int, patch_size: int) -> Array:
    """[B, height width, patch_size^2 C] -> [B, height patch_size, width patch_size, C]."""
    grid = tokens.reshape(tokens.shape[0], height, width, -1)
    return operations.depth_to_space(grid, patch_size)


def grid_positions(
    height: int, width: int, features: int, *, base_size: int, interpolation_scale: float = 1.0
) -> Array:
    """Sines and cosines of the positions on a grid, [height, width, features] float32.

    The first half of the features is that of the column j, the second that of the row i, both
    stretched so that a grid of any size covers that of base_size:

        sinusoidal_features(j base_size / width / interpolation_scale, features / 2), ...

    Source: DiT, arXiv:2212.09748, section 3.2; stretched: PixArt, arXiv:2310.00426, section 2.4.

    >>> grid_positions(2, 3, 8, base_size=4).shape
    (2, 3, 8)
    """

    def along(length: int) -> Array:
        positions = jnp.arange(length) / (length / base_size) / interpolation_scale
        return sinusoidal_features(positions, features // 2, freq_shift=0.0)

    columns = jnp.broadcast_to(along(width)[None], (height, width, features // 2))
    rows = jnp.broadcast_to(along(height)[:, None], (height, width, features // 2))
    return jnp.concatenate([columns, rows], axis=-1)


def require_patches(x: Array, channels: int, patch_size: int) -> None:
    """Raise ValueError unless x is a batch of images that patches can cover."""
    if x.ndim != 4 or x.shape[-1] != channels or any(n % patch_size for n in x.shape[1:3]):
        raise ValueError(
            f"x is {x.shape}; the network takes [B, height, width, {channels}] with sides that are "
            f"multiples of patch_size ({patch_size})"
        )
