"""Arrays, archives and folders: what they hold, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax.data import Arrays, arrays, image_folder, in_memory, npz
from diffjax.data.sources import fit

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, [5, 4, 6, 3]).astype(np.uint8)
LABELS = np.array([0, 2, 1, 2, 0])


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def test_arrays_give_back_what_they_were_made_of():
    source = arrays(IMAGES, LABELS)
    assert (len(source), source.shape, source.num_classes) == (5, (4, 6, 3), 3)
    np.testing.assert_array_equal(source[3]["image"], IMAGES[3])
    assert source[3]["label"] == 2


def test_grey_images_get_a_channel():
    assert arrays(IMAGES[..., 0]).shape == (4, 6, 1)


def test_an_archive_gives_back_what_was_saved(tmp_path):
    np.savez(tmp_path / "some.npz", images=IMAGES, labels=LABELS)
    source = npz(tmp_path / "some.npz")
    np.testing.assert_array_equal(source.images, IMAGES)
    np.testing.assert_array_equal(source.labels, LABELS)


def test_in_memory_holds_the_same_examples(tmp_path):
    for row, image in enumerate(IMAGES[:, :, :4]):
        save(tmp_path / f"{'ab'[row % 2]}/{row}.png", image)
    source = image_folder(tmp_path, 4)
    kept = in_memory(source)
    assert isinstance(kept, Arrays)
    assert (len(kept), kept.shape, kept.num_classes) == (5, source.shape, 2)
    for row in range(5):
        np.testing.assert_array_equal(kept[row]["image"], source[row]["image"])
        assert kept[row]["label"] == source[row]["label"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, None, "images are float64; expected uint8"),
        (IMAGES[0, 0], None, "shape"),
        (IMAGES.transpose(0, 3, 1, 2), None, "1, 3 or 4 channels"),
        (IMAGES[:0], None, "no pixels"),
        (IMAGES, LABELS[:4], "one for each image"),
        (IMAGES, LABELS / 2, "labels are float64"),
        (IMAGES, LABELS - 1, "count from 0"),
    ],
)
def test_arrays_that_are_not_images_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        arrays(images, labels)


def test_archives_that_hold_no_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz is not a file"):
        npz(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", pictures=IMAGES)
    with pytest.raises(ValueError, match=r"holds pictures; expected an array called images"):
        npz(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz could not be read"):
        npz(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", images=np.array([{}]))
    with pytest.raises(ValueError, match=r"objects\.npz could not be read"):
        npz(tmp_path / "objects.npz")


def test_fit_takes_the_centred_square():
    columns = np.tile(np.repeat([0, 100, 200, 0], 4).astype(np.uint8), (8, 1))
    square = np.asarray(fit(Image.fromarray(columns), 8))
    np.testing.assert_array_equal(square, columns[:, 4:12])


def test_fit_keeps_a_constant_image_constant():
    assert np.unique(np.asarray(fit(Image.new("RGB", (31, 57), (9, 9, 9)), 12))) == [9]


def test_the_folders_of_images_are_their_classes_in_sorted_order(tmp_path):
    for row, name in enumerate(["rose", "daisy", "rose", "aster"]):
        save(tmp_path / name / f"{row}.png", IMAGES[row, :, :4])
    (tmp_path / "rose" / "notes.txt").write_text("not an image")
    source = image_folder(tmp_path, 4)
    assert source.class_names == ("aster", "daisy", "rose")
    assert [source[row]["label"] for row in range(4)] == [0, 1, 2, 2]
    for row, original in enumerate([3, 1, 0, 2]):
        np.testing.assert_array_equal(source[row]["image"], IMAGES[original, :, :4])


def test_a_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "1.png", IMAGES[0])
    source = image_folder(tmp_path, 8)
    assert source.num_classes is None
    assert set(source[0]) == {"image"}
    assert source[0]["image"].shape == source.shape == (8, 8, 3)


def test_images_are_converted_to_the_channels_asked_for(tmp_path):
    save(tmp_path / "grey.png", IMAGES[0, :, :4, 0])
    assert image_folder(tmp_path, 4, channels=1)[0]["image"].shape == (4, 4, 1)
    coloured = image_folder(tmp_path, 4)[0]["image"]
    np.testing.assert_array_equal(coloured, np.repeat(IMAGES[0, :, :4, :1], 3, axis=2))


def test_a_photograph_is_turned_as_its_exif_data_say(tmp_path):
    rotated_by_180_degrees = Image.Exif()
    rotated_by_180_degrees[0x0112] = 3
    save(tmp_path / "photo.png", IMAGES[0, :, :4], exif=rotated_by_180_degrees)
    image = image_folder(tmp_path, 4)[0]["image"]
    np.testing.assert_array_equal(image, IMAGES[0, ::-1, 3::-1])


def test_captions_are_read_from_json_lines(tmp_path):
    save(tmp_path / "a" / "1.png", IMAGES[0])
    save(tmp_path / "b" / "2.png", IMAGES[1])
    lines = [{"file_name": "b/2.png", "text": "second"}, {"file": "a/1.png", "caption": "first"}]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    (tmp_path / "metadata.jsonl").write_text(text)
    source = image_folder(tmp_path, 4)
    assert [source[row]["caption"] for row in range(2)] == ["first", "second"]
    assert list(in_memory(source).captions) == ["first", "second"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "1.png"}', "line 1: expected"),
        ('{"file_name": "1.png", "text": "x"}\nhello', "line 2: expected"),
        ("[1, 2]", "line 1: expected"),
        ("", "no caption for 1 of 1 images, such as 1.png"),
        (
            '{"file_name": "1.png", "text": "x"}\n{"file_name": "9.png", "text": "x"}',
            "9.png, which is not an image",
        ),
    ],
)
def test_captions_that_do_not_fit_the_images_are_refused(tmp_path, text, message):
    save(tmp_path / "1.png", IMAGES[0])
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, 4)


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere", 4)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        image_folder(tmp_path, 4)
    save(tmp_path / "a" / "1.png", IMAGES[0])
    with pytest.raises(ValueError, match="image_size is 0"):
        image_folder(tmp_path, 0)
    with pytest.raises(ValueError, match="channels is 2"):
        image_folder(tmp_path, 4, channels=2)
    save(tmp_path / "2.png", IMAGES[0])
    with pytest.raises(ValueError, match=r"2\.png, and in subfolders"):
        image_folder(tmp_path, 4)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png could not be read as an image"):
        image_folder(tmp_path, 4)[0]
    (tmp_path / "broken.png").unlink()
    save(tmp_path / "deep.png", np.full([4, 4], 60_000, np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png .* not 8 bits a channel"):
        image_folder(tmp_path, 4)[0]
