"""Coloured shapes on a plain background, found and measured in a picture.

    cover_c  = <background - pixel, background - c> / |background - c|^2     of each colour c
    colour   = the c whose mixture with the background is nearest to the pixel
    object   = neighbouring pixels of one colour with cover above 1/2
    fill     = cover of the object / (its width x its height)
    lean     = how far its centre of mass is below the middle of its box, as a share of the height

What is measured is the picture alone: nothing here knows how pictures are drawn or what they were
meant to show.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from scipy import ndimage

# fill and lean of the shapes, triangles standing on one side: an object is what it is nearest to
SHAPES = {"square": (1.0, 0.0), "circle": (np.pi / 4, 0.0), "triangle": (0.5, 1 / 6)}
# the lean counts twice: half a pixel changes the fill of a small triangle more
WEIGHTS = np.array([1.0, 2.0])

# smaller specks of colour, in pixels that they cover, are noise
LEAST_COVER = 5.0


class Found(NamedTuple):
    """An object of a picture: its colour, its shape, its width or height in pixels, its middle."""

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
    # a line of pixels counts as much as its most covered one
    columns, rows = cover.max(axis=0), cover.max(axis=1)
    width, height = columns.sum(), rows.sum()
    (x, _), (y, end) = _box(columns), _box(rows)
    mass = np.sum(cover.sum(axis=1) * (np.arange(len(rows)) + 0.5)) / area
    measured = np.array([area / (width * height), (mass - y) / end])
    distances = {
        shape: np.linalg.norm(WEIGHTS * (measured - ideal)) for shape, ideal in SHAPES.items()
    }
    shape = min(distances, key=lambda name: distances[name])
    return Found(colour, shape, float(max(width, height)), float(x), float(y))


def _box(lines: np.ndarray) -> tuple[float, float]:
    """The middle and the length of what lines of pixels cover, those at its ends in part."""
    inner = np.flatnonzero(lines > 0.1)
    first, last = inner[0], inner[-1]
    start, end = first + 1 - lines[first], last + lines[last]
    return (start + end) / 2, end - start
