"""The temporal UNet of Diffuser, which plans trajectories of states and actions.

    down:  residual blocks, then half as many steps, level by level;   middle
    up:    the kept output of the level joined in, residual blocks, then twice as many steps

Its residual blocks put the norm behind the convolution, unlike those of image UNets.
Source: Planning with Diffusion for Flexible Behavior Synthesis, arXiv:2205.09991, appendix C.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.activations import activation
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import fan_average, filled, parameter
from diffjax.networks.layers import Conv, Downsample, GroupNorm, Linear, sinusoidal_features
from diffjax.networks.transformer import FeedForward

# of the residual blocks, whatever num_groups says of the output
GROUPS = 8
EPS = 1e-5


@dataclass(frozen=True)
class UNet1DConfig:
    """The shape of a temporal UNet; the defaults are those of Diffuser for Hopper.

    Attributes:
      sample_size: steps that it was made for; a note.
      in_channels, out_channels: numbers of a step.
      block_out_channels: channels of each level, from the finest; each but the last halves.
      layers_per_block: residual blocks of a level and of the middle, less one.
      act: activation of the embedding of the time and of the output.
      num_groups: of the output's GroupNorm.
      flip_sin_to_cos, freq_shift: of the sinusoidal features.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 32
    in_channels: int = 14
    out_channels: int = 14
    block_out_channels: tuple[int, ...] = (32, 128, 256)
    layers_per_block: int = 1
    act: str = "mish"
    num_groups: int = 8
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def num_levels(self) -> int:
        """Resolutions, each but the first half of the one before."""
        return len(self.block_out_channels)


def unet1d(config: UNet1DConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, keys=None) -> [B, steps, out_channels] float32

    Arguments of apply:
      x: [B, steps, in_channels]; steps a multiple of 2^(levels - 1).
      t: [B] clock, integers or floats.
      keys: nothing here is random.

    >>> import jax
    >>> init, apply = unet1d(UNet1DConfig(block_out_channels=(8, 16)))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 16, 14)), jnp.ones(2)).shape
    (2, 16, 14)
    """
    return functional(lambda rngs: UNet1D(config, rngs=rngs), param_dtype=config.param_dtype)


class UNet1D(nnx.Module):
    """The module behind `unet1d`; its call is documented there."""

    def __init__(self, config: UNet1DConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        first, last = channels[0], channels[-1]
        blocks = config.layers_per_block + 1
        level = lambda inputs, width, resize=None: Level1D(
            inputs, width, first, blocks=blocks, resize=resize, rngs=rngs
        )
        self.config = config
        self.time_mlp = FeedForward(first, 4 * first, act=config.act, rngs=rngs)
        down = zip((config.in_channels, *channels), channels)
        resizes = ["down"] * (len(channels) - 1) + [None]
        self.down_blocks = nnx.List([level(*each, r) for each, r in zip(down, resizes)])
        self.mid_block = level(last, last)
        # each halving is undone, the last one to the width of the finest level
        widths = [*channels[::-1][1:-1], first]
        ups = zip((last, *widths), widths[: len(channels) - 1])
        self.up_blocks = nnx.List([level(2 * below, width, "up") for below, width in ups])
        self.out_block = Output1D(config, rngs=rngs)

    def __call__(self, x: Array, t: Array, *, keys: Array | None = None) -> Array:
        config = self.config
        factor = 2 ** (config.num_levels - 1)
        if x.ndim != 3 or x.shape[-1] != config.in_channels or x.shape[1] % factor:
            raise ValueError(
                f"x is {x.shape}; the network takes [B, steps, {config.in_channels}], with steps a "
                f"multiple of {factor}"
            )
        waves = sinusoidal_features(
            t,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        temb = self.time_mlp(waves).astype(config.dtype)
        h, kept = x.astype(config.dtype), []
        for level in self.down_blocks:
            h = level(h, temb)
            kept.append(h)
            h = level.resize(h)
        h = self.mid_block(h, temb)
        for level in self.up_blocks:
            h = level(jnp.concatenate([h, kept.pop()], axis=-1), temb)
            h = level.resize(h)
        return self.out_block(h).astype(jnp.float32)


class Level1D(nnx.Module):
    """Residual blocks of one level, and the layer that resizes behind them."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        time_features: int,
        *,
        blocks: int,
        resize: str | None,
        rngs: nnx.Rngs,
    ):
        inputs = [in_channels] + [channels] * (blocks - 1)
        residual = lambda width: Residual1D(width, channels, time_features, rngs=rngs)
        self.resnets = nnx.List([residual(width) for width in inputs])
        self.downsample = (
            Downsample(channels, dims=1, padding=1, rngs=rngs) if resize == "down" else None
        )
        self.upsample = Upsample1D(channels, rngs=rngs) if resize == "up" else None

    def __call__(self, h: Array, temb: Array) -> Array:
        for resnet in self.resnets:
            h = resnet(h, temb)
        return h

    def resize(self, h: Array) -> Array:
        """Halve or double the steps, or leave them."""
        if self.downsample is not None:
            return self.downsample(h)
        return h if self.upsample is None else self.upsample(h)


class Residual1D(nnx.Module):
    """x + two convolutions, 5 wide, each with norm and mish behind it, and the time between."""

    def __init__(self, in_channels: int, channels: int, time_features: int, *, rngs: nnx.Rngs):
        self.conv_in = NormedConv1D(in_channels, channels, rngs=rngs)
        self.conv_out = NormedConv1D(channels, channels, rngs=rngs)
        self.time_emb = Linear(time_features, channels, rngs=rngs)
        self.residual_conv = (
            None if in_channels == channels else Conv(in_channels, channels, (1,), rngs=rngs)
        )

    def __call__(self, x: Array, temb: Array) -> Array:
        h = self.conv_in(x) + self.time_emb(activation("mish")(temb))[:, None]
        return self.conv_out(h) + (x if self.residual_conv is None else self.residual_conv(x))


class NormedConv1D(nnx.Module):
    """mish(norm(conv(x)))."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv1d = Conv(in_channels, channels, (5,), rngs=rngs)
        self.group_norm = GroupNorm(channels, GROUPS, eps=EPS)

    def __call__(self, x: Array) -> Array:
        return activation("mish")(self.group_norm(self.conv1d(x)))


class Upsample1D(nnx.Module):
    """Double the steps by the transpose of a convolution, 4 wide, of stride 2 and padding 1.

    y[2 i + k - 1] += kernel[k] x[i],    kernel: [4, out, in]
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = TransposedKernel(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        k0, k1, k2, k3 = jnp.swapaxes(self.conv.kernel[...].astype(x.dtype), 1, 2)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        after = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        pairs = jnp.stack([x @ k1 + before @ k3, x @ k2 + after @ k0], axis=2)
        y = pairs.reshape(x.shape[0], -1, pairs.shape[-1])
        return y + self.conv.bias[...].astype(x.dtype)


class TransposedKernel(nnx.Module):
    """The parameters of a transposed convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        shape = (4, channels, channels)
        self.kernel = parameter(rngs, shape, fan_average(shape))
        self.bias = filled((channels,), 0.0)


class Output1D(nnx.Module):
    """A convolution, a norm, an activation, and a linear map of each step."""

    def __init__(self, config: UNet1DConfig, *, rngs: nnx.Rngs):
        width = config.block_out_channels[0]
        self.final_conv1d_1 = Conv(width, width, (5,), rngs=rngs)
        self.final_conv1d_gn = GroupNorm(width, config.num_groups, eps=EPS)
        self.final_conv1d_2 = Conv(width, config.out_channels, (1,), rngs=rngs)
        self.act = activation(config.act)

    def __call__(self, h: Array) -> Array:
        return self.final_conv1d_2(self.act(self.final_conv1d_gn(self.final_conv1d_1(h))))
