"""The stream of batches: complete epochs, exact resume, one global batch however it is split."""

import itertools
import json

import chex
import jax
import numpy as np
import pytest

from diffjax.data import Arrays, arrays, batches


def numbered(count: int, num_classes: int | None = 10) -> Arrays:
    """Images that say which one they are: pixel (0, 0) is the number, the rest grows from it."""
    images = (np.arange(count)[:, None] + np.arange(12)).astype(np.uint8).reshape(-1, 3, 4, 1)
    labels = None if num_classes is None else np.arange(count, dtype=np.int32) % num_classes
    return Arrays(images, labels, num_classes)


def numbers(batch) -> list[int]:
    """Which of the numbered images a batch holds, mirrored or not."""
    grey = np.rint((np.asarray(batch["x0"]) + 1) * 127.5)
    return grey[:, 0, :, 0].min(axis=1).astype(int).tolist()


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


def on_one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_a_batch_is_float32_in_minus_one_to_one_with_int32_labels():
    images = np.zeros([4, 2, 2, 3], np.uint8)
    images[:, 0] = 255
    batch = next(batches(arrays(images, np.arange(4)), 4, seed=0))
    chex.assert_shape(batch["x0"], (4, 2, 2, 3))
    chex.assert_type([batch["x0"], batch["labels"]], [np.float32, np.int32])
    assert (batch["x0"][:, 0] == 1).all()
    assert (batch["x0"][:, 1] == -1).all()


def test_every_image_comes_once_an_epoch_also_across_batches():
    stream = batches(numbered(10), 4, seed=0)
    seen = [number for batch in take(stream, 15) for number in numbers(batch)]
    for epoch in range(6):
        assert sorted(seen[epoch * 10 : (epoch + 1) * 10]) == list(range(10))


def test_labels_stay_with_their_images():
    for batch in take(batches(numbered(23), 7, seed=1), 5):
        assert batch["labels"].tolist() == [number % 10 for number in numbers(batch)]


def test_the_order_is_decided_by_the_seed_and_differs_between_epochs():
    def order(seed):
        return [numbers(batch) for batch in take(batches(numbered(50), 50, seed=seed), 4)]

    assert order(0) == order(0)
    epochs = order(0) + order(1)
    assert len({tuple(epoch) for epoch in epochs}) == 8


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_blocks_of_all_processes_make_up_the_global_batch(count):
    whole = take(batches(numbered(20), 12, seed=3, flip=True), 4)
    blocks = [
        take(batches(numbered(20), 12, seed=3, flip=True, process=(index, count)), 4)
        for index in range(count)
    ]
    for step, batch in enumerate(whole):
        joined = np.concatenate([block[step]["x0"] for block in blocks])
        np.testing.assert_array_equal(joined, batch["x0"])


@pytest.mark.parametrize("sharding", [None, on_one_device()], ids=["host", "device"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_restored_stream_goes_on_bitwise_like_one_that_was_not_interrupted(sharding, steps):
    def stream():
        return batches(numbered(30), 8, seed=5, flip=True, sharding=sharding)

    uninterrupted = take(stream(), steps + 6)[steps:]
    saved = stream()
    take(saved, steps)
    state = json.loads(json.dumps(saved.get_state()))  # threads and device are ahead by now
    restored = stream()
    next(restored)
    restored.set_state(state)
    assert restored.get_state() == state
    chex.assert_trees_all_equal(take(restored, 6), uninterrupted)
    chex.assert_trees_all_equal(take(saved, 6), uninterrupted)


def test_a_state_of_another_stream_is_refused():
    state = batches(numbered(30), 8, seed=5).get_state()
    with pytest.raises(ValueError, match="seed 5; this one has 6"):
        batches(numbered(30), 8, seed=6).set_state(state)
    with pytest.raises(ValueError, match="batch_size 8; this one has 4"):
        batches(numbered(30), 4, seed=5).set_state(state)
    with pytest.raises(ValueError, match="images 30; this one has 31"):
        batches(numbered(31), 8, seed=5).set_state(state)
    with pytest.raises(ValueError, match="expected"):
        batches(numbered(30), 8, seed=5).set_state({"next_index": 3})


def test_flips_mirror_half_of_the_images_whatever_the_batch_size():
    def stream(batch_size):
        return batches(numbered(40), batch_size, seed=2, flip=True)

    small, large = take(stream(5), 80), take(stream(40), 10)
    images = np.concatenate([batch["x0"] for batch in small])
    np.testing.assert_array_equal(images, np.concatenate([batch["x0"] for batch in large]))
    mirrored = images[:, 0, 0, 0] > images[:, 0, 3, 0]
    upright = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(np.diff(upright, axis=2) > 0, True)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_nothing_is_mirrored_unless_asked_for():
    for batch in take(batches(numbered(40), 40, seed=2), 3):
        assert (np.diff(batch["x0"], axis=2) > 0).all()


def test_with_a_sharding_batches_lie_on_the_device():
    sharding = on_one_device()
    batch = next(batches(numbered(9), 4, seed=0, sharding=sharding))
    assert batch["x0"].sharding == sharding
    assert batch["labels"].sharding == sharding
    plain = next(batches(numbered(9), 4, seed=0))
    chex.assert_trees_all_equal(jax.device_get(batch), plain)


def test_labels_can_be_left_out():
    assert set(next(batches(numbered(9), 4, seed=0, labels=False))) == {"x0"}
    assert set(next(batches(numbered(9, num_classes=None), 4, seed=0))) == {"x0"}


def test_captions_are_encoded_into_the_batch():
    source = numbered(6, num_classes=None)
    source = Arrays(source.images, captions=[f"number {n}" for n in range(6)])

    def last_word(captions):
        return {"tokens": np.array([int(caption.split()[1]) for caption in captions])}

    batch = next(batches(source, 4, seed=0, encode_captions=last_word))
    assert batch["tokens"].tolist() == numbers(batch)


class FailsOnce:
    """A source whose image 7 cannot be read at the first try."""

    def __init__(self, source: Arrays):
        self.source, self.shape, self.num_classes = source, source.shape, source.num_classes
        self.failed = False

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == 7 and not self.failed:
            self.failed = True
            raise OSError("the network is away")
        return self.source[index]


def test_a_read_that_failed_can_be_tried_again_without_skipping():
    expected = [numbers(batch) for batch in take(batches(numbered(12), 4, seed=0), 6)]
    failing = next(step for step, batch in enumerate(expected) if 7 in batch)
    stream = batches(FailsOnce(numbered(12)), 4, seed=0, num_threads=1)
    got = take(stream, failing)
    with pytest.raises(OSError, match="the network is away"):
        next(stream)
    got += take(stream, 6 - failing)
    assert [numbers(batch) for batch in got] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 13}, "batch_size is 13; the source has 12 images"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"process": (0, 5)}, "batch_size 4 cannot be split evenly over 5 processes"),
        ({"process": (2, 2)}, "process is 2 of 2"),
        ({"labels": True}, "the source has none"),
        ({"encode_captions": dict}, "the source has no captions"),
        ({"process": (0, 2), "sharding": on_one_device()}, "not both"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(arguments, message):
    arguments = {"batch_size": 4, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        batches(numbered(12, num_classes=None), **arguments)
