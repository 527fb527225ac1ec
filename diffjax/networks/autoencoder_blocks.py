"""The convolutional encoder and decoder of image autoencoders.

    encoder: conv_in;  levels of residual blocks, each but the last halved;  a middle;  conv_out
    decoder: conv_in;  a middle;  levels of residual blocks, each but the last doubled;  conv_out

They are the way down and the way up of a UNet, without its time and without skips between them.
Source: Latent Diffusion, arXiv:2112.10752, appendix G; VQGAN, arXiv:2012.09841, appendix A.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention
from diffjax.networks.functional import Functional, Params
from diffjax.networks.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    groups_of,
)

EPS = 1e-6


class Backbone(Protocol):
    """What a configuration says about encoder and decoder.

    Attributes:
      in_channels, out_channels: of the images that go in and come out.
      block_out_channels: channels of each level, from the finest.
      layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
      attention, up_attention: for each level of the encoder and of the decoder, from the finest,
        whether self-attention follows its residual blocks.
      mid_attention: whether there is attention in the middle.
      num_groups: of every GroupNorm.
      act: activation of the residual blocks.
    """

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def attention(self) -> tuple[bool, ...]: ...
    @property
    def up_attention(self) -> tuple[bool, ...]: ...
    @property
    def mid_attention(self) -> bool: ...
    @property
    def num_groups(self) -> int: ...
    @property
    def act(self) -> str: ...


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    Attributes:
      init: `init(key) -> params`.
      encode: `encode(params, x)`, from images to what stands for them.
      decode: `decode(params, z) -> images`.
    """

    init: Callable[[Array], Params]
    encode: Callable[..., Any]
    decode: Callable[..., Any]


def together(*parts: Functional) -> tuple[Callable[[Array], Params], list[Callable[..., Any]]]:
    """Networks with params of different names as functions of the params of all.

    Returns:
      `init(key)` of all params, and one `apply(params, ...)` for each network.
    """
    names = [set(jax.eval_shape(part.init, jax.random.key(0))) for part in parts]

    def init(key: Array) -> Params:
        params: Params = {}
        for part, part_key in zip(parts, jax.random.split(key, len(parts))):
            params.update(part.init(part_key))
        return params

    def applied(part: Functional, own: set[str]) -> Callable[..., Any]:
        others = set().union(*names) - own

        def apply(params: Params, *inputs: Any, **options: Any) -> Any:
            # what no part knows is left in, and refused
            kept = {name: value for name, value in params.items() if name not in others}
            return part.apply(kept, *inputs, **options)

        return apply

    return init, [applied(part, own) for part, own in zip(parts, names)]


class Level(nnx.Module):
    """Residual blocks of one resolution, attention behind the first of them, and the resizing."""

    def __init__(
        self,
        config: Backbone,
        inputs: Sequence[int],
        width: int,
        *,
        attentions: int,
        resize: str | None = None,
        z_channels: int | None = None,
        rngs: nnx.Rngs,
    ):
        residual = lambda channels: ResidualBlock(
            channels,
            width,
            None,
            dims=2,
            num_groups=config.num_groups,
            eps=EPS,
            act=config.act,
            z_channels=z_channels,
            zero=False,
            rngs=rngs,
        )
        attention = lambda: Attention(
            width,
            head_dim=None,
            num_groups=config.num_groups if z_channels is None else 0,
            eps=EPS,
            z_channels=z_channels,
            residual=True,
            rngs=rngs,
        )
        self.resnets = nnx.List([residual(channels) for channels in inputs])
        self.attentions = nnx.List([attention() for _ in range(attentions)])
        down = [Downsample(width, dims=2, padding=0, rngs=rngs)] if resize == "down" else []
        up = [Upsample(width, dims=2, rngs=rngs)] if resize == "up" else []
        self.downsamplers = nnx.List(down)
        self.upsamplers = nnx.List(up)

    def __call__(self, h: Array, z: Array | None = None) -> Array:
        for index, resnet in enumerate(self.resnets):
            h = resnet(h, None, z=z)
            if index < len(self.attentions):
                h = self.attentions[index](h, z=z)
        for downsample in self.downsamplers:
            h = downsample(h)
        for upsample in self.upsamplers:
            h = upsample(h, [2 * n for n in h.shape[1:-1]])
        return h


class Encoder(nnx.Module):
    """From images [B, H, W, in_channels] to [B, H / 2^(levels - 1), ..., out_channels]."""

    def __init__(self, config: Backbone, out_channels: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = Conv(config.in_channels, channels[0], (3, 3), rngs=rngs)
        levels, below = [], channels[0]
        for i, width in enumerate(channels):
            inputs = [below] + [width] * (config.layers_per_block - 1)
            count = len(inputs) * config.attention[i]
            resize = "down" if i + 1 < len(channels) else None
            level = Level(config, inputs, width, attentions=count, resize=resize, rngs=rngs)
            levels.append(level)
            below = width
        self.down_blocks = nnx.List(levels)
        middle = [channels[-1]] * 2
        count = int(config.mid_attention)
        self.mid_block = Level(config, middle, channels[-1], attentions=count, rngs=rngs)
        self.conv_norm_out = GroupNorm(channels[-1], config.num_groups, eps=EPS)
        self.conv_out = Conv(channels[-1], out_channels, (3, 3), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        h = self.mid_block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class Decoder(nnx.Module):
    """The way back, from [B, h, w, in_channels].

    z_channels: of an image that all norms read, as in MoVQ; None for none.
    """

    def __init__(
        self, config: Backbone, in_channels: int, *, z_channels: int | None = None, rngs: nnx.Rngs
    ):
        channels = config.block_out_channels[::-1]
        self.conv_in = Conv(in_channels, channels[0], (3, 3), rngs=rngs)
        middle = [channels[0]] * 2
        make = lambda inputs, width, count, resize: Level(
            config,
            inputs,
            width,
            attentions=count,
            resize=resize,
            z_channels=z_channels,
            rngs=rngs,
        )
        self.mid_block = make(middle, channels[0], int(config.mid_attention), None)
        levels, below = [], channels[0]
        for i, (width, attention) in enumerate(zip(channels, config.up_attention[::-1])):
            inputs = [below] + [width] * config.layers_per_block
            resize = "up" if i + 1 < len(channels) else None
            levels.append(make(inputs, width, len(inputs) * attention, resize))
            below = width
        self.up_blocks = nnx.List(levels)
        self.conv_norm_out = (
            GroupNorm(channels[-1], config.num_groups, eps=EPS)
            if z_channels is None
            else SpatialNorm(channels[-1], z_channels, dims=2, rngs=rngs)
        )
        self.conv_out = Conv(channels[-1], config.out_channels, (3, 3), rngs=rngs)

    def __call__(self, h: Array, z: Array | None = None) -> Array:
        h = self.mid_block(self.conv_in(h), z)
        for level in self.up_blocks:
            h = level(h, z)
        z_of_norm = () if z is None else (z,)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h, *z_of_norm)))


def check_levels(config: Backbone, x: Array, channels: int) -> None:
    """Raise ValueError unless x is a batch of images that the encoder can halve."""
    factor = 2 ** (len(config.block_out_channels) - 1)
    if x.ndim != 4 or x.shape[-1] != channels or any(n % factor for n in x.shape[1:3]):
        raise ValueError(
            f"x is {x.shape}; the autoencoder takes [B, height, width, {channels}] with sides that "
            f"are multiples of {factor}"
        )


def check_backbone(config: Backbone) -> None:
    """Raise ValueError if the levels of a configuration do not fit each other."""
    levels = len(config.block_out_channels)
    for name in ("attention", "up_attention"):
        if len(getattr(config, name)) != levels:
            raise ValueError(
                f"{name} has {len(getattr(config, name))} entries for the {levels} levels of "
                "block_out_channels"
            )
    for channels in config.block_out_channels:
        groups_of(channels, config.num_groups)
