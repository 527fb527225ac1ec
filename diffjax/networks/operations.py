"""The array operations of the networks: convolution, normalisation, attention, resizing.

Pure functions of arrays with the batch first, the channels last and any number of spatial axes
between. Convolution has a file of its own, `diffjax.networks.convolution`.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from diffjax.networks.convolution import Padding, conv, platform

__all__ = [
    "Padding",
    "attention",
    "avg_pool",
    "conv",
    "depth_to_space",
    "fir",
    "fir_downsample",
    "fir_upsample",
    "group_norm",
    "space_to_depth",
    "upsample_nearest",
]


@partial(jax.jit, static_argnames=("num_groups", "eps"))
def group_norm(x: Array, scale: Array, bias: Array, *, num_groups: int, eps: float) -> Array:
    """Normalise each group of channels over space, then scale and shift each channel.

        y = (x - mean) / sqrt(variance + eps) scale + bias

    with the mean and the (biased) variance of all elements of a sample in the channel's group,
    computed in float32 at least. The sums run over space alone and are folded to groups on a
    [B, C] array: grouping x itself would split the axis along which XLA:CPU vectorises. The
    variance is the mean square of the centred elements, so that a large mean does not cancel it.
    Source: Group Normalization, arXiv:1803.08494, equations 1, 2 and 7.

    Args:
      x: [B, *spatial, C].
      scale, bias: [C].
      num_groups: a divisor of C.
      eps: added to the variance.

    Returns:
      The shape and dtype of x.

    >>> x = jnp.array([[[1.0, 2.0], [5.0, 4.0]]])
    >>> group_norm(x, jnp.ones(2), jnp.zeros(2), num_groups=2, eps=0.0).tolist()
    [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    channels = x.shape[-1]
    if channels % num_groups:
        raise ValueError(f"group_norm: {num_groups} groups do not divide {channels} channels.")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    spatial = tuple(range(1, x.ndim - 1))

    def group_mean(values: Array) -> Array:
        per_channel = values.mean(spatial, keepdims=True)
        groups = per_channel.reshape(*per_channel.shape[:-1], num_groups, -1)
        mean = jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape)
        return mean.reshape(per_channel.shape)

    mean = group_mean(wide)
    variance = group_mean(jnp.square(wide - mean))
    # centred first: where x is nearly constant, x factor - mean factor would be all rounding
    return ((wide - mean) * (scale * lax.rsqrt(variance + eps)) + bias).astype(x.dtype)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Mix the values, by how well their keys match each query.

        y = softmax(scale q k^T + bias) v,    for each head, with the softmax in float32

    On NVIDIA GPUs half-precision attention without mask and bias is cuDNN's fused one, which never
    stores the L x S weights and can be differentiated once, in reverse mode; everywhere else the
    formula as it stands, with derivatives of every order and mode. Many queries take turns there,
    in blocks whose weights fit, which derivatives compute again: memory grows with L + S, not L S.
    Source: Attention Is All You Need, arXiv:1706.03762, equation 1; blocks: arXiv:2112.05682.

    Args:
      q: [B, L, heads, head_dim].
      k, v: [B, S, heads, head_dim].
      mask: boolean, broadcastable to [B, heads, L, S]; True where a query sees a key. A query that
        sees none gets the mean of all values.
      bias: added to the logits, broadcastable to [B, heads, L, S].
      scale: of the logits; None for 1 / sqrt(head_dim).

    Returns:
      [B, L, heads, head_dim], in the dtype of v.

    >>> attention(*[jnp.ones((2, 5, 1, 4))] * 3).shape
    (2, 5, 1, 4)
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if mask is None and bias is None and _fused_attention(q):
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    mix = partial(_mix, k=k, v=v, mask=mask, bias=bias, scale=scale)
    block = _query_block(q, k, mask, bias)
    if block >= q.shape[1]:
        return mix(q)
    count = -(-q.shape[1] // block)
    filled = jnp.pad(q, ((0, 0), (0, count * block - q.shape[1]), (0, 0), (0, 0)))
    blocks = filled.reshape(q.shape[0], count, block, *q.shape[2:])
    mixed = lax.map(jax.checkpoint(mix), jnp.swapaxes(blocks, 0, 1))
    mixed = jnp.swapaxes(mixed, 0, 1).reshape(*filled.shape[:-1], v.shape[-1])
    return mixed[:, : q.shape[1]]


def _mix(q: Array, *, k: Array, v: Array, mask, bias, scale: float) -> Array:
    """The formula of `attention`."""
    # heads before positions, where the batched products need no transposed copies; the division by
    # the sums comes last, on an array of head_dim instead of S columns
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    logits = jnp.einsum("bhld,bhsd->bhls", q, k, preferred_element_type=jnp.float32)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "bhls,bhsd->bhld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    mixed = mixed / weights.sum(-1, keepdims=True)
    return jnp.swapaxes(mixed.astype(v.dtype), 1, 2)


def _query_block(q: Array, k: Array, mask: Array | None, bias: Array | None) -> int:
    """How many queries are mixed at a time.

    All of them where a mask or bias differs between queries, and where each head has fewer than a
    million weights. A CPU wants blocks that stay in its caches and in memory that it holds already;
    accelerators want large ones.
    """
    length, keys = q.shape[1], k.shape[1]
    per_query = [a for a in (mask, bias) if a is not None and a.ndim > 1 and a.shape[-2] > 1]
    if per_query or length * keys < 2**20:
        return length
    weights = 2**21 if platform() == "cpu" else 2**27
    most = max(weights // (q.shape[0] * q.shape[2] * keys), 64)
    return -(-length // -(-length // most))


def _fused_attention(q: Array) -> bool:
    """Whether cuDNN's fused attention takes such queries on this device."""
    if platform() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    # "9.0" on CUDA, a name such as "gfx90a" on ROCm, which has no cuDNN
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    major = capability.split(".")[0]
    return major.isdecimal() and int(major) >= 8 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def upsample_nearest(x: Array, size: int | Sequence[int]) -> Array:
    """Enlarge the spatial axes by repeating the nearest element.

        y[i] = x[floor(i n / m)]    along an axis that grows from n to m elements

    Args:
      x: [B, *spatial, C].
      size: one integer, the factor for every axis; or the new size of each axis.

    >>> upsample_nearest(jnp.array([[[1.0], [2.0]]]), (3,)).ravel()
    Array([1., 1., 2.], dtype=float32)
    """
    spatial = x.shape[1:-1]
    target = tuple(n * size for n in spatial) if isinstance(size, int) else tuple(size)
    if len(target) != len(spatial):
        raise ValueError(f"size {target} has another number of axes than x, {x.shape}.")
    for axis, (old, new) in enumerate(zip(spatial, target), start=1):
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x


def avg_pool(x: Array, factor: int = 2) -> Array:
    """Average disjoint blocks of `factor` elements along every spatial axis.

    Args:
      x: [B, *spatial, C]; factor divides every spatial size.

    >>> avg_pool(jnp.array([[[1.0], [3.0]]])).ravel()
    Array([2.], dtype=float32)
    """
    blocks = _blocks(x, factor, "avg_pool")
    return blocks.mean(tuple(range(2, blocks.ndim - 1, 2)))


def fir(x: Array, taps: Sequence[float], *, padding: tuple[int, int], stride: int = 1) -> Array:
    """Filter every spatial axis with the same taps, scaled to a sum of 1.

        y[i] = sum_k taps[K - 1 - k] x[stride i + k - low],    x = 0 outside

    Written as a sum of K shifted copies for each axis: grouped convolutions are slow backwards.

    Args:
      x: [B, *spatial, C].
      taps: the K weights of the filter along one axis.
      padding: zeros in front of and behind each axis, (low, high).
      stride: keep every stride-th element.

    >>> fir(jnp.array([[[1.0], [3.0]]]), (1, 1), padding=(0, 0)).ravel()
    Array([2.], dtype=float32)
    """
    low, high = padding
    weights = _normalised(taps)
    for axis in range(1, x.ndim - 1):
        count = (x.shape[axis] + low + high - len(weights)) // stride + 1
        x = _correlate(x, weights, axis, start=-low, stride=stride, count=count)
    return x


def fir_downsample(x: Array, taps: Sequence[float]) -> Array:
    """Halve every spatial axis behind a low-pass filter; (1, 1) averages pairs.

    Source: Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486; with the taps
    (1, 3, 3, 1) StyleGAN2, arXiv:1912.04958, and NCSN++, arXiv:2011.13456, appendix H.

    Args:
      x: [B, *spatial, C]; the last element of an odd axis only enters the filter of the one before.
      taps: weights of the filter along one axis.

    >>> fir_downsample(jnp.ones((1, 8, 8, 3)), (1, 3, 3, 1)).shape
    (1, 4, 4, 3)
    """
    length = len(taps)
    return fir(x, taps, padding=((length - 1) // 2, (length - 2) // 2), stride=2)


def fir_upsample(x: Array, taps: Sequence[float], size: Sequence[int]) -> Array:
    """Put zeros between the elements of every spatial axis, then filter with twice the taps.

    For an even number of symmetric taps twice the transpose of `fir_downsample` along each axis;
    (1, 1) repeats each element.

    Args:
      x: [B, *spatial, C].
      taps: weights of the filter along one axis.
      size: the new size of each axis, at most one more than twice the old.

    >>> fir_upsample(jnp.ones((1, 4, 4, 3)), (1, 3, 3, 1), (8, 8)).shape
    (1, 8, 8, 3)
    """
    weights = [2 * tap for tap in _normalised(taps)]
    before = (len(weights) - 1) // 2 + 1
    for axis, length in enumerate(size, start=1):
        phases = []
        for phase in (0, 1):
            # of all taps only every other one meets an element, not a zero
            first = (before - phase) % 2
            start = (phase + first - before) // 2
            count = -(-length // 2)
            phases.append(_correlate(x, weights[first::2], axis, start=start, count=count))
        x = jnp.stack(phases, axis + 1)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        x = lax.slice_in_dim(x, 0, length, axis=axis)
    return x


def _normalised(taps: Sequence[float]) -> list[float]:
    """The taps in reverse, as a convolution has them, with a sum of 1."""
    total = sum(taps)
    return [tap / total for tap in reversed(taps)]


def _correlate(
    x: Array, weights: Sequence[float], axis: int, *, start: int, count: int, stride: int = 1
) -> Array:
    """y[i] = sum_k weights[k] x[start + stride i + k] along an axis for i < count, 0 outside x."""
    end = start + stride * (count - 1) + len(weights)
    low, high = max(-start, 0), max(end - x.shape[axis], 0)
    widths = [(low, high) if n == axis else (0, 0) for n in range(x.ndim)]
    padded = jnp.pad(x, widths)
    first = start + low
    shifted = (
        lax.slice_in_dim(padded, first + k, first + k + stride * (count - 1) + 1, stride, axis)
        for k in range(len(weights))
    )
    terms = [weight * part for weight, part in zip(weights, shifted)]
    return sum(terms[1:], terms[0])


def space_to_depth(x: Array, block: int = 2) -> Array:
    """Move blocks of `block` elements along every spatial axis into the channels.

    Within the new channels the position in the block is slower than the old channel, its rows
    slower than its columns.

    Args:
      x: [B, *spatial, C]; block divides every spatial size.

    Returns:
      [B, *(spatial / block), block^dims C].

    >>> space_to_depth(jnp.ones((1, 8, 8, 3))).shape
    (1, 4, 4, 12)
    """
    blocks = _blocks(x, block, "space_to_depth")
    coarse, fine = range(1, blocks.ndim - 1, 2), range(2, blocks.ndim - 1, 2)
    blocks = blocks.transpose(0, *coarse, *fine, blocks.ndim - 1)
    return blocks.reshape(*blocks.shape[: x.ndim - 1], -1)


def depth_to_space(x: Array, block: int = 2) -> Array:
    """Undo `space_to_depth`.

    Args:
      x: [B, *spatial, C]; block^dims divides C.

    Returns:
      [B, *(spatial block), C / block^dims].

    >>> depth_to_space(jnp.ones((1, 4, 4, 12))).shape
    (1, 8, 8, 3)
    """
    spatial = x.shape[1:-1]
    dims = len(spatial)
    if x.shape[-1] % block**dims:
        raise ValueError(f"depth_to_space: {block}^{dims} does not divide {x.shape[-1]} channels.")
    y = x.reshape(*x.shape[:-1], *(block,) * dims, -1)
    pairs = [axis for i in range(1, 1 + dims) for axis in (i, i + dims)]
    y = y.transpose(0, *pairs, y.ndim - 1)
    return y.reshape(x.shape[0], *(n * block for n in spatial), -1)


def _blocks(x: Array, block: int, caller: str) -> Array:
    """[B, n, ..., C] cut into [B, n / block, block, ..., C]."""
    if any(n % block for n in x.shape[1:-1]):
        raise ValueError(f"{caller}: blocks of {block} do not divide the sides of x, {x.shape}.")
    cut = [side for n in x.shape[1:-1] for side in (n // block, block)]
    return x.reshape(x.shape[0], *cut, x.shape[-1])
