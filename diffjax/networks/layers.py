"""The layers from which the networks are built.

All of them put the batch first and the channels last and take any number of spatial axes. Each
computes in the dtype of its input: parameters are cast to it, so that the network that owns the
layers decides the compute dtype once, where it casts its input. Normalisation statistics and the
softmax of attention are float32 always.

Kernels start uniform with variance 2 / (fan_in + fan_out), biases at zero: the initialisation of
DDPM (arXiv:2006.11239). Layers that end a residual branch can start at zero.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.initialization import fan_average, filled, parameter, standard_normal
from diffjax.networks.low_rank import LowRankKernel


class Linear(nnx.Module):
    """y = x kernel + bias, over the last axis. kernel: [in, out]."""

    def __init__(
        self, in_features: int, out_features: int, *, bias=True, zero=False, rngs: nnx.Rngs
    ):
        shape = (in_features, out_features)
        self.kernel = filled(shape, 0.0) if zero else parameter(rngs, shape, fan_average(shape))
        self.bias = filled((out_features,), 0.0) if bias else None

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Conv(nnx.Module):
    """A convolution over all spatial axes. kernel: [*window, in, out].

    padding: as in `operations.conv`: "SAME", an integer, or a (low, high) pair for each axis.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: Sequence[int],
        *,
        strides: int = 1,
        padding: operations.Padding = "SAME",
        bias: bool = True,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (*window, in_channels, out_channels)
        self.kernel = filled(shape, 0.0) if zero else parameter(rngs, shape, fan_average(shape))
        self.bias = filled((out_channels,), 0.0) if bias else None
        self.strides = strides
        self.padding = padding

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        convolve = partial(operations.conv, x, strides=self.strides, padding=self.padding)
        if isinstance(kernel, LowRankKernel):
            return convolve(kernel.kernel, bias) + convolve(kernel.down) @ kernel.up
        return convolve(kernel, bias)


def groups_of(channels: int, num_groups: int | None) -> int:
    """How many groups a GroupNorm makes of the channels; ValueError if they are not equal."""
    num_groups = min(channels // 4, 32) if num_groups is None else num_groups
    require_divisible(channels, num_groups, "GroupNorm's channels", "num_groups")
    return num_groups


class GroupNorm(nnx.Module):
    """Normalise groups of channels over space. scale, bias: [channels].

    Source: Group Normalization, arXiv:1803.08494.

    Args:
      num_groups: None for as many as have 4 channels, but 32 at most (NCSN++, EDM).
    """

    def __init__(self, channels: int, num_groups: int | None, *, eps: float):
        self.num_groups = groups_of(channels, num_groups)
        self.scale = filled((channels,), 1.0)
        self.bias = filled((channels,), 0.0)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        scale, bias = self.scale[...], self.bias[...]
        return operations.group_norm(x, scale, bias, num_groups=self.num_groups, eps=self.eps)


class SpatialNorm(nnx.Module):
    """A GroupNorm whose scale and bias at each position are read from another, coarser image.

        y = norm(x) conv_y(z) + conv_b(z),    z resized to x by the nearest element

    Source: MoVQ, arXiv:2209.09002, equation 5.
    """

    def __init__(self, channels: int, z_channels: int, *, dims: int, rngs: nnx.Rngs):
        # 32 groups and this eps, whatever the other norms of the network have
        self.norm_layer = GroupNorm(channels, 32, eps=1e-6)
        self.conv_y = Conv(z_channels, channels, (1,) * dims, rngs=rngs)
        self.conv_b = Conv(z_channels, channels, (1,) * dims, rngs=rngs)

    def __call__(self, x: Array, z: Array) -> Array:
        z = operations.upsample_nearest(z, x.shape[1:-1])
        return self.norm_layer(x) * self.conv_y(z) + self.conv_b(z)


class Embedding(nnx.Module):
    """A table of vectors looked up by integers. embedding: [num, features], standard normal.

    An index outside the table gives NaN, never the vector of another index.
    """

    def __init__(self, num: int, features: int, *, rngs: nnx.Rngs):
        self.embedding = parameter(rngs, (num, features), standard_normal)

    def __call__(self, index: Array) -> Array:
        table = self.embedding[...]
        # negative indices would count from the end
        index = jnp.where(index < 0, len(table), index)
        return jnp.take(table, index, axis=0, mode="fill")


class TimeEmbedding(nnx.Module):
    """Two linear layers with an activation between them, over sinusoidal features.

    Args:
      act: the name of the activation.
      cond_features: of a vector that is projected and joins the features; None for none.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        act: str = "silu",
        cond_features: int | None = None,
        rngs: nnx.Rngs,
    ):
        if cond_features is not None:
            self.cond_proj = Linear(cond_features, in_features, bias=False, rngs=rngs)
        self.linear_1 = Linear(in_features, out_features, rngs=rngs)
        self.linear_2 = Linear(out_features, out_features, rngs=rngs)
        self.act = activation(act)

    def __call__(self, features: Array, cond: Array | None = None) -> Array:
        if cond is not None:
            features = features + self.cond_proj(cond)
        return self.linear_2(self.act(self.linear_1(features)))


class Downsample(nnx.Module):
    """Halve every spatial axis by a 3-wide convolution of stride 2, or by averaging pairs.

    Args:
      padding: 1 pads both sides by one element; 0 pads one element at the high side only. They
        sample different positions, so that trained weights fit only one of them.
    """

    def __init__(self, channels: int, *, dims: int, padding: int, rngs: nnx.Rngs):
        sides = ((0, 1),) * dims if padding == 0 else padding
        self.conv = Conv(channels, channels, (3,) * dims, strides=2, padding=sides, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Enlarge the spatial axes to `size` by the nearest element, then convolve, 3 wide."""

    def __init__(self, channels: int, *, dims: int, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, (3,) * dims, rngs=rngs)

    def __call__(self, x: Array, size: Sequence[int]) -> Array:
        return self.conv(operations.upsample_nearest(x, size))


class ResidualBlock(nnx.Module):
    """scale (x + conv(SiLU(norm(conv(SiLU(norm(x))) with the time)))), of UNets and autoencoders.

        h = conv1(resize(SiLU(norm1(x))))
        h = norm2(h + W temb)                              scale_shift off (DDPM)
        h = norm2(h) (1 + scale) + shift,  (scale, shift) = W temb    scale_shift on (ADM)
        y = residual_scale (shortcut(resize(x)) + conv2(dropout(SiLU(h))))

    Source: DDPM, arXiv:2006.11239, appendix B; scale and shift, resizing: ADM, arXiv:2105.05233;
    filters and scale of the sum: score SDEs, arXiv:2011.13456, appendix H.

    Args:
      time_features: of temb; None for a block without time.
      num_groups: of both norms, see `GroupNorm`.
      input_groups: of the first norm, where it has another number.
      resize: None, "down" (average pairs) or "up" (nearest element, to the size of the call).
      fir: taps of a filter that resizes instead of averages and nearest elements, see
        `operations.fir_downsample`.
      projected: a 1-wide convolution in the shortcut even where the channels stay the same.
      residual_scale: factor on the sum; 1 / sqrt(2) keeps the variance.
      act: the name of the activation in the place of SiLU.
      z_channels: of an image z that the norms read, which are then `SpatialNorm`s; None for none.
      zero: start conv2 at zero, so that the block starts as its shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_features: int | None,
        *,
        dims: int,
        num_groups: int | None,
        input_groups: int | None = None,
        eps: float,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resize: str | None = None,
        fir: Sequence[float] | None = None,
        projected: bool = False,
        residual_scale: float = 1.0,
        act: str = "silu",
        z_channels: int | None = None,
        zero: bool,
        rngs: nnx.Rngs,
    ):
        def norm(channels: int, groups: int | None = num_groups) -> nnx.Module:
            if z_channels is not None:
                return SpatialNorm(channels, z_channels, dims=dims, rngs=rngs)
            return GroupNorm(channels, groups, eps=eps)

        window = (3,) * dims
        self.norm1 = norm(in_channels, input_groups or num_groups)
        self.conv1 = Conv(in_channels, out_channels, window, rngs=rngs)
        if time_features is not None:
            self.time_emb_proj = Linear(time_features, out_channels * (1 + scale_shift), rngs=rngs)
        self.norm2 = norm(out_channels)
        self.conv2 = Conv(out_channels, out_channels, window, zero=zero, rngs=rngs)
        self.projected = projected or in_channels != out_channels
        if self.projected:
            self.conv_shortcut = Conv(in_channels, out_channels, (1,) * dims, rngs=rngs)
        self.act = activation(act)
        self.dropout = dropout
        self.scale_shift = scale_shift
        self.resize = resize
        self.fir = None if fir is None else tuple(fir)
        self.residual_scale = residual_scale

    def __call__(
        self,
        x: Array,
        temb: Array | None,
        keys: Array | None = None,
        size: Sequence[int] = (),
        z: Array | None = None,
    ) -> Array:
        """x: [B, *spatial, in]; temb: [B, time_features], already behind its SiLU."""
        z_of_norms = () if z is None else (z,)
        h = self.act(self.norm1(x, *z_of_norms))
        h = self.conv1(self._resize(h, size))
        h = self.norm2(h, *z_of_norms) if temb is None else self._norm_with_time(h, temb)
        h = self.conv2(dropout(self.act(h), keys, self.dropout))
        x = self._resize(x, size)
        return (h + (self.conv_shortcut(x) if self.projected else x)) * self.residual_scale

    def _norm_with_time(self, h: Array, temb: Array) -> Array:
        time = self.time_emb_proj(temb)
        time = time.reshape(time.shape[0], *(1,) * (h.ndim - 2), -1)
        if not self.scale_shift:
            return self.norm2(h + time)
        scale, shift = jnp.split(time, 2, axis=-1)
        return self.norm2(h) * (1 + scale) + shift

    def _resize(self, x: Array, size: Sequence[int]) -> Array:
        if self.resize == "down":
            return halve(x, self.fir)
        return enlarge(x, size, self.fir) if self.resize == "up" else x


def halve(x: Array, fir: Sequence[float] | None = None) -> Array:
    """Halve every spatial axis: average pairs, or filter with the taps `fir`.

    The last element of an odd axis is left out.
    """
    if fir is not None:
        return operations.fir_downsample(x, fir)
    even = tuple(slice(n // 2 * 2) for n in x.shape[1:-1])
    return operations.avg_pool(x[:, *even], 2)


def enlarge(x: Array, size: Sequence[int], fir: Sequence[float] | None = None) -> Array:
    """Bring the spatial axes back to `size`: by the nearest element, or by the taps `fir`."""
    if fir is not None:
        return operations.fir_upsample(x, fir, size)
    return operations.upsample_nearest(x, size)


def dropout(x: Array, keys: Array | None, rate: float) -> Array:
    """Zero each element with probability `rate` and divide the others by 1 - rate.

    The draws of sample i come from keys[i] alone. Without keys, x is returned as it is.

    Args:
      x: [B, ...].
      keys: [B] PRNG keys, or None.
      rate: in [0, 1), a Python number.
    """
    if keys is None or rate == 0.0:
        return x
    # flat draws: XLA on a CPU compiles them three times faster than shaped ones
    bits = jax.vmap(lambda key: jax.random.bits(key, (math.prod(x.shape[1:]),)))(keys)
    keep = bits.reshape(x.shape) >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def sinusoidal_features(
    t: Array, features: int, *, flip_sin_to_cos: bool = False, freq_shift: float = 1.0
) -> Array:
    """Sines and cosines of t at geometrically spaced frequencies.

        w_i = 10000^(-i / (features / 2 - freq_shift)),    [sin(w t), cos(w t)]

    Source: Attention Is All You Need, arXiv:1706.03762, section 3.5. Trained networks disagree on
    two points, which are therefore arguments.

    Args:
      t: [B] clock, any real numbers.
      features: size of the result; an odd one is filled with a zero.
      flip_sin_to_cos: cosines first.
      freq_shift: 1 in DDPM (the last frequency is 1 / 10000), 0 in the transformer and in ADM.

    Returns:
      [B, features], float32.

    >>> sinusoidal_features(jnp.arange(3), 8).shape
    (3, 8)
    """
    half = features // 2
    rates = jnp.exp(
        jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - freq_shift))
    )
    angles = t.astype(jnp.float32)[:, None] * rates
    waves = (
        [jnp.cos(angles), jnp.sin(angles)]
        if flip_sin_to_cos
        else [jnp.sin(angles), jnp.cos(angles)]
    )
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, features % 2)))


def require_heads(channels: int, head_dim: int) -> None:
    """Raise ValueError, naming both, unless a head fits into the channels of an attention."""
    if not 0 < head_dim <= channels:
        raise ValueError(f"head_dim is {head_dim}; an attention of {channels} channels has no head")


def require_divisible(number: int, divisor: int, what: str, by: str) -> None:
    """Raise ValueError, naming both, unless `divisor` divides `number`."""
    if divisor < 1 or number % divisor:
        raise ValueError(f"{what} ({number}) must be a multiple of {by} ({divisor})")
