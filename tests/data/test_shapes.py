"""The pictures show what their captions say, by measures that share nothing with the drawing."""

import re

import numpy as np
import pytest

from diffjax import data
from diffjax.data.shapes import COLOURS, HELD_OUT, SIDE
from diffjax.metrics.objects import find_objects

NUMBERS = {"a": 1, "two": 2, "three": 3}
GROUP = r"(a|two|three) (?:(small|large) )?(\w+) (circle|square|triangle)s?"
# the axis along which objects differ, and whether the first group has the smaller coordinate
SIDES = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}


def groups_of(caption):
    return re.findall(GROUP, caption)


def things_of(group, objects):
    return [thing for thing in objects if thing.colour == group[2]]


@pytest.mark.parametrize("split", ["train", "seen", "held_out"])
def test_pictures_show_what_their_captions_say(split):
    source = data.load("shapes", split=split)
    for index in range(150):
        example = source[index]
        caption, objects = example["caption"], find_objects(example["image"], COLOURS)
        groups = groups_of(caption)
        assert len(objects) == sum(NUMBERS[group[0]] for group in groups), caption
        for group in groups:
            things = things_of(group, objects)
            assert len(things) == NUMBERS[group[0]], caption
            assert {thing.shape for thing in things} == {group[3]}, caption
            if group[1]:
                assert {thing.size > 8.5 for thing in things} == {group[1] == "large"}, caption
        for relation, (axis, sign) in SIDES.items():
            if relation in caption:
                first, second = (
                    [sign * getattr(thing, axis) for thing in things_of(group, objects)]
                    for group in groups
                )
                assert max(first) < min(second), caption
        if " at the " in caption:
            thing = objects[0]
            assert (thing.x < SIDE / 2) == ("left" in caption)
            assert (thing.y < SIDE / 2) == ("top" in caption)


def test_held_out_pairs_are_in_every_held_out_caption_and_in_no_other():
    for split, expected in (("train", False), ("seen", False), ("held_out", True)):
        source = data.load("shapes", split=split)
        for index in range(300):
            pairs = {group[2:4] for group in groups_of(str(source.scene(index)))}
            assert bool(pairs & set(HELD_OUT)) == expected


def test_captions_use_every_word_and_rarely_repeat_the_picture():
    source = data.load("shapes")
    captions = [str(source.scene(index)) for index in range(1500)]
    words = set(" ".join(captions).split())
    assert {*COLOURS, "small", "large", "two", "three", "above", "below", "top", "bottom"} <= words
    images = np.stack([source[index]["image"].ravel() for index in range(300)])
    assert len(np.unique(images, axis=0)) > 295


def test_a_picture_is_a_function_of_split_and_index():
    one, other = data.load("shapes"), data.load("shapes")
    np.testing.assert_array_equal(one[7]["image"], other[7]["image"])
    assert one[7]["caption"] == other[7]["caption"] == str(one.scene(7))
    assert (one[7]["image"] != data.load("shapes", split="seen")[7]["image"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "test"}, "no split 'test'"), ({"image_size": 32}, "24"), ({"path": "x"}, "path")],
)
def test_options_that_do_not_apply_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("shapes", **options)


def test_an_index_outside_of_the_split_is_refused():
    with pytest.raises(IndexError, match="200000"):
        data.load("shapes")[200_000]
