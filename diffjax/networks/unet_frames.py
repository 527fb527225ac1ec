"""Layers that mix the frames of a video, between the layers of a UNet that sees each by itself.

Frames are folded into the batch, [B F, H, W, C]; these layers unfold them.

Source: ModelScope text-to-video, arXiv:2308.06571, section 3.3; AnimateDiff, arXiv:2307.04725,
section 4.2.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.initialization import parameter
from diffjax.networks.layers import Conv, GroupNorm, Linear
from diffjax.networks.unet_attention import block_of_attentions
from diffjax.networks.unet_context import PerLevel

EPS = 1e-5


@dataclass(frozen=True)
class FramesConfig:
    """How a UNet of images becomes one of videos.

    Attributes:
      kind: "convolution" for convolutions over time behind every residual block, and a transformer
        over time behind every one over space; "motion" for a transformer over time, with positions,
        behind every layer.
      num_heads: of the transformers over time, one number or one for each level.
      depth, up_depth: their blocks, as of `ContextConfig`; up_depth None as `depth`.
      mid_depth: blocks of those in the middle; 0 for none.
      max_frames: number of positions.
      first_head_dim: features of the 8 heads of a transformer over time behind the first
        convolution; None for none.
    """

    kind: str = "motion"
    num_heads: PerLevel = 8
    depth: int | tuple[int | tuple[int, ...], ...] = 1
    up_depth: int | tuple[int | tuple[int, ...], ...] | None = None
    mid_depth: int = 1
    max_frames: int = 32
    first_head_dim: int | None = None

    def __post_init__(self):
        if self.kind not in ("convolution", "motion"):
            raise ValueError(f"frames.kind is {self.kind!r}; it must be 'convolution' or 'motion'")


class TemporalTransformer(nnx.Module):
    """x + W_out blocks(W_in norm(x)), over the frames of each position; nothing else is seen.

    Args:
      channels: of input and output.
      num_heads, head_dim: of the blocks; head_dim None to share out the channels.
      depth: number of blocks.
      max_frames: learns and adds positions for as many frames; None for none.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        depth: int,
        num_groups: int | None,
        max_frames: int | None = None,
        remat: bool = False,
        zero: bool,
        rngs: nnx.Rngs,
    ):
        head_dim = channels // num_heads if head_dim is None else head_dim
        inner = num_heads * head_dim

        def block() -> nnx.Module:
            positions = None if max_frames is None else Positions(max_frames, inner, rngs=rngs)
            return block_of_attentions(inner, head_dim=head_dim, pos_embed=positions, rngs=rngs)

        self.norm = GroupNorm(channels, num_groups, eps=1e-6)
        self.proj_in = Linear(channels, inner, rngs=rngs)
        self.transformer_blocks = nnx.List([block() for _ in range(depth)])
        self.proj_out = Linear(inner, channels, zero=zero, rngs=rngs)
        self.remat = remat

    def __call__(self, x: Array, frames: int) -> Array:
        """x: [B frames, H, W, channels]."""
        videos = x.reshape(-1, frames, *x.shape[1:])
        # frames behind the positions, which join the batch
        h = jnp.moveaxis(self.norm(videos), 1, 3)
        last = h.shape
        h = self.proj_in(h.reshape(-1, frames, x.shape[-1]))
        for block in self.transformer_blocks:
            run = lambda h, block=block: block(h)
            h = (jax.checkpoint(run) if self.remat else run)(h)
        return x + jnp.moveaxis(self.proj_out(h).reshape(last), 3, 1).reshape(x.shape)


class Positions(nnx.Module):
    """x + sines and cosines of the position, in pairs, which training leaves as they are.

    Source: Attention Is All You Need, arXiv:1706.03762, section 3.5. pe: [1, length, features].
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        def waves(u: Array) -> Array:
            rates = jnp.exp(jnp.arange(0, features, 2) * (-math.log(10000.0) / features))
            angles = jnp.arange(length)[:, None] * rates
            return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(u.shape)

        self.pe = parameter(rngs, (1, length, features), waves)

    def __call__(self, x: Array) -> Array:
        pe = lax.stop_gradient(self.pe[...]).astype(x.dtype)
        if x.shape[1] > pe.shape[1]:
            raise ValueError(
                f"there are {x.shape[1]} frames and {pe.shape[1]} positions; give fewer frames"
            )
        return x + pe[:, : x.shape[1]]


class TemporalConv(nnx.Module):
    """x + four convolutions over 3 frames, each behind a norm and a SiLU."""

    def __init__(self, channels: int, num_groups: int | None, *, zero: bool, rngs: nnx.Rngs):
        step = lambda zero=False: NormedConv(channels, num_groups, zero=zero, rngs=rngs)
        self.conv1, self.conv2, self.conv3 = step(), step(), step()
        self.conv4 = step(zero)

    def __call__(self, x: Array, frames: int) -> Array:
        """x: [B frames, H, W, channels]."""
        h = x.reshape(-1, frames, *x.shape[1:])
        for step in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = step(h)
        return x + h.reshape(x.shape)


class NormedConv(nnx.Module):
    """conv(SiLU(norm(x))) over time."""

    def __init__(self, channels: int, num_groups: int | None, *, zero: bool, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, num_groups, eps=EPS)
        self.conv = Conv(channels, channels, (3, 1, 1), zero=zero, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(jax.nn.silu(self.norm(x)))
