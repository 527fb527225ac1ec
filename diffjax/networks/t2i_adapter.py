"""T2I-Adapter: a small network that turns a picture into features for the way down of a UNet.

It runs once for a picture, not at every step, because it sees neither the noisy input nor the time.

Source: T2I-Adapter, arXiv:2302.08453, section 3.3; SDXL's form and the light one: appendix of the
same paper's second version and its published weights.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Conv, require_divisible

KINDS = ("full", "full_xl", "light")


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The shape of an adapter; the defaults are those for Stable Diffusion 1.

    Attributes:
      kind: "full"; "full_xl", of which the third feature alone is halved; "light", with narrow
        blocks and one more feature than channels.
      in_channels: of the picture.
      channels: of the features.
      num_blocks: residual blocks for each feature.
      factor: side of the blocks of pixels that are moved into the channels first.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    kind: str = "full"
    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_blocks: int = 2
    factor: int = 8
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.kind == "full_xl" and len(set(self.channels[2:])) > 1:
            raise ValueError(f"channels is {self.channels}; from the third on they must be equal")
        if self.kind == "light":
            for channels in self.channels:
                require_divisible(channels, 4, "the channels of a light adapter", "4")

    @property
    def stages(self) -> tuple[tuple[int, int, bool], ...]:
        """For each feature the channels that come in and go out, and whether it is halved."""
        first = self.in_channels * self.factor**2 if self.kind == "light" else self.channels[0]
        outputs = (*self.channels, self.channels[-1]) if self.kind == "light" else self.channels
        inputs = (first, *outputs[:-1])
        halved = [i == 2 if self.kind == "full_xl" else i > 0 for i in range(len(outputs))]
        return tuple(zip(inputs, outputs, halved))


def sd1_t2i_adapter(**changes) -> T2IAdapterConfig:
    """Adapters of Stable Diffusion 1, 77 million parameters (arXiv:2302.08453, section 3.3)."""
    return T2IAdapterConfig(**changes)


def sdxl_t2i_adapter(**changes) -> T2IAdapterConfig:
    """Adapters of SDXL, 79 million parameters."""
    return T2IAdapterConfig(**{"kind": "full_xl", "factor": 16, **changes})


def t2i_adapter(config: T2IAdapterConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, picture) -> list of features, the finest first

    The features are the argument `features` of the UNet; those of several adapters are added up,
    and a factor on them weakens or strengthens their effect.

    Arguments of apply:
      picture: [B, height, width, in_channels] in [0, 1], sides multiples of `factor`.

    >>> init, apply = t2i_adapter(T2IAdapterConfig(channels=(4, 8)))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> [each.shape for each in jax.eval_shape(apply, params, jnp.ones((1, 32, 32, 3)))]
    [(1, 4, 4, 4), (1, 2, 2, 8)]
    """
    return functional(lambda rngs: T2IAdapter(config, rngs=rngs), param_dtype=config.param_dtype)


class T2IAdapter(nnx.Module):
    """The module behind `t2i_adapter`; its call is documented there."""

    def __init__(self, config: T2IAdapterConfig, *, rngs: nnx.Rngs):
        self.config = config
        light = config.kind == "light"
        channels = config.in_channels * config.factor**2
        self.conv_in = (
            None if light else Conv(channels, config.channels[0], (3, 3), padding=1, rngs=rngs)
        )
        self.body = nnx.List(
            [
                Stage(*stage, blocks=config.num_blocks, light=light, rngs=rngs)
                for stage in config.stages
            ]
        )

    def __call__(self, picture: Array) -> list[Array]:
        config = self.config
        if picture.ndim != 4 or picture.shape[-1] != config.in_channels:
            raise ValueError(
                f"picture is {picture.shape}; the network takes [B, height, width, "
                f"{config.in_channels}]"
            )
        h = _channels_first_in_blocks(picture.astype(config.dtype), config.factor)
        h = h if self.conv_in is None else self.conv_in(h)
        features = []
        for stage in self.body:
            h = stage(h)
            features.append(h)
        return features


class Stage(nnx.Module):
    """Halving, a 1-wide convolution to other channels, residual blocks; light ones are narrow."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        halved: bool,
        *,
        blocks: int,
        light: bool,
        rngs: nnx.Rngs,
    ):
        width = channels // 4 if light else channels
        one = lambda inputs, outputs: Conv(inputs, outputs, (1, 1), rngs=rngs)
        self.in_conv = one(in_channels, width) if light or in_channels != width else None
        window = 3 if light else 1
        self.resnets = nnx.List([Residual(width, window, rngs=rngs) for _ in range(blocks)])
        self.out_conv = one(width, channels) if light else None
        self.halved = halved

    def __call__(self, h: Array) -> Array:
        h = _halve(h) if self.halved else h
        h = h if self.in_conv is None else self.in_conv(h)
        for resnet in self.resnets:
            h = resnet(h)
        return h if self.out_conv is None else self.out_conv(h)


class Residual(nnx.Module):
    """x + conv(ReLU(conv(x)))."""

    def __init__(self, channels: int, window: int, *, rngs: nnx.Rngs):
        self.block1 = Conv(channels, channels, (3, 3), rngs=rngs)
        self.block2 = Conv(channels, channels, (window, window), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.block2(jax.nn.relu(self.block1(x)))


def _halve(h: Array) -> Array:
    """Average pairs; the last element of an odd axis stays as it is."""
    odd = [(0, 0), *((0, n % 2) for n in h.shape[1:-1]), (0, 0)]
    return operations.avg_pool(jnp.pad(h, odd, mode="edge"), 2)


def _channels_first_in_blocks(x: Array, factor: int) -> Array:
    """`operations.space_to_depth`, with the old channel slower than the position in the block."""
    blocks = operations.space_to_depth(x, factor)
    parts = blocks.reshape(*blocks.shape[:-1], factor**2, x.shape[-1])
    return jnp.swapaxes(parts, -1, -2).reshape(blocks.shape)
