"""Patches of photographs: their place in the pictures, and that the splits share no pixel."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from diffjax import data

PICTURES = np.stack(load_sample_images().images)


def column_of(patch, picture):
    """The column at which a patch lies in a picture; found by its first row of pixels."""
    height, width = picture.shape[0] - 31, picture.shape[1] - 31
    for top in range(height):
        row = picture[top]
        for left in np.flatnonzero((row[:width] == patch[0, 0]).all(-1)):
            if np.array_equal(picture[top : top + 32, left : left + 32], patch):
                return left
    raise AssertionError("the patch is not in the picture")


@pytest.mark.parametrize(("split", "columns"), [("train", (0, 480)), ("test", (512, 608))])
def test_patches_lie_in_the_part_of_their_split_and_the_label_names_the_picture(split, columns):
    source = data.load("photos", split=split)
    assert (source.shape, source.num_classes) == ((32, 32, 3), 2)
    for index in range(0, len(source), len(source) // 9):
        example = source[index]
        found = column_of(example["image"], PICTURES[example["label"]])
        assert columns[0] <= found <= columns[1]


def test_a_patch_is_a_function_of_its_number():
    one, other = data.photos(), data.photos()
    np.testing.assert_array_equal(one[77]["image"], other[77]["image"])
    assert not np.array_equal(one[77]["image"], one[79]["image"])


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no split 'seen'"):
        data.load("photos", split="seen")
    with pytest.raises(ValueError, match="size is 500"):
        data.load("photos", image_size=500)
    with pytest.raises(IndexError, match="20000"):
        data.photos()[20_000]
