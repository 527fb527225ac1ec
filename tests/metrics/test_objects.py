"""Objects are measured as they were painted, here by PIL and by hand."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffjax.metrics.objects import find_objects

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 230), "yellow": (250, 210, 20)}
SCALE = 8


def painted(*things, background=(255, 255, 255)):
    """A picture of (shape, colour, left, top, size), drawn large by PIL and shrunk."""
    image = Image.new("RGB", (24 * SCALE, 24 * SCALE), background)
    draw = ImageDraw.Draw(image)
    for shape, colour, left, top, size in things:
        x, y, end = left * SCALE, top * SCALE, size * SCALE
        if shape == "triangle":
            draw.polygon([(x, y + end), (x + end, y + end), (x + end / 2, y)], fill=COLOURS[colour])
        else:
            call = draw.ellipse if shape == "circle" else draw.rectangle
            call([x, y, x + end - 1, y + end - 1], fill=COLOURS[colour])
    return np.asarray(image.resize((24, 24), Image.Resampling.BOX))


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize(("size", "offset"), [(5, 0.0), (6, 0.5), (8, 0.0), (8, 0.5), (12, 0.5)])
def test_shape_colour_size_and_place_of_one_object(shape, size, offset):
    for colour in COLOURS:
        (thing,) = find_objects(painted((shape, colour, 6 + offset, 3 + offset, size)), COLOURS)
        assert (thing.colour, thing.shape) == (colour, shape)
        assert abs(thing.size - size) < 0.8
        assert abs(thing.x - (6 + offset + size / 2)) <= 1
        assert abs(thing.y - (3 + offset + size / 2)) <= 1


def test_several_objects_are_told_apart_by_a_pixel_between_them_or_by_their_colour():
    image = painted(
        ("square", "red", 1, 1, 5),
        ("square", "red", 7, 1, 5),
        ("circle", "blue", 12, 1, 6),
        ("triangle", "yellow", 4, 12, 8),
    )
    things = sorted(thing[:2] for thing in find_objects(image, COLOURS))
    assert things == [
        ("blue", "circle"), ("red", "square"), ("red", "square"), ("yellow", "triangle"),
    ]  # fmt: skip


def test_noise_and_another_background_do_not_matter():
    rng = np.random.default_rng(0)
    clean = painted(("circle", "blue", 3, 4, 8), background=(0, 0, 0))
    noisy = np.clip(clean + rng.normal(0, 6, clean.shape), 0, 255).astype(np.uint8)
    (thing,) = find_objects(noisy, COLOURS, background=(0, 0, 0))
    assert thing[:2] == ("blue", "circle")


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_uneven_paint_soft_edges_and_a_lost_row_leave_the_shape(shape):
    rng = np.random.default_rng(1)
    clean = painted((shape, "red", 6, 5, 7)).astype(float)
    soft = (clean + np.roll(clean, 1, axis=0) + np.roll(clean, 1, axis=1)) / 3
    lost = clean.copy()
    lost[5] = 255.0
    for image in (clean + rng.normal(0, 25, clean.shape), soft, lost):
        (thing,) = find_objects(np.clip(image, 0, 255).astype(np.uint8), COLOURS)
        assert thing.shape == shape


def test_specks_and_empty_pictures_hold_no_objects():
    assert find_objects(painted(), COLOURS) == []
    assert find_objects(painted(("square", "red", 4, 4, 2)), COLOURS) == []
