"""Convolution, computed in the way that suits the shape and the platform.

All functions here compute the same sums,

    y[b, o] = sum over taps k of x[b, strides o + k - low] kernel[k],    x = 0 outside,

with o, k and low running over all spatial axes. On GPU and TPU XLA's own convolution does that
best. On the CPU it is slow, above all in the gradient of the kernel (a third of the speed that the
processor has), and its gradients are tens of times slower still inside a loop. There `conv`
rewrites the sum as matrix multiplications over shifted copies of x, which run at full speed
forward, backward and in loops. Their derivatives, of every order and mode, are again of that kind;
nothing here has a derivative rule of its own.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import Array, lax

Padding = str | int | Sequence[tuple[int, int]]
Sides = tuple[tuple[int, int], ...]
Formulation = Callable[[Array, Array, tuple[int, ...], Sides], Array]

# Winograd's tiles pay from so many channels on, and from so many positions in the batch on, because
# the kernel is transformed as well
_WINOGRAD_CHANNELS = 16
_WINOGRAD_POSITIONS = 512
# in two dimensions they take less memory and more operations to compile: for large images only
_WINOGRAD_PIXELS = 1024
# elements up to which x may be copied into patches, 1 GB in float32
_PATCHES = 2**28


def conv(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
) -> Array:
    """Convolve x with a kernel (a cross-correlation, as networks mean it) and add a bias.

    Args:
      x: [B, *spatial, Cin], any number of spatial axes.
      kernel: [*window, Cin, Cout], of the same dtype as x.
      bias: [Cout], or None.
      strides: one integer, or one for each spatial axis.
      padding: zeros around x: one integer for every side, a (low, high) pair for each spatial axis,
        "VALID" for none, or "SAME" for as many as let the output have ceil(size / stride) elements
        (with stride 2 "SAME" pads the high side first; torch's padding=1 is not that).

    Returns:
      [B, *out, Cout], in the dtype of x.

    Raises:
      ValueError: shapes that do not belong together, or an unknown padding.

    >>> conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), strides=2, padding=1).shape
    (1, 2, 2, 5)
    """
    _check_shapes(x, kernel)
    dims = x.ndim - 2
    strides = (strides,) * dims if isinstance(strides, int) else tuple(strides)
    sides = _sides(padding, x.shape[1:-1], kernel.shape[:-2], strides)
    y = _convolve(x, kernel, strides=strides, sides=sides, platform=platform())
    return y if bias is None else y + bias


@partial(jax.jit, static_argnames=("strides", "sides", "platform"))
def _convolve(
    x: Array, kernel: Array, *, strides: tuple[int, ...], sides: Sides, platform: str
) -> Array:
    """Compiled as one, so that networks trace each shape once, and calls outside jit are fast."""
    compute = _formulation(x.shape, kernel.shape, strides, sides, platform)
    if platform != "cpu":
        return compute(x, kernel, strides, sides)
    # half precision is emulated on CPUs: float32 throughout is faster, and rounds once
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return compute(x.astype(wide), kernel.astype(wide), strides, sides).astype(x.dtype)


def _formulation(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    sides: Sides,
    platform: str,
) -> Formulation:
    """The one place that decides how a convolution is computed.

    The platform is the one that JAX computes on by default while the program is traced. All
    formulations agree to rounding: a program traced for one platform and run on another is slower
    there, not wrong.
    """
    if platform != "cpu":
        return native
    size, window, (inputs, outputs) = image[1:-1], kernel[:-2], kernel[-2:]
    unit = all(stride == 1 for stride in strides)
    if unit and prod(window) == 1 and not any(map(sum, sides)):
        return pointwise
    if unit and set(window) == {3} and set(sides) == {(1, 1)}:
        if max(size) <= 2:
            return whole_image
        if min(inputs, outputs) >= _WINOGRAD_CHANNELS and prod(image[:-1]) >= _WINOGRAD_POSITIONS:
            large = len(size) > 1 and prod(size) >= _WINOGRAD_PIXELS
            return partial(winograd, dims=2 if large else 1)
    if prod(image) * prod(window) > _PATCHES:
        return native
    return scattered if unit and 2 * outputs < inputs else patches


def platform() -> str:
    """The platform on which JAX now computes by default: "cpu", "gpu" or "tpu"."""
    device = getattr(jax.config, "jax_default_device", None)
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def native(x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides) -> Array:
    """XLA's own convolution."""
    axes = "DHW"[5 - x.ndim :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(x, kernel, strides, sides, dimension_numbers=numbers)


def matmul(x: Array, matrix: Array) -> Array:
    """x [..., n] @ matrix [n, m], with all axes but the last of x made one.

    XLA:CPU computes the gradient of the matrix from a transposed copy of the result's gradient if
    that has several such axes, which may take longer than the products.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def pointwise(x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides) -> Array:
    """A window of one element: the same matrix at every position."""
    return matmul(x, kernel.reshape(kernel.shape[-2:]))


def patches(x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides) -> Array:
    """Gather the window around every position, then one matrix multiplication.

    The copies take prod(window) times the memory of x.
    """
    window = kernel.shape[:-2]
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    reach = [
        stride * ((n - w) // stride) + 1
        for n, w, stride in zip(padded.shape[1:-1], window, strides)
    ]
    taps = []
    for tap in itertools.product(*map(range, window)):
        spatial = [slice(k, k + n, stride) for k, n, stride in zip(tap, reach, strides)]
        taps.append(padded[:, *spatial])
    return matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def scattered(x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides) -> Array:
    """One matrix multiplication that gives the products of every tap, then shift and add them.

    The mirror image of `patches`, smaller where there are fewer outputs than inputs. Stride 1.
    """
    window, outputs = kernel.shape[:-2], kernel.shape[-1]
    per_tap = jnp.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1)
    products = jnp.pad(matmul(x, per_tap), ((0, 0), *sides, (0, 0)))
    size = [n - w + 1 for n, w in zip(products.shape[1:-1], window)]
    taps = itertools.product(*map(range, window))
    shifted = [
        part[:, *(slice(k, k + n) for k, n in zip(tap, size))]
        for tap, part in zip(taps, lax.split(products, [outputs] * prod(window), axis=x.ndim - 1))
    ]
    return sum(shifted[1:], shifted[0])


def whole_image(x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides) -> Array:
    """One matrix from all input positions to all output positions of a tiny image.

    For windows of 3 with padding 1 and no side longer than 2: there every position sees every
    other one, and none of the products is wasted on padding (5 of 9 taps at 2x2 are).
    """
    size, outputs = x.shape[1:-1], kernel.shape[-1]
    columns = [
        kernel[tuple(slice(1 - o, 1 - o + n) for o, n in zip(position, size))].reshape(-1, outputs)
        for position in itertools.product(*map(range, size))
    ]
    y = x.reshape(x.shape[0], -1) @ jnp.concatenate(columns, axis=1)
    return y.reshape(*x.shape[:-1], outputs)


def winograd(
    x: Array, kernel: Array, strides: tuple[int, ...], sides: Sides, *, dims: int
) -> Array:
    """Winograd's tiles along the last `dims` spatial axes, patches along the others.

    For windows of 3 with padding 1 and stride 1. Against `patches` alone it does 2/3 of the
    products in one dimension, 4/9 in two, where it also copies less.
    """
    folded = kernel.shape[: kernel.ndim - 2 - dims]
    if folded:
        padded = jnp.pad(x, [(0, 0), *[(1, 1)] * len(folded), *[(0, 0)] * (dims + 1)])
        taps = [
            padded[:, *(slice(k, k + n) for k, n in zip(tap, x.shape[1:]))]
            for tap in itertools.product(*map(range, folded))
        ]
        x = jnp.concatenate(taps, axis=-1)
        kernel = jnp.moveaxis(kernel.reshape(-1, *kernel.shape[len(folded) :]), 0, -3)
        kernel = kernel.reshape(*kernel.shape[:dims], -1, kernel.shape[-1])
    return _winograd(x, kernel)


def _winograd(x: Array, kernel: Array) -> Array:
    """Winograd's minimal filtering F(2, 3) along the last axes of x, one for each of the window's.

    Two neighbouring outputs of a window of 3 take four products instead of six. From the inputs
    d0 .. d3 that they see and the taps g0 .. g2,

        m0 = (d0 - d2) g0                      y0 = m0 + m1 + m2
        m1 = (d1 + d2) (g0 + g1 + g2) / 2      y1 = m1 - m2 - m3
        m2 = (d2 - d1) (g0 - g1 + g2) / 2
        m3 = (d1 - d3) g2

    With channels the products are matrix multiplications, and in several dimensions the rule is
    nested. Source: Lavin and Gray, arXiv:1509.09308, section 4.1.
    """
    dims = kernel.ndim - 2
    axes = range(x.ndim - 1 - dims, x.ndim - 1)
    odd = [(0, n % 2 if axis in axes else 0) for axis, n in enumerate(x.shape)]
    tiles, taps = [jnp.pad(x, odd)], [kernel]
    for axis in axes:
        tiles = [part for tile in tiles for part in _tile_inputs(tile, axis)]
        taps = [part for tap in taps for part in _tile_taps(tap)]
    parts = [matmul(tile, tap) for tile, tap in zip(tiles, taps)]
    for axis in reversed(axes):
        parts = [_tile_outputs(parts[i : i + 4], axis) for i in range(0, len(parts), 4)]
    return parts[0][tuple(map(slice, x.shape[:-1]))]


def _tile_inputs(x: Array, axis: int) -> list[Array]:
    """Combine the four inputs of each pair of outputs along one axis of even length.

    Split and pad, not strided slices, because the transpose of a split is one concatenation, and
    that of a strided slice as slow as the multiplications.
    """
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    d1, d2 = (jnp.squeeze(part, axis + 1) for part in lax.split(pairs, (1, 1), axis + 1))
    d0, d3 = _shift(d2, 1, axis), _shift(d1, -1, axis)
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _shift(x: Array, by: int, axis: int) -> Array:
    """Move x by one element along an axis, let in a zero and drop what leaves."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (by, -by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _tile_taps(kernel: Array) -> list[Array]:
    g0, g1, g2 = kernel
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _tile_outputs(products: Sequence[Array], axis: int) -> Array:
    m0, m1, m2, m3 = products
    pairs = jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=axis + 1)
    return pairs.reshape(*m0.shape[:axis], -1, *m0.shape[axis + 1 :])


def _sides(
    padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Sides:
    """The zeros below and above x along each spatial axis."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(
                f"padding is {padding!r}; give 'SAME', 'VALID', one integer, or a (low, high) "
                "pair for each spatial axis."
            )
        return tuple(lax.padtype_to_pads(size, window, strides, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * len(size)
    if len(padding) != len(size):
        raise ValueError(f"padding has {len(padding)} pairs for {len(size)} spatial axes.")
    return tuple((low, high) for low, high in padding)


def _check_shapes(x: Array, kernel: Array) -> None:
    if kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"x is {x.shape} and the kernel {kernel.shape}; needed are [B, *spatial, Cin] and "
            "[*window, Cin, Cout] with equal Cin and as many window as spatial axes."
        )
