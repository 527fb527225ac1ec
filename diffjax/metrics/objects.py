"""Coloured shapes on a plain background, found and measured in a picture.

    cover_c  = <background - pixel, background - c> / |background - c|^2     of each colour c
    colour   = the c whose mixture with the background is nearest to the pixel
    object   = neighbouring pixels of one colour with cover above 1/2
    shape    = that of the circle, the square and the triangle with the area and the centre of mass
               of the object whose cover is nearest to the object's

What is measured is the picture alone: nothing here knows how pictures are drawn or what they were
meant to show.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from scipy import ndimage

# of a shape of side 1: its area, and how far its centre of mass is below the middle of its box;
# triangles stand on one side
SHAPES = {"square": (1.0, 0.0), "circle": (np.pi / 4, 0.0), "triangle": (0.5, 1 / 6)}
POINTS = 8  # along a pixel, whose share inside is its cover

# smaller specks of colour, in pixels that they cover, are noise
LEAST_COVER = 5.0


class Found(NamedTuple):
    """An object of a picture: its colour, its shape, its width in pixels, the middle of its box."""

    colour: str
    shape: str
    size: float
    x: float
    y: float


def find_objects(
    image: np.ndarray,
    colours: Mapping[str, Sequence[float]],
    background: Sequence[float] = (255, 255, 255),
) -> list[Found]:
    """The circles, squares and triangles of a picture.

    Args:
      image: [H, W, 3] uint8.
      colours: RGB of each colour that objects may have.
      background: RGB between them.

    Returns:
      One entry for each object that covers 5 pixels or more, those of a colour from top to bottom.
      Objects of one colour that touch count as one.

    >>> image = np.full((12, 12, 3), 255, np.uint8)
    >>> image[2:8, 1:7] = (255, 0, 0)
    >>> find_objects(image, {"red": (255, 0, 0), "blue": (0, 0, 255)})
    [Found(colour='red', shape='square', size=6.0, x=4.0, y=5.0)]
    """
    names = list(colours)
    axes = np.array([colours[name] for name in names], float) - background  # [C, 3]
    offset = image.astype(float) - background
    cover = np.clip(offset @ axes.T / np.sum(axes**2, axis=1), 0.0, 1.0)  # [H, W, C]
    missed = np.linalg.norm(offset[..., None, :] - cover[..., None] * axes, axis=-1)
    nearest = np.argmin(missed, axis=-1)
    own = np.take_along_axis(cover, nearest[..., None], axis=-1)[..., 0]
    found = []
    for number, name in enumerate(names):
        mine = (nearest == number) & (own > 0.5)
        labels, count = cast(tuple, ndimage.label(mine, np.ones((3, 3))))
        for label in range(1, count + 1):
            # the rim, less than half covered, belongs to it as well
            part = ndimage.binary_dilation(labels == label, np.ones((3, 3)))
            part &= (labels == label) | (own <= 0.5)
            thing = _measure(np.where(part, cover[..., number], 0.0), name)
            if thing is not None:
                found.append(thing)
    return found


def _measure(cover: np.ndarray, colour: str) -> Found | None:
    """Measure one object, from the share [H, W] of each pixel that it covers."""
    area = cover.sum()
    if area < LEAST_COVER:
        return None
    rows, columns = (np.arange(length) + 0.5 for length in cover.shape)
    x, mass = cover.sum(axis=0) @ columns / area, cover.sum(axis=1) @ rows / area
    best, found = np.inf, None
    for shape, (share, lean) in SHAPES.items():
        size = np.sqrt(area / share)
        y = mass - lean * size
        missed = np.sum((cover - _ideal(shape, size, x, y, cover.shape)) ** 2)
        if missed < best:
            best, found = missed, Found(colour, shape, float(size), float(x), float(y))
    return found


def _ideal(shape: str, size: float, x: float, y: float, extent: tuple[int, ...]) -> np.ndarray:
    """The share [H, W] of each pixel that a shape covers, whose box has its middle at x and y."""
    height, width = extent
    fine = lambda length, middle: ((np.arange(length * POINTS) + 0.5) / POINTS - middle) / size
    u, v = fine(width, x)[None], fine(height, y)[:, None]  # the box is from -1/2 to 1/2
    inside = {
        "square": (np.abs(u) <= 0.5) & (np.abs(v) <= 0.5),
        "circle": u**2 + v**2 <= 0.25,
        "triangle": (np.abs(v) <= 0.5) & (np.abs(u) <= (v + 0.5) / 2),
    }[shape]
    return inside.reshape(height, POINTS, width, POINTS).mean(axis=(1, 3))
