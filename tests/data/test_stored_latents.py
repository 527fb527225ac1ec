"""Latents on disk: what was encoded comes back, all or nothing, and damage is found."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffjax import data
from diffjax.data import latents as latents_module

COUNT, SHARD = 23, 10
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (COUNT, 4, 4, 1)).astype(np.uint8)
SOURCE = data.Arrays(
    IMAGES, np.arange(COUNT, dtype=np.int32) % 3, 3, [f"ünder {i}" for i in range(COUNT)]
)
IDENTITY = {"data": "noise", "autoencoder": "halves"}


def encode(images):
    """Every second pixel is the mean, the others tell the variance."""
    return images[:, ::2, ::2], images[:, 1::2, 1::2] - 1.0


def write(folder, source=SOURCE, encoder=encode, **options):
    settings = {"identity": IDENTITY, "shard_size": SHARD, **options}
    return data.write_latents(folder, source, encoder, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache") / "latents")


def test_every_image_comes_back_with_its_moments_label_and_caption(folder):
    source = data.read_latents(folder)
    assert (len(source), source.shape, source.num_classes) == (COUNT, (2, 2, 1), 3)
    assert source.identity == IDENTITY
    mean, logvar = encode(IMAGES / np.float32(127.5) - np.float32(1))
    for i in range(COUNT):
        np.testing.assert_array_equal(source[i]["mean"], mean[i])
        np.testing.assert_array_equal(source[i]["logvar"], logvar[i])
        assert (source[i]["label"], source[i]["caption"]) == (i % 3, f"ünder {i}")


def test_the_statistics_are_those_of_the_draws(folder):
    source = data.read_latents(folder)
    means = np.stack([source[i]["mean"] for i in range(COUNT)])
    variances = np.exp(np.stack([source[i]["logvar"] for i in range(COUNT)]))
    drawn = means + np.sqrt(variances) * RNG.normal(size=(2000, *means.shape))
    np.testing.assert_allclose(source.mean, drawn.mean((0, 1, 2, 3)), atol=4 / np.sqrt(drawn.size))
    np.testing.assert_allclose(source.std, drawn.std((0, 1, 2, 3)), atol=4 / np.sqrt(drawn.size))


def test_tfds_reads_the_folder_as_one_of_its_own(folder):
    records = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(records) == COUNT
    assert records[7]["mean"].shape == (2, 2, 1)
    files = [path.name for path in folder.glob("*.array_record-*")]
    assert sorted(files)[-1] == "latents-train.array_record-00002-of-00003"


def test_batches_hold_means_and_logvars_and_epochs_the_same_images(folder):
    stream = data.batches(data.read_latents(folder), COUNT, seed=0)
    one, two = next(stream), next(stream)
    stream.close()
    assert one["x0"].shape == one["logvar"].shape == (COUNT, 2, 2, 1)
    assert one["x0"].dtype == np.float32
    as_set = lambda batch: {row.tobytes() for row in batch["x0"]}
    assert as_set(one) == as_set(two)
    with pytest.raises(ValueError, match="encode the mirror images"):
        data.batches(data.read_latents(folder), 4, seed=0, flip=True)


def test_half_precision_halves_the_numbers_on_disk(folder, tmp_path):
    source = data.read_latents(write(tmp_path / "half", dtype="float16"))
    assert source[3]["mean"].dtype == np.float32
    np.testing.assert_allclose(source[3]["mean"], data.read_latents(folder)[3]["mean"], rtol=1e-3)
    large = lambda images: (np.full((len(images), 2, 2, 1), 1e6), images[:, ::2, ::2])
    with pytest.raises(ValueError, match="not finite numbers of float16"):
        write(tmp_path / "large", encoder=large, dtype="float16")


def test_a_run_that_was_killed_goes_on_with_the_next_file(folder, tmp_path):
    calls = []

    def counted(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "latents", encoder=counted)
    assert not (tmp_path / "latents").exists()
    write(tmp_path / "latents", encoder=counted)
    # the first file is not made again
    assert len(calls) == 4
    assert not list(tmp_path.glob("*.part"))
    whole, resumed = (data.read_latents(each) for each in (folder, tmp_path / "latents"))
    for i in range(COUNT):
        np.testing.assert_array_equal(whole[i]["mean"], resumed[i]["mean"])
    np.testing.assert_array_equal(whole.std, resumed.std)


def test_what_was_begun_by_another_autoencoder_is_not_gone_on_with(tmp_path):
    broken = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "latents", encoder=broken)
    stale = tmp_path / "latents.part" / "shard-00000.json"
    stale.write_text("{}")
    write(tmp_path / "latents", identity={"autoencoder": "another"})
    assert data.read_latents(tmp_path / "latents").identity == {"autoencoder": "another"}


def test_mirrored_images_follow_the_others():
    both = data.Mirrored(SOURCE)
    assert len(both) == 2 * COUNT
    np.testing.assert_array_equal(both[COUNT + 5]["image"], IMAGES[5, :, ::-1])
    assert both[COUNT + 5]["label"] == both[5]["label"] == 5 % 3


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[400] ^= 1  # within the first records: files end in padding
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [shorten, flip_a_bit, lambda path: path.unlink()])
def test_damage_is_found_and_the_remedy_named(tmp_path, damage):
    folder = write(tmp_path / "latents")
    damage(sorted(folder.glob("*.array_record-*"))[1])
    with pytest.raises(ValueError, match=r"cannot be read as latents: .*delete it"):
        data.read_latents(folder)


def test_records_too_many_for_memory_are_checked_as_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "IN_MEMORY", 0)
    folder = write(tmp_path / "latents", shard_size=COUNT)
    assert data.read_latents(folder)[COUNT - 1]["label"] == (COUNT - 1) % 3
    flip_a_bit(next(iter(folder.glob("*.array_record-*"))))
    source = data.read_latents(folder)
    with pytest.raises(RuntimeError, match="hash"):
        [source[i] for i in range(COUNT)]


def test_a_folder_that_is_there_is_not_written_over(folder, tmp_path):
    with pytest.raises(FileExistsError, match="delete it to encode"):
        write(folder)
    with pytest.raises(FileNotFoundError, match="not a folder of latents"):
        data.read_latents(tmp_path / "nowhere")
    index = json.loads((folder / "latents.json").read_text())
    assert index["count"] == COUNT
