"""The UNet of waveforms, Dance Diffusion's.

    first:  the waves of the time beside the samples, residual blocks
    down:   half as many samples, three residual blocks, attention behind each where a level has it
    middle: half as many samples, six of both, twice as many samples
    up:     the kept output of the level joined in, three blocks, twice as many samples
    last:   the same without attention and doubling, to the channels of the output

Resampling is by a fixed cubic filter. Norms are over all channels of a sample.
Source: Dance Diffusion, Harmonai 2022, https://github.com/Harmonai-org/sample-generator, after
Diffusion Models Beat GANs, arXiv:2105.05233, and Fourier features, arXiv:2006.10739.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.attention import Attention
from diffjax.networks.embeddings import GaussianFourier
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter
from diffjax.networks.layers import Conv, GroupNorm, require_divisible

EPS = 1e-5
HEAD_DIM = 32

# half of a symmetric filter of 8 taps that halves and doubles
_CUBIC = (-0.01171875, -0.03515625, 0.11328125, 0.43359375)


@dataclass(frozen=True)
class WaveformUNetConfig:
    """The shape of a UNet of waveforms; the defaults are those of the published ones.

    Attributes:
      sample_size, sample_rate: samples that it was trained on, and how many make a second,
        where that is known.
      in_channels, out_channels: of the waveform, 2 for stereo.
      time_features: waves of the time that join the channels.
      block_out_channels: channels of each level, from the finest, multiples of 32 where there is
        attention.
      attention: of each level on its way down, None for none but the last; never of the first.
      up_attention: on the way up; None for the same.
      flip_sin_to_cos: cosines of the time in front of its sines.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    sample_size: int = 65536
    sample_rate: int | None = 16000
    in_channels: int = 2
    out_channels: int = 2
    time_features: int = 16
    block_out_channels: tuple[int, ...] = (128, 128, 256, 256, *(512,) * 9)
    attention: tuple[bool, ...] | None = None
    up_attention: tuple[bool, ...] | None = None
    flip_sin_to_cos: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.time_features, 2, "time_features", "sines and cosines")
        for name in ("attention", "up_attention"):
            given = getattr(self, name)
            if given is not None and (len(given) != len(self.block_out_channels) or given[0]):
                raise ValueError(
                    f"{name} is {given}; needed is one truth value for each of the "
                    f"{len(self.block_out_channels)} levels, the first of them False"
                )

    @property
    def attends(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which levels attend on the way down and on the way up, from the finest."""
        last = len(self.block_out_channels) - 1
        down = self.attention or tuple(0 < i == last for i in range(last + 1))
        return down, self.up_attention or down

    @property
    def multiple(self) -> int:
        """What the number of samples must be a multiple of."""
        return 2 ** len(self.block_out_channels)


def unet_waveform(config: WaveformUNetConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, keys=None) -> [B, samples, out_channels] float32

    Arguments of apply:
      x: [B, samples, in_channels]; samples a multiple of 2^levels, and at least three times that.
      t: [B] clock, floats; the published networks know 0 .. 1.
      keys: nothing here is random.

    >>> import jax
    >>> init, apply = unet_waveform(WaveformUNetConfig(block_out_channels=(32, 32)))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((1, 16, 2)), jnp.ones(1)).shape
    (1, 16, 2)
    """
    return functional(lambda rngs: WaveformUNet(config, rngs=rngs), param_dtype=config.param_dtype)


class WaveformUNet(nnx.Module):
    """The module behind `unet_waveform`; its call is documented there."""

    def __init__(self, config: WaveformUNetConfig, *, rngs: nnx.Rngs):
        channels, (down, up) = config.block_out_channels, config.attends
        last, inputs = channels[-1], config.in_channels + config.time_features
        self.config = config
        self.time_proj = GaussianFourier(
            config.time_features // 2, 1.0, flip_sin_to_cos=config.flip_sin_to_cos, rngs=rngs
        )
        self.down_blocks = nnx.List(
            [
                Stage((before, width, width, width), attends, resize, rngs=rngs)
                for before, width, attends, resize in zip(
                    (inputs, *channels), channels, down, (None, *["down"] * (len(channels) - 1))
                )
            ]
        )
        self.mid_block = Stage((last,) * 7, True, "both", rngs=rngs)
        self.up_blocks = nnx.List(
            [
                Stage(_up_widths(width, after, attends), attends, "up", rngs=rngs)
                for width, after, attends in zip(channels[:0:-1], channels[-2::-1], up[:0:-1])
            ]
        )
        first = channels[0]
        widths = (2 * first, first, first, config.out_channels)
        self.up_blocks.append(Stage(widths, False, None, ends=True, rngs=rngs))

    def __call__(self, x: Array, t: Array, *, keys: Array | None = None) -> Array:
        config = self.config
        fits = x.ndim == 3 and x.shape[-1] == config.in_channels
        if not fits or x.shape[1] % config.multiple or x.shape[1] < 3 * config.multiple:
            raise ValueError(
                f"x is {x.shape}; the network takes [B, samples, {config.in_channels}], with "
                f"samples a multiple of {config.multiple} and at least {3 * config.multiple}"
            )
        waves = self.time_proj(t)[:, None]
        waves = jnp.broadcast_to(waves, (*x.shape[:2], waves.shape[-1]))
        h, kept = jnp.concatenate([x, waves], axis=-1).astype(config.dtype), []
        for stage in self.down_blocks:
            h = stage(h)
            kept.append(h)
        h = self.mid_block(h)
        for stage in self.up_blocks:
            h = stage(jnp.concatenate([h, kept.pop()], axis=-1))
        return h.astype(jnp.float32)


class Stage(nnx.Module):
    """Residual blocks between widths, attention behind them, resampling in front or behind.

    Args:
      widths: of the input, and behind each block.
      attends: whether there is attention.
      resize: "down", "up", "both" or None.
      ends: leave out the last norm and activation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        attends: bool,
        resize: str | None,
        *,
        ends: bool = False,
        rngs: nnx.Rngs,
    ):
        middle, count = widths[1], len(widths) - 1
        self.down = Resample(rngs, doubles=False) if resize in ("down", "both") else None
        self.resnets = nnx.List(
            [
                Residual(*pair, middle, ends=ends and i == count - 1, rngs=rngs)
                for i, pair in enumerate(itertools.pairwise(widths))
            ]
        )
        attention = lambda width: Attention(
            width, head_dim=_head_dim(width), num_groups=1, eps=EPS, residual=True, rngs=rngs
        )
        self.attentions = nnx.List([attention(width) for width in widths[1:]]) if attends else None
        self.up = Resample(rngs, doubles=True) if resize in ("up", "both") else None

    def __call__(self, h: Array) -> Array:
        h = h if self.down is None else self.down(h)
        for i, resnet in enumerate(self.resnets):
            h = resnet(h)
            h = h if self.attentions is None else self.attentions[i](h)
        return h if self.up is None else self.up(h)


class Residual(nnx.Module):
    """x + two convolutions, 5 wide, each with a norm and a GELU behind it."""

    def __init__(
        self, in_channels: int, out_channels: int, middle: int, *, ends: bool, rngs: nnx.Rngs
    ):
        same = in_channels == out_channels
        self.conv_skip = (
            None if same else Conv(in_channels, out_channels, (1,), bias=False, rngs=rngs)
        )
        self.conv_1 = Conv(in_channels, middle, (5,), rngs=rngs)
        self.group_norm_1 = GroupNorm(middle, 1, eps=EPS)
        self.conv_2 = Conv(middle, out_channels, (5,), rngs=rngs)
        self.group_norm_2 = None if ends else GroupNorm(out_channels, 1, eps=EPS)

    def __call__(self, x: Array) -> Array:
        gelu = activation("gelu")
        h = self.conv_2(gelu(self.group_norm_1(self.conv_1(x))))
        if self.group_norm_2 is not None:
            h = gelu(self.group_norm_2(h))
        return h + (x if self.conv_skip is None else self.conv_skip(x))


class Resample(nnx.Module):
    """Halve or double the samples by a filter, which training leaves as it is. taps: [8].

    Behind the ends the samples go on as their mirror image.
    """

    def __init__(self, rngs: nnx.Rngs, *, doubles: bool):
        taps = (1 + doubles) * jnp.array([*_CUBIC, *_CUBIC[::-1]])
        self.taps = parameter(rngs, (8,), lambda u: taps)
        self.doubles = doubles

    def __call__(self, x: Array) -> Array:
        taps = tuple(lax.stop_gradient(self.taps[...]).astype(x.dtype))
        beyond = 2 if self.doubles else 3
        mirrored = jnp.pad(x, ((0, 0), (beyond, beyond), (0, 0)), mode="reflect")
        if not self.doubles:
            return operations.fir(mirrored, taps, padding=(0, 0), stride=2)
        size = 2 * mirrored.shape[1]
        return operations.fir_upsample(mirrored, taps, (size,))[:, 4:-4]


def _up_widths(width: int, after: int, attends: bool) -> tuple[int, int, int, int]:
    """With attention the inner layers are as wide as what comes out, without as what comes in."""
    inner = after if attends else width
    return 2 * width, inner, inner, after


def _head_dim(width: int) -> int:
    """As many heads as have 32 features or a few more."""
    heads = max(width // HEAD_DIM, 1)
    require_divisible(width, heads, "the width of a level with attention", "its heads")
    return width // heads
