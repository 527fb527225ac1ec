"""Larger canvases than a network was made for: overlapping tiles, averaged at every estimate.

The tiles of a canvas are denoised as a batch and their estimates of x0 averaged where they overlap.
Steps of the solvers are affine in x0, so that averaging estimates is averaging the steps of all
tiles, which is MultiDiffusion. With `repaint` on the canvas this is outpainting: the known picture
lies in the middle, the mask is 1 around it.

Source: MultiDiffusion, arXiv:2302.08113, Eq. 5 with equal weights.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser


def tiled(
    denoise: Denoiser, tile: Sequence[int], *, stride: Sequence[int] | None = None
) -> Denoiser:
    """A denoiser of a canvas of any size from one of tiles.

    The tiles of a canvas follow one another in the batch, those of its first axis slowest: what
    the denoiser is conditioned on has [B x tiles] entries, `jnp.repeat(labels, num_tiles(...))` for
    one label on all tiles of a canvas.

    Args:
      denoise: of [B x tiles, *tile, C].
      tile: its spatial shape.
      stride: distance of neighbouring tiles, from 1 to the tile; by default half of it. The last
        tiles end with the canvas.

    Raises:
      ValueError: the canvas is smaller than a tile, or the stride leaves gaps.

    >>> denoise = tiled(lambda x, level: 2.0 * x, (4, 4))
    >>> denoise(jnp.ones((1, 9, 6, 1)), NoiseLevel(*jnp.ones(3))).shape
    (1, 9, 6, 1)
    """
    steps = tuple(max(side // 2, 1) for side in tile) if stride is None else tuple(stride)

    def denoise_canvas(x: Array, level: NoiseLevel) -> Array:
        starts = tile_starts(x.shape[1:-1], tile, steps)
        count = math.prod(len(each) for each in starts)
        cut = lambda canvas: _cut(canvas, starts, tile)
        spread = lambda leaf: jnp.repeat(leaf, count) if jnp.ndim(leaf) else leaf
        estimate = denoise(cut(x), jax.tree.map(spread, level))
        # summing tiles where they overlap is the transpose of cutting them out
        add_up = lambda tiles: jax.linear_transpose(cut, x)(tiles)[0]
        shares = jnp.asarray(1.0 / tile_counts(x.shape[1:-1], tile, steps)[..., None], x.dtype)
        return jax.tree.map(lambda tiles: add_up(tiles) * shares, estimate)

    return denoise_canvas


def tile_starts(
    canvas: Sequence[int], tile: Sequence[int], stride: Sequence[int]
) -> list[np.ndarray]:
    """Where the tiles start along each spatial axis.

    Args:
      canvas, tile: their spatial shapes.
      stride: distance of neighbouring tiles along each axis.

    Raises:
      ValueError: the three differ in their axes, a tile is larger than the canvas, or the stride
        leaves gaps.

    >>> [starts.tolist() for starts in tile_starts((9, 4), (4, 4), (2, 2))]
    [[0, 2, 4, 5], [0]]
    """
    if not len(canvas) == len(tile) == len(stride):
        raise ValueError(f"canvas {canvas}, tile {tile} and stride {stride} differ in their axes.")
    for size, side, step in zip(canvas, tile, stride):
        if side > size or not 1 <= step <= side:
            raise ValueError(
                f"Tiles of {tuple(tile)} at distances of {tuple(stride)} do not cover a canvas of "
                f"{tuple(canvas)}: a tile may not exceed the canvas, nor the stride the tile."
            )
    ends = [size - side for size, side in zip(canvas, tile)]
    return [np.unique([*range(0, end, step), end]) for end, step in zip(ends, stride)]


def tile_counts(canvas: Sequence[int], tile: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """How many tiles lie over each place of a canvas. Arguments and errors as of `tile_starts`.

    >>> tile_counts((5,), (4,), (2,))
    array([1, 2, 2, 2, 1])
    """
    starts = tile_starts(canvas, tile, stride)
    along = [
        np.bincount((first[:, None] + np.arange(side)).ravel(), minlength=size)
        for first, side, size in zip(starts, tile, canvas)
    ]
    # one axis of counts for each axis of the canvas; they multiply
    return np.prod(np.broadcast_arrays(*np.ix_(*along)), axis=0)


def num_tiles(canvas: Sequence[int], tile: Sequence[int], stride: Sequence[int]) -> int:
    """How many tiles cover a canvas. Arguments and errors as of `tile_starts`.

    >>> num_tiles((9, 4), (4, 4), (2, 2))
    4
    """
    return math.prod(len(starts) for starts in tile_starts(canvas, tile, stride))


def _cut(canvas: Array, starts: list[np.ndarray], tile: Sequence[int]) -> Array:
    """[B, *canvas, C] -> [B x tiles, *tile, C]."""
    axes = len(starts)
    for i, (first, side) in enumerate(zip(starts, tile)):
        # axis 1 + 2 i becomes (tiles along it, place in the tile)
        canvas = jnp.take(canvas, first[:, None] + np.arange(side), axis=1 + 2 * i)
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return canvas.transpose(order).reshape(-1, *tile, canvas.shape[-1])
