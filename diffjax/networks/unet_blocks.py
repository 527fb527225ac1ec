"""The blocks of a UNet: one level on the way down, the middle, one level on the way up.

Each takes `keys`, an iterator over one [B] array of PRNG keys for each residual block in the order
of computation, or over None where nothing is random, and `told`, what the attentions see besides.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    enlarge,
    halve,
)
from diffjax.networks.pyramids import InputPyramid, OutputPyramid
from diffjax.networks.unet_attention import SelfAttention, SpatialTransformer
from diffjax.networks.unet_config import INSIDE, UNetConfig
from diffjax.networks.unet_context import at_level
from diffjax.networks.unet_frames import TemporalConv, TemporalTransformer

Keys = Iterator[Array | None]
Attention = SelfAttention | SpatialTransformer

# of the norm in front of attention that a context extends
EXTENDED_EPS = 1e-5


class Told(NamedTuple):
    """What the attentions see besides.

    Attributes:
      context: [B, S, features] tokens.
      bias: [B, 1, 1, S] of the logits, which hides some of them.
      frames: how many of the batch, one after the other, are a video.
    """

    context: Array | None = None
    bias: Array | None = None
    frames: int = 1


NOTHING = Told()


class DownBlock(nnx.Module):
    """The residual blocks of one level on the way down, with attention, and the halving."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        width, last = config.block_out_channels[level], len(config.block_out_channels) - 1
        layers, attention = at_level(config.layers_per_block, level), config.attention[level]
        inputs = [config.entering_channels(level)] + [width] * (layers - 1)
        self.resnets = _residual_blocks(config, inputs, width, rngs)
        depths = _depths(config, level, layers * bool(attention))
        self.attentions = _attentions(config, attention, level, depths, rngs)
        mixing = _mixing(config, level, layers, bool(attention), rngs)
        self.temp_convs, self.temp_attentions, self.motion_modules = mixing
        self.attends = attention == "transformer"
        self.kind = at_level(config.downsample, level) if level < last else None
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
        self,
        h: Array,
        temb: Array,
        keys: Keys,
        told: Told = NOTHING,
        image: Array | None = None,
        feature: Array | None = None,
    ) -> tuple[Array, list[Array], Array | None]:
        """Returns h, all outputs to keep for the way up, and the image at the size of h.

        feature: joins the output of the last transformer; without transformers that of the block.
        """
        kept = []
        for index in range(len(self.resnets)):
            h = _nth(self, index, told.frames)(h, temb, next(keys), told)
            kept.append(h)
        if self.attends and feature is not None:
            kept[-1] = h = h + feature
        if self.kind is not None:
            h = self._halve(h, temb, keys)
            if self.pyramid is not None and image is not None:
                h, image = self.pyramid(h, image)
            kept.append(h)
        if not self.attends and feature is not None:
            kept[-1] = h = h + feature
        return h, kept, image

    def _halve(self, h: Array, temb: Array, keys: Keys) -> Array:
        if self.kind == "plain":
            return halve(h)
        if self.kind == "conv":
            return self.downsamplers[0](h)
        return _layer(self.downsamplers[0], None, self.remat)(h, temb, next(keys))


class MidBlock(nnx.Module):
    """A residual block, then attention and another residual block, at the coarsest level."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels, level = config.block_out_channels[-1], len(config.block_out_channels) - 1
        own = {
            "num_groups": _first_given(config.end_groups, config.num_groups),
            "residual_scale": _first_given(config.mid_residual_scale, config.residual_scale),
        }
        inputs = [channels] * (1 + config.mid_layers)
        self.resnets = _residual_blocks(config, inputs, channels, rngs, **own)
        kind, count = config.mid_attention, config.mid_layers * bool(config.mid_attention)
        changes: dict[str, Any] = {"identity": config.identity_attention != "none"}
        if kind is True:
            groups = _first_given(config.mid_attention_groups, own["num_groups"])
            changes |= {**own, "num_groups": groups}
        elif config.context is not None:
            only = kind == "extended" and config.context.mid_only_context
            changes |= {"only_context": only, "num_groups": own["num_groups"]}
        depths = _depths(config, level, count)
        self.attentions = _attentions(config, kind, level, depths, rngs, **changes)
        mixing = _mixing(config, level, len(inputs), bool(kind), rngs, where="mid")
        self.temp_convs, self.temp_attentions, self.motion_modules = mixing
        self.remat = config.remat

    def __call__(self, h: Array, temb: Array, keys: Keys, told: Told = NOTHING) -> Array:
        for index in range(len(self.resnets)):
            h = _nth(self, index, told.frames)(h, temb, next(keys), told)
        return h

    def attention_map(self, h: Array, temb: Array) -> Array:
        """The attention that positions receive in the first attention, [B, *spatial]."""
        return self.attentions[0].attention_map(self.resnets[0](h, temb, None, ()))


class UpBlock(nnx.Module):
    """The residual blocks of one level on the way up, each joined with a kept output."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels, count = config.block_out_channels, at_level(config.layers_per_block, level) + 1
        width, below = channels[level], channels[min(level + 1, len(channels) - 1)]
        skips = [width] * (count - 1) + [config.entering_channels(level)]
        inputs = [h + skip for h, skip in zip([below] + [width] * (count - 1), skips)]
        attention = _first_given(config.up_attention, config.attention)[level]
        attended = 1 if attention == "last" else count * bool(attention)
        joined = config.joined_groups if attended else None
        self.resnets = _residual_blocks(config, inputs, width, rngs, input_groups=joined)
        depths = _depths(config, level, attended, up=True)
        self.attentions = _attentions(config, attention, level, depths, rngs)
        mixing = _mixing(config, level, count, bool(attention), rngs, where="up")
        self.temp_convs, self.temp_attentions, self.motion_modules = mixing
        self.kind = at_level(config.upsample, level) if level > 0 else None
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
        told: Told = NOTHING,
        image: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Returns h and the image of all levels so far, both at `size`."""
        unattended = len(self.resnets) - len(self.attentions)
        for index in range(len(self.resnets)):
            h = jnp.concatenate([h, skips[-1 - index]], axis=-1)
            h = _nth(self, index, told.frames, unattended)(h, temb, next(keys), told)
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


def _nth(
    block: DownBlock | MidBlock | UpBlock, index: int, frames: int, unattended: int = 0
) -> Callable[..., Array]:
    """The layers of a block that belong to its index-th residual block."""
    pick = lambda modules, at: modules[at] if 0 <= at < len(modules) else None
    attention = pick(block.attentions, index - unattended)
    conv = pick(block.temp_convs, index)
    mixer = pick([*block.temp_attentions, *block.motion_modules], index)
    mixing = (conv, mixer, frames)
    return _layer(block.resnets[index], attention, block.remat, mixing=mixing)


def _layer(
    resnet: ResidualBlock,
    attention: Attention | None,
    remat: bool,
    size: Sequence[int] = (),
    mixing: tuple = (None, None, 1),
) -> Callable[..., Array]:
    """A residual block and the attention behind it, rematerialised as one if asked.

    mixing: what mixes frames behind either, and their number.
    """
    conv, mixer, frames = mixing

    def block(h: Array, temb: Array, keys: Array | None) -> Array:
        h = resnet(h, temb, keys, size)
        return h if conv is None else conv(h, frames)

    def run(h: Array, temb: Array, keys: Array | None, told: Told = NOTHING) -> Array:
        h = block(h, temb, keys)
        h = h if attention is None else attention(h, told.context, told.bias)
        return h if mixer is None else mixer(h, frames)

    if isinstance(attention, SpatialTransformer) or mixer is not None:
        # their blocks are many, and each is rematerialised by itself
        block = jax.checkpoint(block) if remat else block
        return run
    return jax.checkpoint(run) if remat else run


def _mixing(
    config: UNetConfig,
    level: int,
    layers: int,
    attended: bool,
    rngs: nnx.Rngs,
    where: str = "down",
) -> tuple[nnx.List, nnx.List, nnx.List]:
    """What mixes frames behind residual blocks, transformers and whole layers of a level."""
    frames = config.frames
    if frames is None:
        return nnx.List([]), nnx.List([]), nnx.List([])
    channels, zero = config.block_out_channels[level], config.zero_init

    def transformer(depth: int, max_frames: int | None = None) -> TemporalTransformer:
        return TemporalTransformer(
            channels,
            num_heads=at_level(frames.num_heads, level),
            depth=depth,
            num_groups=config.num_groups,
            max_frames=max_frames,
            remat=config.remat,
            zero=zero,
            rngs=rngs,
        )

    depths = frames.up_depth if where == "up" and frames.up_depth is not None else frames.depth
    of_level = frames.mid_depth if where == "mid" else at_level(depths, level)
    # the last residual block of the middle has nothing behind it
    count = layers - (where == "mid")
    each = [at_level(of_level, layer) for layer in range(count)] if of_level else []
    if frames.kind == "motion":
        motions = [transformer(depth, frames.max_frames) for depth in each]
        return nnx.List([]), nnx.List([]), nnx.List(motions)
    convs = [TemporalConv(channels, config.num_groups, zero=zero, rngs=rngs) for _ in range(layers)]
    mixers = [transformer(depth) for depth in each] if attended else []
    return nnx.List(convs), nnx.List(mixers), nnx.List([])


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
    features = config.block_time_features
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
    config: UNetConfig,
    kind: bool | str,
    level: int,
    depths: Sequence[int],
    rngs: nnx.Rngs,
    **changes: Any,
) -> nnx.List:
    """The attentions of a level as the configuration has them, but for the changes.

    depths: one for each, of those that are transformers.
    """
    channels = config.block_out_channels[level]
    options = {
        "num_groups": config.num_groups,
        "identity": config.identity_attention == "all",
        "zero": config.zero_init,
    }
    if config.context is not None and kind in ("transformer", "extended"):
        options |= {
            "context_features": at_level(config.context.features, level),
            "only_context": at_level(config.context.only_context, level),
        }
    if kind == "transformer" and config.context is not None:
        options |= {
            "num_heads": at_level(config.context.num_heads, level),
            "linear": config.context.linear_projection,
            "image_tokens": config.context.image_tokens,
            "dims": config.spatial_dims,
            "remat": config.remat,
        }
        make = lambda depth: SpatialTransformer(
            channels, **{**options, **changes}, depth=depth, rngs=rngs
        )
        return nnx.List([make(depth) for depth in depths])
    options["head_dim"] = at_level(config.head_dim, level)
    if kind == "extended" and config.context is not None:
        # these are not scaled, whatever the residual blocks are
        options |= {"eps": EXTENDED_EPS, "context_norm": config.context.norm}
    else:
        options |= {
            "num_groups": _first_given(config.attention_groups, config.num_groups),
            "eps": config.norm_eps,
            "residual_scale": config.residual_scale,
        }
    return nnx.List([SelfAttention(channels, **{**options, **changes}, rngs=rngs) for _ in depths])


def _depths(config: UNetConfig, level: int, count: int, *, up: bool = False) -> list[int]:
    """Blocks of each of the `count` transformers of a level."""
    if config.context is None:
        return [0] * count
    context = config.context
    depths = context.up_depth if up and context.up_depth is not None else context.depth
    of_level = at_level(depths, level)
    return [at_level(of_level, layer) for layer in range(count)]


def _filter(config: UNetConfig, kind: str | None) -> tuple[float, ...] | None:
    """Taps of the filter with which a level is resized; None for averages and nearest elements."""
    return config.fir_kernel if kind == "fir" else None


def _first_given(*values: Any) -> Any:
    """The first that is not None, if there is one."""
    return next((value for value in values if value is not None), None)
