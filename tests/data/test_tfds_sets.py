"""TFDS sets without TensorFlow: the digits as scikit-learn has them, stock sets by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from tensorflow_datasets.core.hashing import Hasher

from diffjax.data import batches, digits, in_memory, load, prepare, tfds_set
from diffjax.data.digits8x8.builder import bytes_to_levels, levels_to_bytes
from diffjax.data.tfds_sets import cache_dir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which the digits are prepared."""
    folder = tmp_path_factory.mktemp("data")
    digits(data_dir=folder)
    return folder


def sorted_rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    return rows[np.lexsort(rows.T)]


def test_the_digits_are_scikit_learns_pixel_for_pixel(prepared):
    source = digits(data_dir=prepared)
    levels, labels = load_digits(return_X_y=True)
    assert (len(source), source.shape, source.num_classes) == (1797, (8, 8, 1), 10)
    stored = sorted_rows(bytes_to_levels(source.images), source.labels)
    np.testing.assert_array_equal(stored, sorted_rows(levels, labels))


def test_grey_levels_spread_over_the_whole_range_and_back():
    stored = levels_to_bytes(np.arange(17))
    assert (stored.min(), stored.max()) == (0, 255)
    np.testing.assert_array_equal(bytes_to_levels(stored), np.arange(17))


def test_test_digits_are_the_last_of_scikit_learns_and_train_the_rest(prepared):
    levels, labels = load_digits(return_X_y=True)
    for split, part in (("train", slice(0, 1437)), ("test", slice(1437, 1797))):
        source = digits(split, data_dir=prepared)
        stored = sorted_rows(bytes_to_levels(source.images), source.labels)
        np.testing.assert_array_equal(stored, sorted_rows(levels[part], labels[part]))


def test_digits_of_every_split_stand_in_the_order_of_one_shuffled_split(prepared):
    levels, labels = load_digits(return_X_y=True)
    hasher = Hasher("train")
    order = sorted(range(1797), key=hasher.hash_key)
    rows = {"train+test": order, "test+train": order, "test": [n for n in order if n >= 1437]}
    for split, expected in rows.items():
        source = digits(split, data_dir=prepared)
        stored = bytes_to_levels(source.images.reshape(-1, 64))
        np.testing.assert_array_equal(stored, levels[expected])
        np.testing.assert_array_equal(source.labels, labels[expected])


def test_sub_splits_part_the_digits(prepared):
    whole = digits("train", data_dir=prepared)
    train, rest = (digits(part, data_dir=prepared) for part in ("train[:90%]", "train[90%:]"))
    assert (len(train), len(rest)) == (1293, 144)
    np.testing.assert_array_equal(np.concatenate([train.images, rest.images]), whole.images)
    assert set(train.labels) == set(rest.labels) == set(range(10))


def test_the_digits_are_the_same_wherever_they_were_prepared(prepared, tmp_path):
    elsewhere = digits(data_dir=tmp_path)
    np.testing.assert_array_equal(elsewhere.images, digits(data_dir=prepared).images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits8x8"]


def test_the_digits_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("DIFFJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "diffjax"
    monkeypatch.setenv("DIFFJAX_DATA_DIR", str(tmp_path / "data"))
    assert cache_dir() == tmp_path / "data"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"could not be prepared in .*file.*DIFFJAX_DATA_DIR"):
        digits(data_dir=tmp_path / "file")


def test_an_unknown_split_is_refused(prepared):
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
        digits("validation", data_dir=prepared)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "info"])
def test_damaged_digits_are_refused_with_the_remedy(prepared, tmp_path, damage):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("digits8x8/*/*train.array_record*")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-40_000])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged, delete it"):
        digits(data_dir=tmp_path)


PREPARE = """
import sys
from diffjax.data import digits
print(sorted({"tensorflow_datasets", "grain", "sklearn", "tensorflow"} & set(sys.modules)))
print(len(digits(data_dir=sys.argv[1])))
print("tensorflow" in sys.modules)
"""


@pytest.mark.slow
def test_two_processes_prepare_the_digits_at_once_and_import_little(tmp_path):
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in running:
        output, errors = process.communicate(timeout=600)
        assert (process.returncode, output.split()) == (0, ["[]", "1797", "False"]), errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits8x8"]


def test_digits_flow_into_batches(prepared):
    source = load("digits", path=prepared)
    batch = next(batches(source, 128, seed=0))
    assert batch["x0"].shape == (128, 8, 8, 1)
    known = {image.tobytes() for image in source.images}
    grey = np.rint((batch["x0"] + 1) * 127.5).astype(np.uint8)
    assert {image.tobytes() for image in grey} <= known


def test_any_prepared_set_is_read_by_name(prepared):
    source = tfds_set("digits8x8", "train[:50]", data_dir=prepared)
    assert (len(source), source.shape, source.num_classes) == (50, (8, 8, 1), 10)
    known = digits("train[:50]", data_dir=prepared)
    np.testing.assert_array_equal(in_memory(source).images, known.images)


def test_a_prepared_set_is_resized(prepared):
    source = tfds_set("digits8x8", data_dir=prepared, image_size=4)
    assert source[0]["image"].shape == source.shape == (4, 4, 1)


def test_cifar10_gives_batches():
    with tfds.testing.mock_data(num_examples=6):
        source = load("cifar10")
        assert (len(source), source.shape, source.num_classes) == (6, (32, 32, 3), 10)
        batch = next(batches(source, 4, seed=0, flip=True))
    assert batch["x0"].shape == (4, 32, 32, 3)
    assert batch["labels"].shape == (4,)


def test_celeb_a_has_no_labels_and_is_cropped_to_squares():
    with tfds.testing.mock_data(num_examples=3):
        source = load("tfds:celeb_a", image_size=64)
        assert source.num_classes is None
        assert set(source[0]) == {"image"}
        assert source[0]["image"].shape == source.shape == (64, 64, 3)


def test_a_set_that_is_not_prepared_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing in .*cifar10/3.*prepare\('cifar10'\)"):
        load("cifar10", path=tmp_path)


def test_a_set_without_random_access_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob("digits8x8/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored as tfrecord, which has no random access"):
        tfds_set("digits8x8", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "Did you mean cifar10"),
        ("digit", "Did you mean digits"),
        ("ag_news_subset", "a set with the feature image is needed"),
        ("cats_vs_dogs", "differ in size; give an image_size"),
    ],
)
def test_sets_that_are_none_of_images_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits", "image_size": 16}, "the digits are 8x8"),
        ({"name": "folder", "image_size": 16}, "needs its path"),
        ({"name": "folder", "path": "."}, "and an image_size"),
        ({"name": "folder", "path": ".", "image_size": 8, "split": "test"}, "no splits"),
        ({"name": "npz"}, "needs its path"),
        ({"name": "npz", "path": "x.npz", "image_size": 8}, "are not resized"),
    ],
)
def test_arguments_that_do_not_apply_to_a_set_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_folders_and_archives_are_loaded_by_name(tmp_path):
    images = np.zeros([3, 8, 8, 1], np.uint8)
    np.savez(tmp_path / "some.npz", images=images)
    assert len(load("npz", path=tmp_path / "some.npz")) == 3
    with pytest.raises(FileNotFoundError, match="holds no images"):
        load("folder", path=tmp_path, image_size=8)


class NeedsTensorflow(tfds.core.GeneratorBasedBuilder):
    """A set that, like most stock ones, uses TensorFlow to encode its images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 2, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros([2, 2, 1], np.uint8)}


def test_preparing_what_needs_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match="needs TensorFlow, once: `pip install tensorflow`"):
        prepare("needs_tensorflow", data_dir=tmp_path)
