"""Measurement operators for pictures: what a camera, a scanner or a lossy format does to x0.

Each builder returns a function of a batch, [B, ...] -> [B, ...], linear in x0. Those that know
their singular values are `Spectral`.

| operator                           | measurement                          | singular values |
| ---------------------------------- | ------------------------------------ | --------------- |
| mask(keep)                         | some pixels                          | known           |
| blur(kernel)                       | convolution with any kernel          | by decompose    |
| separable_blur(kernel, shape)      | convolution along both axes          | known           |
| downsample(shape, factor)          | fewer pixels, by area or bicubic     | known           |
| grey()                             | luminance of a colour picture        | known           |
| fourier(keep)                      | some frequencies (MRI)               | known           |
| radon(angles)                      | projections (CT)                     | by decompose    |
| heat(shape, time)                  | diffusion, as in inverse heat models | known           |
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates
from numpy.typing import ArrayLike

from diffjax.transforms.linear import Operator
from diffjax.transforms.spectral import Spectral, decompose, fourier, mask, separable

__all__ = [
    "blur",
    "decompose",
    "downsample",
    "fourier",
    "gaussian_kernel",
    "grey",
    "heat",
    "mask",
    "radon",
    "separable",
    "separable_blur",
]

BOUNDARIES: dict[str, Any] = {"reflect": "symmetric", "wrap": "wrap", "constant": "constant"}
SCALINGS = ("area", "cubic")


def blur(kernel: ArrayLike, *, boundary: str = "reflect") -> Operator:
    """Convolve every channel with a kernel; y has the shape of x.

    Args:
      kernel: [h, w], both odd; may be traced.
      boundary: what lies outside: "reflect" (the picture mirrored at its edge), "wrap" (the
        other side) or "constant" (0).

    Raises:
      ValueError: a kernel with an even side or other than two axes, or another boundary.

    >>> blur([[0.25, 0.5, 0.25]])(jnp.array([0.0, 4.0, 0.0]).reshape(1, 1, 3, 1)).ravel()
    Array([1., 2., 1.], dtype=float32)
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 2 or 0 in (kernel.shape[0] % 2, kernel.shape[1] % 2):
        raise ValueError(f"kernel has shape {kernel.shape}; blur needs [h, w], both odd.")
    mode = BOUNDARIES[_one_of("boundary", boundary, BOUNDARIES)]
    # a convolution turns its kernel round, lax's does not
    weights = kernel[::-1, ::-1, None, None]

    def apply(x: Array) -> Array:
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}; blur needs pictures [B, H, W, C].")
        pads = [(0, 0), *((size // 2, size // 2) for size in kernel.shape), (0, 0)]
        padded = jnp.pad(x, pads, mode=mode)
        # channels join the batch: XLA is slow at grouped convolutions
        planes = jnp.moveaxis(padded, -1, 1).reshape(-1, *padded.shape[1:3], 1)
        blurred = lax.conv_general_dilated(
            planes, weights.astype(x.dtype), (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        stacked = blurred.reshape(x.shape[0], x.shape[-1], *blurred.shape[1:3])
        return jnp.moveaxis(stacked, 1, -1)

    return apply


def separable_blur(
    kernel: ArrayLike, shape: tuple[int, int], *, boundary: str = "reflect"
) -> Spectral:
    """Convolve every channel with the same kernel along rows and columns; its SVD is known.

    Args:
      kernel: [n], odd, for example `gaussian_kernel(std)`; concrete.
      shape: (H, W) of the pictures.
      boundary: as for `blur`.

    Raises:
      ValueError: a kernel of even length or with several axes, or another boundary.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 1 or kernel.size % 2 == 0:
        raise ValueError(f"kernel has shape {kernel.shape}; separable_blur needs [n], n odd.")
    mode, radius = BOUNDARIES[_one_of("boundary", boundary, BOUNDARIES)], kernel.size // 2

    def along(n: int) -> np.ndarray:
        padded = np.pad(np.eye(n), [(radius, radius), (0, 0)], mode=mode)
        return np.sum([w * padded[i : i + n] for i, w in enumerate(kernel[::-1])], axis=0)

    return separable([*(along(n) for n in shape), None])


def gaussian_kernel(std: float) -> np.ndarray:
    """A Gaussian cut at four standard deviations, with sum 1: [2 ceil(4 std) + 1] float64.

    Raises:
      ValueError: std, in pixels, is not positive.

    >>> gaussian_kernel(0.3).round(3)
    array([0.   , 0.004, 0.992, 0.004, 0.   ])
    """
    if not std > 0:
        raise ValueError(f"std is {std}; a Gaussian kernel needs a positive one.")
    radius = int(np.ceil(4.0 * std))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return weights / weights.sum()


def downsample(shape: tuple[int, int], factor: int, *, method: str = "area") -> Spectral:
    """Make a picture smaller by a whole factor.

    Args:
      shape: (H, W) of the pictures, multiples of the factor.
      factor: 2 halves both sides.
      method: "area", the mean of each block; or "cubic", Keys' cubic kernel as wide as the factor
        (bicubic with antialiasing).

    Raises:
      ValueError: the factor is below 1 or does not divide both sides, or another method.

    >>> downsample((2, 2), 2)(jnp.arange(4.0).reshape(1, 2, 2, 1)).round(4).tolist()
    [[[[1.5]]]]
    """
    _one_of("method", method, SCALINGS)
    if factor < 1 or any(size % factor for size in shape):
        raise ValueError(f"shape is {shape}; downsample needs multiples of the factor {factor}.")
    if method == "area":
        along = lambda n: np.kron(np.eye(n // factor), np.full((1, factor), 1.0 / factor))
    else:
        along = lambda n: jax.image.resize(jnp.eye(n), (n // factor, n), method)
    with jax.ensure_compile_time_eval():
        return separable([*(np.asarray(along(n)) for n in shape), None])


def grey(weights: ArrayLike = (0.299, 0.587, 0.114)) -> Spectral:
    """Colour to grey: [B, H, W, 3] -> [B, H, W, 1], by default the luma of ITU-R BT.601.

    Args:
      weights: [3] of red, green and blue.

    >>> grey()(jnp.ones((1, 1, 1, 3))).round(4).tolist()
    [[[[1.0]]]]
    """
    return separable([None, None, np.asarray(weights)[None]])


def radon(angles: ArrayLike) -> Operator:
    """Parallel projections, as in computed tomography: a sinogram.

        y(angle, s) = integral of x0 along the line at distance s from the centre

    The picture is the square [-1, 1]^2 and 0 outside; at angle 0 the lines are its columns. The
    integral is a sum over bilinear interpolants, at as many points as a row has pixels.

    Args:
      angles: [A] in degrees; half a turn shows everything.

    Returns:
      An operator [B, N, N, C] -> [B, A, N, C], one detector for each column.

    Raises:
      ValueError: no angles, or several axes of them; when it is called, pictures that are not
        square.

    >>> radon([0.0])(jnp.ones((1, 4, 4, 1)))[0, 0, :, 0]
    Array([2., 2., 2., 2.], dtype=float32)
    """
    angles = np.deg2rad(np.asarray(angles, np.float64))
    if angles.ndim != 1 or not angles.size:
        raise ValueError(f"angles has shape {angles.shape}; radon needs [A], one or more.")

    def apply(x: Array) -> Array:
        if x.ndim != 4 or x.shape[1] != x.shape[2]:
            raise ValueError(f"x has shape {x.shape}; radon needs square pictures [B, N, N, C].")
        size = x.shape[1]
        centred = np.arange(size) - 0.5 * (size - 1)
        along, across = np.meshgrid(centred, centred, indexing="ij")
        cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
        rows, columns = cos * along - sin * across, sin * along + cos * across
        middle = 0.5 * (size - 1)
        points = [jnp.asarray(middle + values, x.dtype) for values in (rows, columns)]
        project = lambda plane: map_coordinates(plane, points, order=1).sum(axis=1)
        planes = jnp.moveaxis(x, -1, 1)
        sinograms = jax.vmap(jax.vmap(project))(planes) * (2.0 / size)
        return jnp.moveaxis(sinograms, 1, -1)

    return apply


def heat(shape: tuple[int, int], time: float) -> Spectral:
    """Heat that spreads in a picture with insulated edges, up to a time.

        A = C^T diag(exp(-time (pi i / H)^2 - time (pi j / W)^2)) C,    C the cosine transform

    That is a Gaussian blur of sqrt(2 time) pixels, and the forward process of inverse heat
    dissipation. Source: arXiv:2206.13397, Eq. 6.

    Args:
      shape: (H, W) of the pictures.
      time: at 0 nothing happens.

    Raises:
      ValueError: the time is negative.

    >>> heat((2, 2), 100.0)(jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 2, 2, 1)).ravel().round(3)
    Array([4., 4., 4., 4.], dtype=float32)
    """
    if not time >= 0:
        raise ValueError(f"time is {time}; heat spreads for 0 or more, not backwards.")

    def along(n: int) -> np.ndarray:
        frequencies, places = np.arange(n)[:, None], np.arange(n) + 0.5
        cosines = np.sqrt(2.0 / n) * np.cos(np.pi / n * frequencies * places)
        cosines[0] /= np.sqrt(2.0)
        return cosines.T @ (np.exp(-time * (np.pi * np.arange(n) / n) ** 2)[:, None] * cosines)

    return separable([*(along(n) for n in shape), None])


def _one_of(name: str, value: str, choices) -> str:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
    return value
