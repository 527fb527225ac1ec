"""The order in which a stream visits the images: a pure function of (seed, position).

Let n be the number of images. Epoch e visits them in a random permutation drawn from (seed, e), and
epoch follows epoch without a gap: position p of the stream is

    image permutation(seed, p // n)[p mod n].

What else is random about position p is drawn from (seed, p). All of it comes from one hash, written
out here, because the streams of NumPy's generators may change with its version, and a run that
goes on under a newer NumPy should see the same images.

Source: SplitMix64, Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014.
"""

from functools import lru_cache

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
COINS = 1 << 63  # a stream of random words that no epoch number reaches


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 at each of these states: [n] uint64 to [n] uint64.

    The generator's next states are state + GOLDEN, state + 2·GOLDEN, ...
    """
    z = state + np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_words(seed: int, stream: int, index: np.ndarray) -> np.ndarray:
    """Random 64-bit words that are a function of (seed, stream, index).

    Args:
      seed, stream: integers in 0..2^64 - 1.
      index: [n] integers, 0 or more.

    Returns:
      [n] uint64.
    """
    start = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.array([stream], np.uint64))
    return splitmix64(start + index.astype(np.uint64) * np.uint64(GOLDEN))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch, a uniform permutation of 0..size-1: [size] int64.

    >>> sorted(permutation(0, 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(random_words(seed, epoch, np.arange(size)), kind="stable")


def records_at(seed: int, size: int, positions: np.ndarray) -> np.ndarray:
    """Which of `size` images is at each of these positions of the stream: [b] int64."""
    records = np.empty_like(positions)
    epochs = positions // size
    for epoch in np.unique(epochs):
        here = epochs == epoch
        records[here] = permutation(seed, int(epoch), size)[positions[here] % size]
    return records


def coin_flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """A fair coin for each of these positions of the stream: [b] bool."""
    return random_words(seed, COINS, positions) >> np.uint64(63) == 1


def uniform_numbers(seed: int, stream: int, index: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) that are a function of (seed, stream, index): [n] float64."""
    return (random_words(seed, stream, index) >> np.uint64(11)) * 2.0**-53
