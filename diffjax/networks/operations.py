"""The array operations of the networks: convolution, normalisation, attention, resizing.

All arrays put the batch first and the channels last, with any number of spatial axes between.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | int | Sequence[tuple[int, int]]


def conv(x, kernel, bias=None, *, strides: int | Sequence[int] = 1, padding: Padding = "SAME"):
    """Convolve x with kernel (a cross-correlation, as networks mean it) and add bias.

    x: [B, *spatial, Cin]; kernel: [*window, Cin, Cout]; bias: [Cout] or None.
    padding: "SAME", "VALID", one integer for every side, or a (low, high) pair for each axis.
    """
    spatial = x.ndim - 2
    strides = (strides,) * spatial if isinstance(strides, int) else tuple(strides)
    if isinstance(padding, int):
        padding = ((padding, padding),) * spatial
    axes = "DHW"[3 - spatial :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    y = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)
    return y if bias is None else y + bias


def group_norm(x, scale, bias, *, num_groups: int, eps: float):
    """Normalise each group of channels over space, then scale and shift each channel.

    x: [B, *spatial, C]; scale, bias: [C]. The statistics are float32 whatever the dtype of x.
    """
    channels = x.shape[-1]
    groups = x.astype(jnp.float32).reshape(x.shape[0], -1, num_groups, channels // num_groups)
    mean = groups.mean((1, 3), keepdims=True)
    variance = jnp.square(groups - mean).mean((1, 3), keepdims=True)
    y = ((groups - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
    return (y * scale + bias).astype(x.dtype)


def attention(q, k, v, *, mask=None):
    """Mix the values by softmax(q k^T / sqrt(head_dim)), with the softmax in float32.

    q: [B, L, heads, head_dim]; k, v: [B, S, heads, head_dim].
    mask: boolean, broadcastable to [B, heads, L, S]; True where attention may look.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def upsample_nearest(x, size: int | Sequence[int]):
    """Enlarge the spatial axes by repeating the nearest element.

    size: an integer is a factor for every axis; a sequence is the new size of each axis.
    """
    spatial = x.shape[1:-1]
    target = tuple(n * size for n in spatial) if isinstance(size, int) else tuple(size)
    for axis, (old, new) in enumerate(zip(spatial, target), start=1):
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x


def avg_pool(x, factor: int = 2):
    """Average disjoint blocks of factor elements along every spatial axis."""
    shape = [x.shape[0]]
    for n in x.shape[1:-1]:
        shape += [n // factor, factor]
    blocks = x.reshape(*shape, x.shape[-1])
    return blocks.mean(tuple(range(2, blocks.ndim - 1, 2)))


def space_to_depth(x, block: int = 2):
    """Move blocks of block elements along every spatial axis into the channels.

    [B, H, W, C] becomes [B, H / block, W / block, block * block * C], block rows slowest.
    """
    shape = [x.shape[0]]
    for n in x.shape[1:-1]:
        shape += [n // block, block]
    y = x.reshape(*shape, x.shape[-1])
    coarse = range(1, y.ndim - 1, 2)
    fine = range(2, y.ndim - 1, 2)
    y = y.transpose(0, *coarse, *fine, y.ndim - 1)
    return y.reshape(x.shape[0], *(n // block for n in x.shape[1:-1]), -1)


def depth_to_space(x, block: int = 2):
    """Undo space_to_depth: [B, H, W, block * block * C] becomes [B, H * block, W * block, C]."""
    spatial = x.shape[1:-1]
    dims = len(spatial)
    channels = x.shape[-1] // block**dims
    y = x.reshape(x.shape[0], *spatial, *(block,) * dims, channels)
    order = [axis for i in range(dims) for axis in (1 + i, 1 + dims + i)]
    y = y.transpose(0, *order, y.ndim - 1)
    return y.reshape(x.shape[0], *(n * block for n in spatial), channels)
