"""The order of the images: a permutation an epoch, independent between epochs and seeds."""

import numpy as np

from diffjax.data.order import coin_flips, permutation, random_words, records_at, splitmix64


def test_splitmix64_gives_its_published_sequence():
    # The first outputs for seed 1234567, as generally published with the algorithm.
    states = np.array([1234567], np.uint64) + np.arange(5, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(states).tolist() == expected


def test_every_epoch_visits_every_image_once():
    records = records_at(7, 13, np.arange(5 * 13)).reshape(5, 13)
    np.testing.assert_array_equal(np.sort(records, axis=1), np.tile(np.arange(13), (5, 1)))


def test_a_position_has_its_image_whichever_others_are_asked_for():
    together = records_at(3, 11, np.arange(40))
    np.testing.assert_array_equal(records_at(3, 11, np.array([35, 2, 13])), together[[35, 2, 13]])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(6) for epoch in range(6)}
    assert len(orders) == 36


def test_all_permutations_are_equally_likely():
    trials = 4800
    seen = [tuple(permutation(1, epoch, 4)) for epoch in range(trials)]
    counts = np.array([seen.count(order) for order in sorted(set(seen))])
    assert len(counts) == 24
    expected = trials / 24
    # chi-square with 23 degrees of freedom: mean 23, standard deviation sqrt(46)
    assert np.sum((counts - expected) ** 2) / expected < 23 + 4 * np.sqrt(46)


def test_coins_are_fair_and_differ_by_seed():
    first, second = (coin_flips(seed, np.arange(10_000)) for seed in (0, 1))
    four_errors = 4 * 0.5 / np.sqrt(10_000)
    assert abs(first.mean() - 0.5) < four_errors
    assert abs((first == second).mean() - 0.5) < four_errors


def test_words_depend_on_seed_stream_and_index():
    words = np.concatenate(
        [random_words(seed, stream, np.arange(20)) for seed in range(5) for stream in range(5)]
    )
    assert len(set(words.tolist())) == 500
