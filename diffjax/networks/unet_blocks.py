"""The blocks of a UNet: one level on the way down, the middle, one level on the way up.

Each takes `keys`, an iterator over one [B] array of PRNG keys for each residual block in the order
of computation, or over None where nothing is random.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    enlarge,
    halve,
)
from diffjax.networks.pyramids import InputPyramid, OutputPyramid
from diffjax.networks.unet_config import INSIDE, UNetConfig

Keys = Iterator[Array | None]


class DownBlock(nnx.Module):
    """The residual blocks of one level on the way down, with attention, and the halving."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        width, last = config.block_out_channels[level], len(config.block_out_channels) - 1
        inputs = [config.entering_channels(level)] + [width] * (config.layers_per_block - 1)
        self.resnets = _residual_blocks(config, inputs, width, rngs)
        self.attentions = _attentions(config, len(inputs) * config.attention[level], width, rngs)
        self.kind = _at_level(config.downsample, level) if level < last else None
        self.downsamplers = nnx.List(self._downsamplers(config, width, rngs))
        joins = config.progressive_input != "none" and self.kind is not None
        fir = _filter(config, self.kind)
        self.pyramid = InputPyramid(config, level, fir, rngs=rngs) if joins else None
        self.remat = config.remat

    def _downsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            dims, padding = config.spatial_dims, config.downsample_padding
            return [Downsample(channels, dims=dims, padding=padding, rngs=rngs)]
        if self.kind in INSIDE:
            return [_resizing_block(config, channels, self.kind, "down", rngs)]
        return []

    def __call__(
        self, h: Array, temb: Array, keys: Keys, image: Array | None = None
    ) -> tuple[Array, list[Array], Array | None]:
        """Returns h, all outputs to keep for the way up, and the image at the size of h."""
        kept = []
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if self.attentions else None
            h = _layer(resnet, attention, self.remat)(h, temb, next(keys))
            kept.append(h)
        if self.kind is None:
            return h, kept, image
        h = self._halve(h, temb, keys)
        if self.pyramid is not None and image is not None:
            h, image = self.pyramid(h, image)
        return h, [*kept, h], image

    def _halve(self, h: Array, temb: Array, keys: Keys) -> Array:
        if self.kind == "plain":
            return halve(h)
        if self.kind == "conv":
            return self.downsamplers[0](h)
        return _layer(self.downsamplers[0], None, self.remat)(h, temb, next(keys))


class MidBlock(nnx.Module):
    """A residual block, attention, and another residual block at the coarsest level."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        own = {
            "num_groups": _first_given(config.end_groups, config.num_groups),
            "residual_scale": _first_given(config.mid_residual_scale, config.residual_scale),
        }
        normed = {
            **own,
            "num_groups": _first_given(config.mid_attention_groups, own["num_groups"]),
            "identity": config.identity_attention != "none",
        }
        self.resnets = _residual_blocks(config, [channels, channels], channels, rngs, **own)
        self.attentions = _attentions(config, int(config.mid_attention), channels, rngs, **normed)
        self.remat = config.remat

    def __call__(self, h: Array, temb: Array, keys: Keys) -> Array:
        attention = self.attentions[0] if self.attentions else None
        h = _layer(self.resnets[0], attention, self.remat)(h, temb, next(keys))
        return _layer(self.resnets[1], None, self.remat)(h, temb, next(keys))


class UpBlock(nnx.Module):
    """The residual blocks of one level on the way up, each joined with a kept output."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels, count = config.block_out_channels, config.layers_per_block + 1
        width, below = channels[level], channels[min(level + 1, len(channels) - 1)]
        skips = [width] * (count - 1) + [config.entering_channels(level)]
        inputs = [h + skip for h, skip in zip([below] + [width] * (count - 1), skips)]
        up_attention = config.attention if config.up_attention is None else config.up_attention
        attended = 1 if up_attention[level] == "last" else count * bool(up_attention[level])
        joined = config.joined_groups if attended else None
        self.resnets = _residual_blocks(config, inputs, width, rngs, input_groups=joined)
        self.attentions = _attentions(config, attended, width, rngs)
        self.kind = _at_level(config.upsample, level) if level > 0 else None
        self.upsamplers = nnx.List(self._upsamplers(config, width, rngs))
        joins = config.progressive_output and self.kind is not None
        fir = _filter(config, self.kind)
        self.pyramid = OutputPyramid(config, level, fir, rngs=rngs) if joins else None
        self.remat = config.remat

    def _upsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            return [Upsample(channels, dims=config.spatial_dims, rngs=rngs)]
        if self.kind in INSIDE:
            return [_resizing_block(config, channels, self.kind, "up", rngs)]
        return []

    def __call__(
        self,
        h: Array,
        skips: Sequence[Array],
        temb: Array,
        keys: Keys,
        size: Sequence[int],
        image: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Returns h and the image of all levels so far, both at `size`."""
        unattended = len(self.resnets) - len(self.attentions)
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index - unattended] if index >= unattended else None
            h = jnp.concatenate([h, skips[-1 - index]], axis=-1)
            h = _layer(resnet, attention, self.remat)(h, temb, next(keys))
        if self.kind is None:
            return h, image
        if self.pyramid is not None:
            image = self.pyramid(h, image, size)
        return self._enlarge(h, temb, keys, size), image

    def _enlarge(self, h: Array, temb: Array, keys: Keys, size: Sequence[int]) -> Array:
        if self.kind == "plain":
            return enlarge(h, size)
        if self.kind == "conv":
            return self.upsamplers[0](h, size)
        return _layer(self.upsamplers[0], None, self.remat, size)(h, temb, next(keys))


def _layer(
    resnet: ResidualBlock, attention: SelfAttention | None, remat: bool, size: Sequence[int] = ()
) -> Callable[[Array, Array, Array | None], Array]:
    """A residual block and the attention behind it, rematerialised as one if asked."""

    def run(h: Array, temb: Array, keys: Array | None) -> Array:
        h = resnet(h, temb, keys, size)
        return h if attention is None else attention(h)

    return jax.checkpoint(run) if remat else run


def _residual_block(
    config: UNetConfig, inputs: int, outputs: int, rngs: nnx.Rngs, **changes: Any
) -> ResidualBlock:
    """A residual block as the configuration has it, but for the changes."""
    options = {
        "dims": config.spatial_dims,
        "num_groups": config.num_groups,
        "eps": config.norm_eps,
        "dropout": config.dropout,
        "scale_shift": config.scale_shift,
        "residual_scale": config.residual_scale,
        "act": config.activation,
        "zero": config.zero_init,
    }
    features = config.time_embedding_features
    return ResidualBlock(inputs, outputs, features, **{**options, **changes}, rngs=rngs)


def _residual_blocks(
    config: UNetConfig, inputs: Sequence[int], outputs: int, rngs: nnx.Rngs, **changes: Any
) -> nnx.List:
    return nnx.List(
        [_residual_block(config, channels, outputs, rngs, **changes) for channels in inputs]
    )


def _resizing_block(
    config: UNetConfig, channels: int, kind: str, direction: str, rngs: nnx.Rngs
) -> ResidualBlock:
    """A residual block that halves ("down") or doubles ("up")."""
    changes = {"resize": direction, "fir": _filter(config, kind), "projected": kind != "resnet"}
    return _residual_block(config, channels, channels, rngs, **changes)


def _attentions(
    config: UNetConfig, count: int, channels: int, rngs: nnx.Rngs, **changes: Any
) -> nnx.List:
    """`count` self-attentions as the configuration has them, but for the changes."""
    options = {
        "head_dim": config.head_dim,
        "num_groups": _first_given(config.attention_groups, config.num_groups),
        "eps": config.norm_eps,
        "residual_scale": config.residual_scale,
        "identity": config.identity_attention == "all",
        "zero": config.zero_init,
    }
    make = lambda: SelfAttention(channels, **{**options, **changes}, rngs=rngs)
    return nnx.List([make() for _ in range(count)])


def _filter(config: UNetConfig, kind: str | None) -> tuple[float, ...] | None:
    """Taps of the filter with which a level is resized; None for averages and nearest elements."""
    return config.fir_kernel if kind == "fir" else None


def _at_level(kind: str | tuple[str, ...], level: int) -> str:
    return kind if isinstance(kind, str) else kind[level]


def _first_given(*values: Any) -> Any:
    """The first that is not None, if there is one."""
    return next((value for value in values if value is not None), None)
