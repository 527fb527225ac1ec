"""HiFi-GAN, which turns mel spectrograms into waveforms.

    h = conv(mel);   for each stage: h = more samples, the mean of residual blocks;   tanh(conv(h))

Source: HiFi-GAN, arXiv:2010.05646, section 2.2, the generator; as SpeechT5 and AudioLDM have it.
"""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import fan_average, filled, parameter
from diffjax.networks.layers import Conv

# of the activation in front of the last convolution, whatever the others have
_LAST_SLOPE = 0.01


@dataclass(frozen=True)
class HiFiGANConfig:
    """The shape of a vocoder; the defaults are those of SpeechT5's.

    Attributes:
      mels: channels of the spectrogram.
      sampling_rate: samples of a second of the waveform.
      channels: behind the first convolution; each stage has half those before it.
      upsample_rates, upsample_windows: of each stage: how many samples for one, and the width of
        the transposed convolution; one that is odd where the other is even adds a sample.
      block_windows: widths of the convolutions of the residual blocks of a stage, odd.
      block_dilations: how far apart their elements are, for each convolution of each block.
      leaky_slope: of the activations for negative numbers.
      normalize: whether the spectrogram is brought to mean 0 and deviation 1 with stored numbers.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    mels: int = 80
    sampling_rate: int = 16000
    channels: int = 512
    upsample_rates: tuple[int, ...] = (4, 4, 4, 4)
    upsample_windows: tuple[int, ...] = (8, 8, 8, 8)
    block_windows: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    leaky_slope: float = 0.1
    normalize: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        windows, rates = self.upsample_windows, self.upsample_rates
        if len(windows) != len(rates) or any(map(int.__lt__, windows, rates)):
            raise ValueError(
                f"upsample_windows is {windows}; needed are windows as wide as the rates {rates}"
            )
        if len(self.block_windows) != len(self.block_dilations):
            raise ValueError("block_windows and block_dilations need one entry for each block")
        if any(window % 2 == 0 for window in self.block_windows):
            raise ValueError(f"block_windows is {self.block_windows}; needed are odd numbers")

    @property
    def hop(self) -> int:
        """Samples of the waveform for each element of the spectrogram's time."""
        return prod(self.upsample_rates)


def hifigan(config: HiFiGANConfig) -> Functional:
    """The vocoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, mel) -> waveforms [B, about hop L] float32 in [-1, 1]

    Arguments of apply:
      mel: [B, L, mels], the logarithm of a mel spectrogram.

    >>> init, apply = hifigan(HiFiGANConfig(mels=8, channels=16))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 10, 8))).shape
    (2, 2560)
    """
    return functional(lambda rngs: HiFiGAN(config, rngs=rngs), param_dtype=config.param_dtype)


class HiFiGAN(nnx.Module):
    """The module behind `hifigan`; its call is documented there."""

    def __init__(self, config: HiFiGANConfig, *, rngs: nnx.Rngs):
        stages = len(config.upsample_rates)
        widths = [config.channels // 2**i for i in range(stages + 1)]
        self.config = config
        self.mean, self.std = filled((config.mels,), 0.0), filled((config.mels,), 1.0)
        self.conv_pre = Conv(config.mels, widths[0], (7,), rngs=rngs)
        self.upsampler = nnx.List(
            [
                TransposedConv(before, after, window, rate, rngs=rngs)
                for before, after, window, rate in zip(
                    widths, widths[1:], config.upsample_windows, config.upsample_rates
                )
            ]
        )
        self.resblocks = nnx.List(
            [
                DilatedBlock(width, window, dilations, config.leaky_slope, rngs=rngs)
                for width in widths[1:]
                for window, dilations in zip(config.block_windows, config.block_dilations)
            ]
        )
        self.conv_post = Conv(widths[-1], 1, (7,), rngs=rngs)

    def __call__(self, mel: Array) -> Array:
        config = self.config
        if mel.ndim != 3 or mel.shape[-1] != config.mels:
            raise ValueError(f"mel is {mel.shape}; the network takes [B, length, {config.mels}]")
        if config.normalize:
            mel = (mel - self.mean[...]) / self.std[...]
        h, count = self.conv_pre(mel.astype(config.dtype)), len(config.block_windows)
        for i, upsample in enumerate(self.upsampler):
            h = upsample(jax.nn.leaky_relu(h, config.leaky_slope))
            blocks = list(self.resblocks)[i * count : (i + 1) * count]
            h = sum(block(h) for block in blocks) / count
        h = self.conv_post(jax.nn.leaky_relu(h, _LAST_SLOPE))
        return jnp.tanh(h)[..., 0].astype(jnp.float32)


class DilatedBlock(nnx.Module):
    """x + conv(act(conv(act(x)))), several times, the first of each pair dilated."""

    def __init__(
        self,
        channels: int,
        window: int,
        dilations: tuple[int, ...],
        slope: float,
        *,
        rngs: nnx.Rngs,
    ):
        conv = lambda dilation: DilatedConv(channels, window, dilation, rngs=rngs)
        self.convs1 = nnx.List([conv(dilation) for dilation in dilations])
        self.convs2 = nnx.List([conv(1) for _ in dilations])
        self.slope = slope

    def __call__(self, x: Array) -> Array:
        for first, second in zip(self.convs1, self.convs2):
            h = first(jax.nn.leaky_relu(x, self.slope))
            x = x + second(jax.nn.leaky_relu(h, self.slope))
        return x


class DilatedConv(nnx.Module):
    """A convolution over time whose elements are `dilation` apart. kernel: [window, in, out]."""

    def __init__(self, channels: int, window: int, dilation: int, *, rngs: nnx.Rngs):
        shape = (window, channels, channels)
        self.kernel = parameter(rngs, shape, fan_average(shape))
        self.bias = filled((channels,), 0.0)
        self.dilation = dilation

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        side = (len(kernel) - 1) * self.dilation // 2
        y = _convolve(x, kernel, side, apart=self.dilation)
        return y + self.bias[...].astype(x.dtype)


class TransposedConv(nnx.Module):
    """`rate` samples for each one, by the transpose of a convolution over time.

    y[rate i + k - (window - rate) / 2] += kernel[k] x[i],    kernel: [window, out, in]
    """

    def __init__(
        self, in_channels: int, out_channels: int, window: int, rate: int, *, rngs: nnx.Rngs
    ):
        shape = (window, out_channels, in_channels)
        self.kernel = parameter(rngs, shape, fan_average(shape))
        self.bias = filled((out_channels,), 0.0)
        self.rate = rate

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        turned = jnp.swapaxes(kernel[::-1], 1, 2)
        side = len(kernel) - 1 - (len(kernel) - self.rate) // 2
        y = _convolve(x, turned, side, rate=self.rate)
        return y + self.bias[...].astype(x.dtype)


def _convolve(x: Array, kernel: Array, side: int, *, apart: int = 1, rate: int = 1) -> Array:
    """[B, L, in] with a kernel [window, in, out] of elements `apart`, `side` zeros at both ends.

    Between the elements of x there are rate - 1 zeros.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(side, side)],
        lhs_dilation=(rate,),
        rhs_dilation=(apart,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
