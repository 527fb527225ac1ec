"""Captioned pictures of coloured shapes, made as they are read: text to image on a small scale.

    a small red circle at the top left
    three yellow triangles
    two small red circles left of a blue square

and at length, for mixtures of captions,

    the picture shows two small red circles and a large blue square on a white background and the
    red circles are left of the blue square

A picture is 24 x 24 on white and shows one or two groups of equal shapes, whose number, size,
colour, place and relation its caption tells. Picture i of a split is a function of i alone. Three
pairs of colour and shape are in no training picture, so that a model can be asked for something
whose parts it knows and whose combination it never saw.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from diffjax.data.order import uniform_numbers

SIDE = 24
BACKGROUND = (255, 255, 255)
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 225),
    "yellow": (245, 205, 30),
    "purple": (160, 50, 190),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 7, "large": 10}  # pixels across
NUMBERS = ("a", "two", "three")
RELATIONS = ("left of", "right of", "above", "below")
POSITIONS = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
HELD_OUT = (("red", "square"), ("green", "triangle"), ("blue", "circle"))

# images of each split; the numbers from which they are drawn do not overlap
SPLITS = {"train": 200_000, "seen": 10_000, "held_out": 10_000}

# pixels from the middle of one group to that of another, and from the middle of the picture
MARGIN = 3
LAYOUTS = 512  # tried at a time

T = TypeVar("T")


class Numbers:
    """Endless uniform numbers in [0, 1) that are a function of the split and the index."""

    def __init__(self, split: str, index: int):
        if not 0 <= index < SPLITS[split]:
            raise IndexError(f"index is {index}; the split {split} has {SPLITS[split]} pictures.")
        self.seed, self.index, self.place = tuple(SPLITS).index(split), index, 0
        self.first = self._at(0, 64).tolist()

    def _at(self, start: int, stop: int) -> np.ndarray:
        return uniform_numbers(self.seed, self.index, np.arange(start, stop))

    def take(self, count: int) -> np.ndarray:
        """The next numbers: [count] float64."""
        self.place += count
        return self._at(self.place - count, self.place)

    def __next__(self) -> float:
        """The next number; the first of them, which decide on the scene, were made at once."""
        if self.place < len(self.first):
            self.place += 1
            return self.first[self.place - 1]
        return float(self.take(1)[0])


@dataclass(frozen=True)
class Group:
    """Equal shapes. `named` says whether the caption tells their size."""

    number: int
    size: str
    colour: str
    shape: str
    named: bool

    def __str__(self) -> str:
        return self.full if self.named else self.full.replace(f"{self.size} ", "")

    @property
    def full(self) -> str:
        """All that can be said of it."""
        return f"{NUMBERS[self.number - 1]} {self.size} {self.kind}"

    @property
    def kind(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}{'s' if self.number > 1 else ''}"


@dataclass(frozen=True)
class Scene:
    """One group, perhaps at a position, or two groups of different colours in a relation."""

    groups: tuple[Group, ...]
    relation: str | None = None
    position: str | None = None

    def __str__(self) -> str:
        """The caption."""
        if self.relation is not None:
            return f"{self.groups[0]} {self.relation} {self.groups[1]}"
        return f"{self.groups[0]} {self.position}" if self.position else str(self.groups[0])

    @property
    def description(self) -> str:
        """A long caption, which also says what a short one may leave out."""
        shown = " and ".join(group.full for group in self.groups)
        said = f"the picture shows {shown} on a white background"
        if self.relation is None:
            return f"{said} {self.position or 'and nothing else'}"
        first, second = self.groups
        are = "are" if first.number > 1 else "is"
        return f"{said} and the {first.kind} {are} {self.relation} the {second.kind}"

    @property
    def is_held_out(self) -> bool:
        """Whether it shows a pair of colour and shape that no training picture shows."""
        return any((group.colour, group.shape) in HELD_OUT for group in self.groups)


@dataclass(frozen=True)
class Shapes:
    """The source that `shapes` makes; renders on access."""

    split: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return SIDE, SIDE, 3

    @property
    def num_classes(self) -> None:
        return None

    def __len__(self) -> int:
        return SPLITS[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = Numbers(self.split, index)
        scene = _draw_scene(self.split, draw)
        captions = {"caption": str(scene), "long_caption": scene.description}
        return {"image": render(scene, draw), **captions}

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        return _draw_scene(self.split, Numbers(self.split, index))


def shapes(split: str = "train") -> Shapes:
    """Captioned pictures of shapes, 24 x 24 in colour; nothing is downloaded or stored.

    Args:
      split: `train`; `seen`, other pictures of the same kind; `held_out`, where every picture shows
        one of the three pairs of colour and shape that the others never show.

    Raises:
      ValueError: no such split.

    >>> source = shapes()
    >>> source.shape, source[0]["caption"] == str(source.scene(0))
    ((24, 24, 3), True)
    """
    if split not in SPLITS:
        raise ValueError(f"shapes has no split {split!r}; it has {', '.join(SPLITS)}.")
    return Shapes(split)


def render(scene: Scene, draw: Numbers) -> np.ndarray:
    """Draw a scene at a random place that fits its words: [24, 24, 3] uint8.

    Args:
      scene: what to draw.
      draw: the numbers that decide on the places.
    """
    things = [group for group in scene.groups for _ in range(group.number)]
    corners = _place(scene, np.array([SIZES[group.size] for group in things]), draw)
    image = np.full((SIDE, SIDE, 3), BACKGROUND, np.float64)
    for group, (left, top) in zip(things, corners):
        stamp = _stamp(group.shape, SIZES[group.size])[..., None]
        spot = image[top : top + len(stamp), left : left + len(stamp)]
        spot += stamp * (np.array(COLOURS[group.colour]) - spot)
    return np.round(image).astype(np.uint8)


@lru_cache
def _stamp(shape: str, size: int) -> np.ndarray:
    """The share of each pixel that a shape covers, [size, size], by 16 x 16 points in it."""
    points = (np.arange(size * 16) + 0.5) / (size * 16)
    x, y = points[None], points[:, None]
    inside = {
        "circle": (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25,
        "square": (x >= 0) & (y >= 0),
        "triangle": np.abs(x - 0.5) <= 0.5 * y,
    }[shape]
    return inside.reshape(size, 16, size, 16).mean(axis=(1, 3))


def _place(scene: Scene, sizes: np.ndarray, draw: Numbers) -> np.ndarray:
    """The left and top edges of every shape, [n, 2] integers: the first of many layouts that fits.

    No shape touches another one or the edge of the picture.
    """
    count = len(sizes)
    while True:
        numbers = draw.take(LAYOUTS * count * 2)
        room = (SIDE - 1 - sizes)[:, None]
        corners = 1 + np.floor(numbers.reshape(LAYOUTS, count, 2) * room).astype(int)
        # the cheaper question first
        corners = corners[_as_said(scene, corners + sizes[:, None] / 2)]
        apart = _apart(corners, sizes)
        if apart.any():
            return corners[np.argmax(apart)]


def _apart(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether a pixel lies between any two shapes, for each layout: [layouts]."""
    ends = corners + sizes[:, None]
    apart = np.ones(len(corners), bool)
    for i, j in itertools.combinations(range(len(sizes)), 2):
        beside = (ends[:, i] < corners[:, j]) | (ends[:, j] < corners[:, i])
        apart &= beside.any(axis=1)
    return apart


def _as_said(scene: Scene, centres: np.ndarray) -> np.ndarray:
    """Whether the places fit the caption, for each layout; centres: [layouts, n, (x, y)]."""
    if scene.position is not None:
        signs = np.array(
            [-1 if "left" in scene.position else 1, -1 if "top" in scene.position else 1]
        )
        return np.all(signs * (centres - SIDE / 2) >= MARGIN / 2, axis=(1, 2))
    if scene.relation is None:
        return np.ones(len(centres), bool)
    axis, sign = (0 if scene.relation in ("left of", "right of") else 1), 1
    if scene.relation in ("right of", "below"):
        sign = -1
    along = sign * centres[..., axis]
    first = scene.groups[0].number
    return along[:, :first].max(axis=1) + MARGIN <= along[:, first:].min(axis=1)


def _draw_scene(split: str, draw: Numbers) -> Scene:
    """The next scene that belongs to a split."""
    while True:
        scene = _any_scene(draw)
        if scene.is_held_out == (split == "held_out"):
            return scene


def _any_scene(draw: Numbers) -> Scene:
    colours = tuple(COLOURS)
    if next(draw) < 0.4:
        group = _any_group(_pick((1, 2, 3), draw), _pick(colours, draw), draw)
        placed = group.number == 1 and next(draw) < 0.5
        return Scene((group,), position=_pick(POSITIONS, draw) if placed else None)
    first = _pick(colours, draw)
    second = _pick([colour for colour in colours if colour != first], draw)
    groups = (_any_group(_pick((1, 2), draw), first, draw), _any_group(1, second, draw))
    return Scene(groups, relation=_pick(RELATIONS, draw))


def _any_group(number: int, colour: str, draw: Numbers) -> Group:
    shape, size = _pick(SHAPES, draw), _pick(tuple(SIZES), draw)
    return Group(number, size, colour, shape, named=next(draw) < 0.75)


def _pick(options: Sequence[T], draw: Numbers) -> T:
    return options[int(next(draw) * len(options))]
