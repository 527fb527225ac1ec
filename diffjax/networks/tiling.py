"""Autoencoders of large pictures in parts: tiles that overlap, one after another.

    y(place) = sum over tiles of w f(tile) / sum of w

where w falls linearly towards the sides of a tile. The memory of activations is that of one tile of
one picture. Norms and attention see one tile alone, so that the result is not quite that of the
whole; the overlap hides it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.networks.autoencoder_blocks import Autoencoder
from diffjax.networks.functional import Params
from diffjax.transforms.tiles import tile_starts


def in_tiles(
    network: Autoencoder, factor: int, *, tile: int = 64, overlap: int = 16
) -> Autoencoder:
    """An autoencoder that works on tiles; pictures of no more than a tile are one.

    Args:
      network: see `autoencoder_kl`.
      factor: pixels a side for one latent.
      tile: side of a tile, in latents.
      overlap: of neighbouring tiles, in latents, at least 1 and less than the tile.

    >>> cells = lambda x: x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
    >>> whole = Autoencoder(lambda key: {}, lambda params, x: cells(x), lambda params, z: 2 * z)
    >>> in_tiles(whole, 2, tile=4, overlap=1).encode({}, jnp.ones((3, 20, 14, 1))).shape
    (3, 10, 7, 1)
    """
    if not 1 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; it must be at least 1 and less than tile {tile}")

    def encode(params: Params, x: Array) -> Any:
        return _on_tiles(lambda part: network.encode(params, part), x, tile, overlap, factor, 1)

    def decode(params: Params, z: Array) -> Array:
        return _on_tiles(lambda part: network.decode(params, part), z, tile, overlap, 1, factor)

    return Autoencoder(network.init, encode, decode)


def _on_tiles(
    function: Callable[[Array], Any], x: Array, tile: int, overlap: int, into: int, out_of: int
) -> Any:
    """A function of [1, h, w, C] on tiles of x [B, H, W, C]: a tree of arrays.

    A latent is `into` elements a side of x, and `out_of` elements of the result.
    """
    canvas = x.shape[1] // into, x.shape[2] // into
    sides = tuple(min(tile, size) for size in canvas)
    starts = tile_starts(canvas, sides, [max(1, side - overlap) for side in sides])
    places = np.stack(np.meshgrid(np.arange(len(x)), *starts, indexing="ij"), -1).reshape(-1, 3)
    weights = [_ramps(side * out_of, overlap * out_of) for side in sides]
    weight = jnp.asarray(np.multiply.outer(*weights)[None, ..., None], jnp.float32)
    shares = np.multiply.outer(*[
        _summed(each, first * out_of, size * out_of)
        for each, first, size in zip(weights, starts, canvas)
    ])  # fmt: skip

    def corner(place: Array, scale: int) -> tuple:
        return place[0], scale * place[1], scale * place[2], 0

    def run(place: Array) -> Any:
        size = (1, sides[0] * into, sides[1] * into, x.shape[3])
        return function(lax.dynamic_slice(x, corner(place, into), size))

    def add(total: Any, place: Array) -> tuple[Any, None]:
        def lay(whole: Array, part: Array) -> Array:
            at = corner(place, out_of)
            here = lax.dynamic_slice(whole, at, part.shape)
            return lax.dynamic_update_slice(whole, here + weight * part, at)

        return jax.tree.map(lay, total, run(place)), None

    shape = len(x), canvas[0] * out_of, canvas[1] * out_of
    made = jax.eval_shape(run, jnp.asarray(places[0]))
    empty = jax.tree.map(lambda each: jnp.zeros((*shape, each.shape[-1]), each.dtype), made)
    total, _ = lax.scan(add, empty, jnp.asarray(places))
    return jax.tree.map(lambda each: each / jnp.asarray(shares[..., None], each.dtype), total)


def _ramps(side: int, overlap: int) -> np.ndarray:
    """Weights along a tile: they rise over the overlap, and fall again."""
    place = np.arange(side) + 0.5
    return np.minimum(1.0, np.minimum(place, side - place) / overlap)


def _summed(weights: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """The sum of the weights of all tiles along an axis."""
    total = np.zeros(size)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
