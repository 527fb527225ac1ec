"""The blocks of a UNet: one level on the way down, the middle, one level on the way up.

Each takes `keys`, an iterator over one [B] array of PRNG keys for each residual block in the order
of computation, or over None where nothing is random.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.layers import Downsample, ResidualBlock, SelfAttention, Upsample, halve
from diffjax.networks.unet_config import UNetConfig

Keys = Iterator[Array | None]


class DownBlock(nnx.Module):
    """The residual blocks of one level on the way down, with attention, and the halving."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        inputs = [channels[max(level - 1, 0)]] + [channels[level]] * (config.layers_per_block - 1)
        attention = config.attention[level]
        self.resnets = _residual_blocks(config, inputs, channels[level], rngs)
        self.attentions = _attentions(config, len(inputs) * attention, channels[level], rngs)
        self.kind = _at_level(config.downsample, level) if level + 1 < len(channels) else None
        self.downsamplers = nnx.List(self._downsamplers(config, channels[level], rngs))
        self.remat = config.remat

    def _downsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            dims, padding = config.spatial_dims, config.downsample_padding
            return [Downsample(channels, dims=dims, padding=padding, rngs=rngs)]
        if self.kind == "resnet":
            return [_residual_block(config, channels, channels, rngs, resize="down")]
        return []

    def __call__(self, h: Array, temb: Array, keys: Keys) -> tuple[Array, list[Array]]:
        kept = []
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if self.attentions else None
            h = _layer(resnet, attention, self.remat)(h, temb, next(keys))
            kept.append(h)
        if self.kind is None:
            return h, kept
        if self.kind == "conv":
            h = self.downsamplers[0](h)
        elif self.kind == "resnet":
            h = _layer(self.downsamplers[0], None, self.remat)(h, temb, next(keys))
        else:
            h = halve(h)
        return h, [*kept, h]


class MidBlock(nnx.Module):
    """A residual block, attention, and another residual block at the coarsest level."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        groups = config.mid_attention_groups
        groups = config.num_groups if groups is None else groups
        self.resnets = _residual_blocks(config, [channels, channels], channels, rngs)
        self.attentions = _attentions(config, int(config.mid_attention), channels, rngs, groups)
        self.remat = config.remat

    def __call__(self, h: Array, temb: Array, keys: Keys) -> Array:
        attention = self.attentions[0] if self.attentions else None
        h = _layer(self.resnets[0], attention, self.remat)(h, temb, next(keys))
        return _layer(self.resnets[1], None, self.remat)(h, temb, next(keys))


class UpBlock(nnx.Module):
    """The residual blocks of one level on the way up, each joined with a kept output."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        width = channels[level]
        below, above = channels[min(level + 1, len(channels) - 1)], channels[max(level - 1, 0)]
        skips = [width] * config.layers_per_block + [above]
        hidden = [below] + [width] * config.layers_per_block
        inputs = [h + skip for h, skip in zip(hidden, skips)]
        up_attention = config.attention if config.up_attention is None else config.up_attention
        attention = up_attention[level]
        self.resnets = _residual_blocks(config, inputs, width, rngs)
        self.attentions = _attentions(config, len(inputs) * attention, width, rngs)
        self.kind = _at_level(config.upsample, level) if level > 0 else None
        self.upsamplers = nnx.List(self._upsamplers(config, width, rngs))
        self.remat = config.remat

    def _upsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            return [Upsample(channels, dims=config.spatial_dims, rngs=rngs)]
        if self.kind == "resnet":
            return [_residual_block(config, channels, channels, rngs, resize="up")]
        return []

    def __call__(
        self,
        h: Array,
        skips: Sequence[Array],
        temb: Array,
        keys: Keys,
        size: Sequence[int],
    ) -> Array:
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if self.attentions else None
            h = jnp.concatenate([h, skips[-1 - index]], axis=-1)
            h = _layer(resnet, attention, self.remat)(h, temb, next(keys))
        if self.kind is None:
            return h
        if self.kind == "conv":
            return self.upsamplers[0](h, size)
        if self.kind == "resnet":
            layer = _layer(self.upsamplers[0], None, self.remat, size)
            return layer(h, temb, next(keys))
        return operations.upsample_nearest(h, size)


def _layer(
    resnet: ResidualBlock, attention: SelfAttention | None, remat: bool, size: Sequence[int] = ()
) -> Callable[[Array, Array, Array | None], Array]:
    """A residual block and the attention behind it, rematerialised as one if asked."""

    def run(h: Array, temb: Array, keys: Array | None) -> Array:
        h = resnet(h, temb, keys, size)
        return h if attention is None else attention(h)

    return jax.checkpoint(run) if remat else run


def _residual_block(
    config: UNetConfig, inputs: int, outputs: int, rngs: nnx.Rngs, resize: str | None = None
) -> ResidualBlock:
    return ResidualBlock(
        inputs,
        outputs,
        config.time_embedding_features,
        dims=config.spatial_dims,
        num_groups=config.num_groups,
        eps=config.norm_eps,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        resize=resize,
        zero=config.zero_init,
        rngs=rngs,
    )


def _residual_blocks(
    config: UNetConfig, inputs: Sequence[int], outputs: int, rngs: nnx.Rngs
) -> nnx.List:
    return nnx.List([_residual_block(config, channels, outputs, rngs) for channels in inputs])


def _attentions(
    config: UNetConfig, count: int, channels: int, rngs: nnx.Rngs, num_groups: int | None = None
) -> nnx.List:
    """`count` self-attentions; num_groups None takes the config's."""
    make = lambda: SelfAttention(
        channels,
        head_dim=config.head_dim,
        num_groups=config.num_groups if num_groups is None else num_groups,
        eps=config.norm_eps,
        zero=config.zero_init,
        rngs=rngs,
    )
    return nnx.List([make() for _ in range(count)])


def _at_level(kind: str | tuple[str, ...], level: int) -> str:
    return kind if isinstance(kind, str) else kind[level]
